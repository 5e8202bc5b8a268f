//! Announcements reach the processes that listen, and harm no others.

mod support;

use std::time::Duration;

use lapin::options::ExchangeDeleteOptions;
use queue::{Announced, Announcer, Broker, BrokerConfig, EVENTS_EXCHANGE, Listener};
use support::{at_desk, lapin_channel, until, within};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Announces this again and again until it is heard, and returns what was heard before it. Others in this vhost
/// announce as well, and delete the exchange.
async fn is_heard(
    announcer: &Announcer,
    listener: &mut Listener,
    to: Announced,
    body: &str,
) -> Vec<(Announced, Vec<u8>)> {
    let mut before = Vec::new();
    let hearing = async {
        loop {
            announcer.announce(to, "test.v1", body.into());
            let heard = async {
                while let Some(heard) = listener.next().await {
                    if heard == (to, body.as_bytes().to_vec()) {
                        return;
                    }
                    before.push(heard);
                }
            };
            if timeout(Duration::from_millis(200), heard).await.is_ok() {
                return;
            }
        }
    };
    within(hearing).await;
    before
}

#[tokio::test]
async fn all_that_listen_hear_of_changes_and_text_comes_to_those_that_want_its_shard() {
    at_desk(async |desk| {
        let announcer = desk.broker.announcer();
        let (mut one, mut other) = (desk.broker.listener(), desk.broker.listener());
        let body = format!("a change of {}", desk.queue);
        is_heard(&announcer, &mut one, Announced::Changes, &body).await;
        is_heard(&announcer, &mut other, Announced::Changes, &body).await;
        let text = Announced::Text { shard: 63 };
        one.shards().want(1 << 63 | 1);
        one.shards().comes(63, support::TIMEOUT).await;
        let body = format!("text of {}", desk.queue);
        is_heard(&announcer, &mut one, text, &body).await;
        // What the other one hears behind the text was announced behind it.
        let mark = format!("a mark of {}", desk.queue);
        for heard in is_heard(&announcer, &mut other, Announced::Changes, &mark).await {
            assert_ne!(heard.0, text);
        }
        one.shards().want(0);
        is_heard(&announcer, &mut one, Announced::Changes, &body).await;
    })
    .await;
}

#[tokio::test]
async fn a_deleted_exchange_is_there_again_and_is_heard_again_and_keeps_no_job_waiting() {
    at_desk(async |desk| {
        let announcer = desk.broker.announcer();
        let mut listener = desk.broker.listener();
        let body = format!("before {}", desk.queue);
        is_heard(&announcer, &mut listener, Announced::Changes, &body).await;
        let (connection, channel) = lapin_channel().await;
        let options = ExchangeDeleteOptions::default();
        channel.exchange_delete(EVENTS_EXCHANGE.into(), options).await.expect("deleted");
        let generation = desk.broker.ready(support::TIMEOUT).await.expect("connected");
        announcer.announce(Announced::Changes, "test.v1", b"lost".to_vec());
        desk.publish("m").await;
        // The listener's queue is still there, but nothing leads to it until the listener binds it again.
        let body = format!("after {}", desk.queue);
        is_heard(&announcer, &mut listener, Announced::Changes, &body).await;
        assert_eq!(desk.broker.ready(support::TIMEOUT).await.expect("connected"), generation);
        desk.until_ready(1).await;
        connection.close(200, "done".into()).await.expect("closed");
    })
    .await;
}

#[tokio::test]
async fn without_a_broker_announcements_are_dropped_and_counted_and_the_end_is_not_held_up() {
    let nowhere = BrokerConfig::new("amqp://127.0.0.1:1", "nowhere");
    let broker = Broker::start(nowhere, CancellationToken::new());
    let announcer = broker.announcer();
    let _listener = broker.listener();
    for _ in 0..1_000 {
        announcer.announce(Announced::Changes, "test.v1", b"[]".to_vec());
    }
    until(async || announcer.dropped() == 1_000).await;
    within(broker.close()).await;
}
