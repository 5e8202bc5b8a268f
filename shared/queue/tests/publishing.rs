//! What a caller learns about a message it has published is true.

mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use lapin::options::BasicConsumeOptions;
use lapin::types::{AMQPValue, FieldTable};
use queue::{Broker, BrokerConfig, BrokerStatus, Message, PublishError};
use support::{
    TIMEOUT, amqp_url, at_desk, close_by_force, declare_foreign_queue, delete_queue, lapin_channel,
    until_status, within,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

fn numbered(number: usize) -> Message {
    let mut message = Message::new("test.v1", number.to_string());
    message.message_id = Some(number.to_string());
    message
}

#[tokio::test]
async fn a_message_arrives_with_all_its_properties_and_is_gone_once_acked() {
    at_desk(async |desk| {
        let message = Message {
            body: b"{}".to_vec(),
            kind: "harness.job.v1",
            message_id: Some("m".to_owned()),
            correlation_id: Some("c".to_owned()),
            reply_to: Some("r".to_owned()),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        };
        within(desk.broker.publisher().publish(&desk.queue, message.clone())).await.unwrap();
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let delivery = within(slot.next()).await.unwrap();
        assert_eq!(delivery.body, message.body);
        assert_eq!(delivery.kind(), Some("harness.job.v1"));
        assert_eq!(delivery.message_id(), Some("m"));
        assert_eq!(delivery.correlation_id(), Some("c"));
        assert_eq!(delivery.reply_to(), Some("r"));
        assert_eq!(delivery.traceparent(), message.traceparent.as_deref());
        assert_eq!(delivery.queue(), desk.queue);
        assert!(!delivery.redelivered());
        delivery.ack().await.unwrap();
        drop(slot);
        desk.until_ready(0).await;
    })
    .await;
}

#[tokio::test]
async fn five_thousand_messages_published_at_once_are_confirmed_and_arrive_in_order() {
    at_desk(async |desk| {
        let publisher = desk.broker.publisher();
        let all = join_all((0..5_000).map(|number| publisher.publish(&desk.queue, numbered(number))));
        for confirmed in within(all).await {
            confirmed.unwrap();
        }
        assert_eq!(desk.ready().await, 5_000);
        let (connection, channel) = lapin_channel().await;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consuming =
            channel.basic_consume((&*desk.queue).into(), "".into(), options, FieldTable::default());
        let mut arriving = within(consuming).await.unwrap();
        for number in 0..5_000 {
            let message = within(arriving.next()).await.unwrap().unwrap();
            assert_eq!(message.data, number.to_string().into_bytes());
        }
        connection.close(200, "done".into()).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_messages_in_flight_exactly_those_without_a_queue_are_returned() {
    at_desk(async |desk| {
        // It must not be a pool's queue, because that would be declared.
        let missing = format!("missing.{}", desk.queue);
        let publisher = desk.broker.publisher();
        let mut arrived = 0;
        // Few of them, then many. The broker confirms them one by one, or several with one frame.
        for lost in [|number: usize| number % 7 == 3, |number: usize| !number.is_multiple_of(100)] {
            let all = join_all((0..6_000).map(|number| {
                let queue = if lost(number) { &missing } else { &desk.queue };
                // Some have no message id.
                let message = if number % 2 == 0 { numbered(number) } else { Message::new("test.v1", "x") };
                publisher.publish(queue, message)
            }));
            for (number, outcome) in within(all).await.into_iter().enumerate() {
                match outcome {
                    Ok(()) => assert!(!lost(number), "{number} is nowhere, but was confirmed"),
                    Err(PublishError::Returned { queue, reason }) => {
                        assert!(lost(number), "{number} has arrived, but was reported as returned");
                        assert_eq!((queue, reason.as_str()), (missing.clone(), "NO_ROUTE"));
                    }
                    Err(other) => panic!("{number}: {other}"),
                }
            }
            arrived += (0..6_000).filter(|number| !lost(*number)).count() as u64;
            assert_eq!(desk.ready().await, arrived);
        }
    })
    .await;
}

#[tokio::test]
async fn a_reply_to_a_queue_that_is_gone_is_no_error() {
    at_desk(async |desk| {
        let gone = format!("{}.gone", desk.queue);
        assert_eq!(within(desk.broker.publisher().reply(&gone, numbered(1))).await, Ok(()));
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_the_same_message_may_be_tried_again() {
    at_desk(async |desk| {
        let full = format!("{}.full", desk.queue);
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        declare_foreign_queue(&full, arguments).await;
        let publisher = desk.broker.publisher();
        within(publisher.publish(&full, numbered(1))).await.unwrap();
        let refused = within(publisher.publish(&full, numbered(2))).await.unwrap_err();
        delete_queue(&full).await;
        assert_eq!(refused, PublishError::Nacked { queue: full });
        assert!(refused.is_retryable());
    })
    .await;
}

#[tokio::test]
async fn a_pools_queue_that_somebody_deleted_is_declared_again_by_the_next_publish() {
    at_desk(async |desk| {
        delete_queue(&desk.queue).await;
        desk.publish("first").await;
        assert_eq!(desk.ready().await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_of_many_frames_arrives_whole() {
    at_desk(async |desk| {
        let body: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let message = Message::new("test.v1", body.clone());
        within(desk.broker.publisher().publish(&desk.queue, message)).await.unwrap();
        let mut slot = desk.broker.slot(&desk.queue, "test");
        assert!(within(slot.next()).await.unwrap().body == body);
    })
    .await;
}

#[tokio::test]
async fn a_property_too_long_for_amqp_is_refused_by_name_and_not_sent() {
    at_desk(async |desk| {
        let mut message = numbered(1);
        message.message_id = Some("x".repeat(256));
        let refused = within(desk.broker.publisher().publish(&desk.queue, message)).await.unwrap_err();
        assert_eq!(refused.to_string(), "message_id: got 256 bytes, expected at most 255");
        assert_eq!(desk.ready().await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_publish_waits_for_the_first_connection() {
    at_desk(async |desk| {
        let broker = Broker::start(BrokerConfig::new(amqp_url(), "test"), CancellationToken::new());
        within(broker.publisher().publish(&desk.queue, numbered(1))).await.unwrap();
        broker.close().await;
    })
    .await;
}

#[tokio::test]
async fn closing_waits_for_the_confirms_of_what_was_published() {
    at_desk(async |desk| {
        let config = BrokerConfig::new(amqp_url(), "test");
        let broker = Broker::start(config, CancellationToken::new());
        broker.ready(TIMEOUT).await.unwrap();
        let publisher = broker.publisher();
        let all = join_all((0..500).map(|number| publisher.publish(&desk.queue, numbered(number))));
        let close = async {
            // The publishes above are polled first and so have been handed over.
            tokio::task::yield_now().await;
            broker.close().await;
        };
        let (outcomes, ()) = within(futures::future::join(all, close)).await;
        assert!(outcomes.iter().all(Result::is_ok), "{:?}", outcomes.iter().find(|outcome| outcome.is_err()));
        let late = within(publisher.publish(&desk.queue, numbered(0))).await;
        assert_eq!(late, Err(PublishError::Closed));
        assert_eq!(desk.ready().await, 500);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_when_what_was_not_confirmed_is_published_again() {
    at_desk(async |desk| {
        let publisher = desk.broker.publisher();
        let (next, lost) = (AtomicUsize::new(0), AtomicBool::new(false));
        // Each caller continues until it has published with success after the connection was lost.
        let caller = async || {
            let mut after = false;
            while !after {
                let number = next.fetch_add(1, Relaxed);
                after = lost.load(Relaxed);
                while let Err(error) = publisher.publish(&desk.queue, numbered(number)).await {
                    assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
                    assert!(error.is_retryable());
                }
            }
        };
        let breaking = async {
            close_by_force(&desk.connection_name).await;
            until_status(&desk.broker, |status| *status != BrokerStatus::Ready { generation: 1 }).await;
            lost.store(true, Relaxed);
        };
        within(futures::future::join(breaking, join_all((0..4).map(|_| caller())))).await;

        let missing: Mutex<BTreeSet<usize>> = Mutex::new((0..next.into_inner()).collect());
        let consumer = async || {
            let mut slot = desk.broker.slot(&desk.queue, "test");
            while !missing.lock().unwrap().is_empty() {
                // Other slots may have taken the last one.
                let Ok(delivery) = timeout(Duration::from_millis(200), slot.next()).await else { continue };
                let delivery = delivery.unwrap();
                missing.lock().unwrap().remove(&delivery.message_id().unwrap().parse().unwrap());
                delivery.ack().await.unwrap();
            }
        };
        within(join_all((0..32).map(|_| consumer()))).await;
    })
    .await;
}

#[tokio::test]
async fn a_publish_without_a_broker_ends_at_its_bound_and_says_why() {
    let mut config = BrokerConfig::new("amqp://127.0.0.1:1", "test");
    config.confirm_timeout = Duration::from_millis(300);
    let broker = Broker::start(config, CancellationToken::new());
    let error = within(broker.publisher().publish("q", numbered(1))).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    broker.close().await;
}
