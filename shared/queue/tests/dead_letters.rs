//! A dead letter says why it is dead, and stays in its queue while it is read.

mod support;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use queue::{DeadLetter, JOBS_EXCHANGE};
use support::{Desk, at_desk, lapin_channel, within};

/// Finds a letter. Other tests use `harness.dead` at the same time, and a test that reads a letter hides it from the
/// rest.
async fn find(desk: &Desk, id: &str) -> DeadLetter {
    let look = async {
        loop {
            let letters = desk.broker.dead_letters(100_000).await.expect("letters");
            if let Some(letter) = letters.into_iter().find(|letter| letter.message_id.as_deref() == Some(id))
            {
                return letter;
            }
        }
    };
    within(look).await
}

#[tokio::test]
async fn a_message_we_dead_letter_is_found_with_its_reason_and_stays() {
    at_desk(async |desk| {
        let id = desk.pool.to_string();
        desk.publish(&id).await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let delivery = within(slot.next()).await.unwrap();
        let publisher = desk.broker.publisher();
        let reason = "session_id: got \"a/b\", expected …";
        within(publisher.dead_letter(&delivery, reason, "undecodable")).await.unwrap();
        delivery.ack().await.unwrap();
        for _ in 0..3 {
            let letter = find(desk, &id).await;
            assert_eq!(letter.reason, reason);
            assert_eq!(letter.code, "undecodable");
            assert_eq!(letter.source_queue.as_ref(), Some(&desk.queue));
            assert_eq!((letter.body, letter.kind.as_deref()), (id.clone().into_bytes(), Some("test.v1")));
            assert!(letter.dead_at_unix_ms.unwrap() > 1_700_000_000_000);
            assert_eq!(letter.headers["x-harness-code"], "undecodable");
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_for_a_pool_that_does_not_exist_becomes_a_dead_letter() {
    at_desk(async |desk| {
        let id = desk.pool.to_string();
        let (connection, channel) = lapin_channel().await;
        let properties = BasicProperties::default().with_message_id(id.as_str().into());
        let options = BasicPublishOptions::default();
        let published =
            channel.basic_publish(JOBS_EXCHANGE.into(), "no-such-pool".into(), options, b"{}", properties);
        within(published).await.unwrap();
        within(connection.close(200, "done".into())).await.unwrap();
        let letter = find(desk, &id).await;
        assert_eq!(letter.code, "unroutable");
        assert!(letter.reason.contains("no-such-pool"), "{}", letter.reason);
        assert_eq!(letter.source_queue, None);
    })
    .await;
}

#[tokio::test]
async fn a_message_for_an_existing_pool_reaches_its_queue_through_the_exchange() {
    at_desk(async |desk| {
        let (connection, channel) = lapin_channel().await;
        let (key, options) = (desk.pool.as_str().into(), BasicPublishOptions::default());
        let published =
            channel.basic_publish(JOBS_EXCHANGE.into(), key, options, b"{}", BasicProperties::default());
        within(published).await.unwrap();
        within(connection.close(200, "done".into())).await.unwrap();
        let mut slot = desk.broker.slot(&desk.queue, "test");
        assert_eq!(within(slot.next()).await.unwrap().body, b"{}");
    })
    .await;
}

#[tokio::test]
async fn a_message_given_back_too_often_is_dead_lettered_by_the_broker() {
    at_desk(async |desk| {
        let id = desk.pool.to_string();
        desk.publish(&id).await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        for _ in 0..=1_000 {
            within(slot.next()).await.unwrap().requeue().await.unwrap();
        }
        let letter = find(desk, &id).await;
        assert_eq!(
            (letter.code.as_str(), letter.source_queue.as_ref()),
            ("delivery_limit", Some(&desk.queue))
        );
        assert!(letter.dead_at_unix_ms.is_some());
    })
    .await;
}

#[tokio::test]
async fn dead_letters_can_be_counted() {
    at_desk(async |desk| {
        let id = desk.pool.to_string();
        desk.publish(&id).await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let delivery = within(slot.next()).await.unwrap();
        within(desk.broker.publisher().dead_letter(&delivery, "test", "test")).await.unwrap();
        delivery.ack().await.unwrap();
        // A test that reads it at the same time hides it for a moment.
        support::until(async || desk.broker.dead_letter_count().await.unwrap() > 0).await;
    })
    .await;
}
