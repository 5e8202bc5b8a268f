//! Messages that no client library should send do not stop any consumer.

mod support;

use queue::JOBS_EXCHANGE;
use support::raw::{self, RawMessage, nested_headers};
use support::{TIMEOUT, amqp_url, at_desk, until, within};

fn message(queue: &str) -> RawMessage {
    RawMessage {
        exchange: "",
        routing_key: queue.into(),
        message_id: None,
        headers: None,
        body: b"body".to_vec(),
    }
}

async fn publish(message: RawMessage) {
    tokio::task::spawn_blocking(move || raw::publish(&amqp_url(), &message)).await.expect("published");
}

#[tokio::test]
async fn a_message_id_that_is_not_utf8_is_delivered_all_the_same() {
    at_desk(async |desk| {
        publish(RawMessage { message_id: Some(b"a\xff\xfeb".to_vec()), ..message(&desk.queue) }).await;
        desk.publish("next").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let delivery = within(slot.next()).await.unwrap();
        assert_eq!(delivery.message_id(), Some("a??b"));
        delivery.ack().await.unwrap();
        assert_eq!(within(slot.next()).await.unwrap().message_id(), Some("next"));
        assert_eq!(desk.broker.ready(TIMEOUT).await, Ok(1), "still on the first connection");
    })
    .await;
}

#[tokio::test]
async fn headers_nested_ten_thousand_levels_deep_are_delivered_all_the_same() {
    at_desk(async |desk| {
        publish(RawMessage { headers: Some(nested_headers(10_000)), ..message(&desk.queue) }).await;
        desk.publish("next").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let delivery = within(slot.next()).await.unwrap();
        assert_eq!(delivery.body, b"body");
        // With our headers added it would be too large for a frame, so the copy goes without the original's.
        within(desk.broker.publisher().dead_letter(&delivery, "body: hostile", "hostile")).await.unwrap();
        delivery.ack().await.unwrap();
        assert_eq!(within(slot.next()).await.unwrap().message_id(), Some("next"));
        assert_eq!(desk.broker.ready(TIMEOUT).await, Ok(1), "still on the first connection");
    })
    .await;
}

#[tokio::test]
async fn an_unroutable_message_whose_routing_key_is_not_utf8_can_be_looked_at() {
    at_desk(async |desk| {
        let id = desk.pool.to_string();
        let hostile = RawMessage {
            exchange: JOBS_EXCHANGE,
            routing_key: b"no\xffwhere".to_vec(),
            message_id: Some(id.clone().into_bytes()),
            ..message("")
        };
        publish(hostile).await;
        let mut letter = None;
        until(async || {
            let letters = within(desk.broker.dead_letters(10_000)).await.unwrap();
            letter = letters.into_iter().find(|letter| letter.message_id.as_ref() == Some(&id));
            letter.is_some()
        })
        .await;
        let letter = letter.unwrap();
        assert_eq!(letter.code, "unroutable");
        assert!(letter.reason.contains("no?where"), "{}", letter.reason);
    })
    .await;
}
