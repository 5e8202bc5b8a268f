//! Whatever ends a connection or a consumer, the next one is set up without help.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::types::FieldTable;
use queue::{Broker, BrokerConfig, BrokerStatus, Message, QueueError, jobs_queue};
use support::{
    TIMEOUT, amqp_url, as_ours, at_desk, close_by_force, declare_foreign_queue, delete_queue, queue_is_there,
    until, until_status, within,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_slot_consumes_again_after_its_queue_was_deleted() {
    at_desk(async |desk| {
        desk.publish("before").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        within(slot.next()).await.unwrap().ack().await.unwrap();
        for round in ["once", "twice"] {
            delete_queue(&desk.queue).await;
            // The slot declares it again. Publishing would, too.
            let (delivery, ()) = within(futures::future::join(slot.next(), async {
                until(async || matches!(desk.broker.depth(&desk.queue).await, Ok(Some(_)))).await;
                desk.publish(round).await;
            }))
            .await;
            let delivery = delivery.unwrap();
            assert_eq!(delivery.message_id(), Some(round));
            delivery.ack().await.unwrap();
            let redeclared = within(desk.broker.redeclared_queues()).await;
            assert_eq!(redeclared.keys().collect::<Vec<_>>(), [&desk.pool]);
        }
    })
    .await;
}

/// A client that declares a deleted queue again too early makes RabbitMQ forget the other clients' consumers, or take
/// what they publish for duplicates.
#[tokio::test]
async fn nothing_published_after_a_queue_was_deleted_is_lost_on_any_of_many_connections() {
    at_desk(async |desk| {
        let config = |name| BrokerConfig::new(amqp_url(), name).with_pools([desk.pool.clone()]);
        let brokers: Vec<Broker> =
            (0..4).map(|_| Broker::start(config("crowd"), CancellationToken::new())).collect();
        let (received, mut receiving) = mpsc::channel(64);
        let mut slots = JoinSet::new();
        for broker in &brokers {
            for _ in 0..16 {
                let (mut slot, received) = (broker.slot(&desk.queue, "crowd"), received.clone());
                slots.spawn(async move {
                    while let Some(delivery) = slot.next().await {
                        let id = delivery.message_id().unwrap().to_owned();
                        delivery.settle().await;
                        received.send(id).await.unwrap();
                    }
                });
            }
        }
        for round in 0..6 {
            // Wait until all consume, so that the next round begins like the first.
            within(async { until(async || brokers.iter().all(Broker::is_consuming)).await }).await;
            delete_queue(&desk.queue).await;
            // The publishers have used this queue before, and publish as early as they can.
            let mut expected = BTreeSet::new();
            for (number, broker) in brokers.iter().cycle().take(64).enumerate() {
                let id = format!("{round}.{number}");
                let message = Message { message_id: Some(id.clone()), ..Message::new("test.v1", "{}") };
                // The queue being deleted may still nack, and the broker may close the channel (INTERNAL_ERROR). Then
                // the message is published again, as every publisher does.
                while let Err(error) = within(broker.publisher().publish(&desk.queue, message.clone())).await
                {
                    assert!(error.is_retryable(), "{error}");
                }
                expected.insert(id);
            }
            while !expected.is_empty() {
                let next = timeout(TIMEOUT, receiving.recv()).await;
                let id = next.unwrap_or_else(|_| panic!("never delivered: {expected:?}")).unwrap();
                expected.remove(&id);
            }
        }
        for broker in &brokers {
            broker.close().await;
        }
    })
    .await;
}

/// Another client declares the queue, and it is deleted once more, while two of our connections wait to see whether it
/// stays missing.
#[tokio::test]
async fn a_queue_that_is_deleted_twice_is_not_declared_right_after_the_second_time() {
    at_desk(async |desk| {
        let another = |name| BrokerConfig::new(amqp_url(), name).with_pools([desk.pool.clone()]);
        delete_queue(&desk.queue).await;
        let starting = Broker::start(another("starting"), CancellationToken::new());
        let publisher = desk.broker.publisher();
        let publishing = async {
            let message = Message { message_id: Some("m".to_owned()), ..Message::new("test.v1", "{}") };
            // The message may be returned a second time.
            let published = publisher.publish(&desk.queue, message).await;
            published.is_ok().then(Instant::now)
        };
        let deleting = async {
            sleep(Duration::from_millis(300)).await;
            declare_foreign_queue(&desk.queue, as_ours()).await;
            sleep(Duration::from_millis(400)).await;
            let at = Instant::now();
            delete_queue(&desk.queue).await;
            let mut back_after = Vec::new();
            while at.elapsed() < Duration::from_millis(900) {
                if queue_is_there(&desk.queue).await {
                    back_after.push(at.elapsed());
                }
            }
            (at, back_after)
        };
        let (published, (at, back_after)) = within(futures::future::join(publishing, deleting)).await;
        let too_early =
            published.filter(|published| (at..at + Duration::from_millis(900)).contains(published));
        assert_eq!((back_after, too_early.map(|early| early - at)), (Vec::new(), None));
        starting.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_slot_waits_for_a_queue_that_is_not_ours_to_declare() {
    at_desk(async |desk| {
        let foreign = format!("{}.foreign", desk.queue);
        let mut slot = desk.broker.slot(&foreign, "test");
        assert!(timeout(Duration::from_millis(300), slot.next()).await.is_err());
        declare_foreign_queue(&foreign, FieldTable::default()).await;
        let message = queue::Message::new("test.v1", "here");
        within(desk.broker.publisher().publish(&foreign, message)).await.unwrap();
        assert_eq!(within(slot.next()).await.unwrap().body, b"here");
        assert_eq!(desk.broker.ready(TIMEOUT).await, Ok(1), "other slots are not disturbed");
        delete_queue(&foreign).await;
    })
    .await;
}

#[tokio::test]
async fn consuming_and_publishing_go_on_after_the_connection_was_closed_by_force() {
    at_desk(async |desk| {
        desk.publish("held").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let held = within(slot.next()).await.unwrap();
        assert_eq!(held.generation(), 1);
        close_by_force(&desk.connection_name).await;
        let lost =
            until_status(&desk.broker, |status| *status != BrokerStatus::Ready { generation: 1 }).await;
        if let BrokerStatus::Connecting { reason } = lost {
            assert!(reason.unwrap().contains("CONNECTION_FORCED"));
        }
        assert!(held.is_stale());
        assert_eq!(held.ack().await.unwrap_err().generation, 1);
        let again = within(slot.next()).await.unwrap();
        assert_eq!((again.message_id(), again.generation()), (Some("held"), 2));
        assert!(again.redelivered());
        again.ack().await.unwrap();
        desk.publish("after").await;
        assert_eq!(within(slot.next()).await.unwrap().message_id(), Some("after"));
    })
    .await;
}

#[tokio::test]
async fn a_refused_login_is_reported_without_the_password_and_tried_again() {
    let url = amqp_url();
    let (start, rest) = url.split_once("://").unwrap();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let config = BrokerConfig::new(format!("{start}://nobody:s3cret@{host}"), "test");
    let broker = Broker::start(config, CancellationToken::new());
    let refused = |status: &BrokerStatus| matches!(status, BrokerStatus::Connecting { reason: Some(_) });
    let BrokerStatus::Connecting { reason: Some(reason) } = until_status(&broker, refused).await else {
        unreachable!("just waited for it")
    };
    assert!(reason.contains("ACCESS_REFUSED") && reason.contains("nobody@"), "{reason}");
    assert!(!reason.contains("s3cret"), "{reason}");
    let error = broker.ready(Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(error, QueueError::Unavailable { .. }) && error.is_retryable(), "{error}");
    within(broker.close()).await;
}

#[tokio::test]
async fn a_wrong_address_ends_at_once_and_names_its_setting() {
    let config = BrokerConfig::new("rabbit:s3cret@host", "test");
    assert!(config.check().unwrap_err().to_string().contains("AMQP_URL"));
    let broker = Broker::start(config, CancellationToken::new());
    let error = within(broker.ready(TIMEOUT)).await.unwrap_err();
    assert!(matches!(error, QueueError::Closed { .. }) && !error.is_retryable());
    assert!(error.to_string().contains("AMQP_URL") && !error.to_string().contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_host_that_accepts_and_says_nothing_is_given_up_at_the_bound() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut config = BrokerConfig::new(format!("amqp://127.0.0.1:{port}"), "test");
    config.connect_timeout = Duration::from_millis(100);
    config.min_backoff = Duration::from_millis(1);
    config.max_backoff = Duration::from_millis(1);
    let broker = Broker::start(config, CancellationToken::new());
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(within(silent.accept()).await.unwrap().0);
    }
    // The threads of the first attempts have hung up. Otherwise they would pile up.
    let mut seen = [0; 64];
    let goodbye = async {
        while sockets[0].try_read(&mut seen).is_ok_and(|bytes| bytes > 0)
            || sockets[0].readable().await.is_err()
        {}
        sockets[0].try_read(&mut seen)
    };
    assert_eq!(within(goodbye).await.unwrap(), 0, "end of file");
    let BrokerStatus::Connecting { reason: Some(reason) } = broker.status().borrow().clone() else {
        panic!("{:?}", broker.status().borrow())
    };
    assert!(reason.contains("no answer"), "{reason}");
    within(broker.close()).await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named_and_connecting_goes_on_once_it_is_gone() {
    let pool: job::Name = format!("test-{}", uuid::Uuid::new_v4().simple()).parse().unwrap();
    let queue = jobs_queue(&pool);
    declare_foreign_queue(&queue, FieldTable::default()).await;
    let config = BrokerConfig::new(amqp_url(), "test").with_pools([pool]);
    let broker = Broker::start(config, CancellationToken::new());
    let refused = |status: &BrokerStatus| matches!(status, BrokerStatus::Connecting { reason: Some(_) });
    let status = until_status(&broker, refused).await;
    delete_queue(&queue).await;
    let generation = broker.ready(TIMEOUT).await;
    broker.close().await;
    delete_queue(&queue).await;
    let BrokerStatus::Connecting { reason: Some(reason) } = status else {
        unreachable!("just waited for it")
    };
    assert!(reason.contains(&queue) && reason.contains("delete_queue"), "{reason}");
    assert_eq!(generation, Ok(1));
}

#[tokio::test]
async fn depth_counts_what_waits_and_knows_a_missing_queue() {
    at_desk(async |desk| {
        let missing = format!("{}.missing", desk.queue);
        assert_eq!(within(desk.broker.depth(&missing)).await, Ok(None));
        assert_eq!(desk.ready().await, 0);
        desk.publish("one").await;
        desk.publish("two").await;
        assert_eq!(desk.ready().await, 2);
        assert_eq!(within(desk.broker.depth(&missing)).await, Ok(None));
        assert_eq!(desk.broker.ready(TIMEOUT).await, Ok(1), "still on the first connection");
    })
    .await;
}

#[tokio::test]
async fn a_pool_can_be_added_later() {
    at_desk(async |desk| {
        let pool: job::Name = format!("{}-b", desk.pool).parse().unwrap();
        let queue = jobs_queue(&pool);
        assert_eq!(desk.broker.depth(&queue).await, Ok(None));
        within(desk.broker.declare_pool(&pool)).await.unwrap();
        let depth = desk.broker.depth(&queue).await.unwrap();
        delete_queue(&queue).await;
        assert_eq!(depth.unwrap().ready, 0);
    })
    .await;
}
