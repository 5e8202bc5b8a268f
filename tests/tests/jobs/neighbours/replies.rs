//! A reply that cannot be sent delays nothing, and is not lost if its worker stops.

use job::encode;
use lapin::{BasicProperties, Channel};
use serde_json::json;
use tests::{Fleet, Link, Proxy, job, until};

use super::names;

/// Declares a queue for replies and returns its channel.
async fn results(fleet: &Fleet) -> Channel {
    let channel = fleet.vhost.lapin().await.create_channel().await.expect("a channel");
    channel.queue_declare("results".into(), Default::default(), Default::default()).await.expect("a queue");
    channel
}

/// Publishes a job that wants a reply, and waits for its end.
async fn end_one(fleet: &Fleet, channel: &Channel, session: &str) {
    let spec = job(session, "echo", json!(1));
    let properties = BasicProperties::default().with_delivery_mode(2).with_reply_to("results".into());
    let (exchange, key, body) = ("harness.jobs".into(), "default".into(), encode(&spec));
    let sent = channel.basic_publish(exchange, key, Default::default(), body.as_bytes(), properties);
    sent.await.expect("published");
    fleet.ended(spec.job_id).await;
}

/// Waits until this many replies have arrived.
async fn replied(fleet: &Fleet, count: u32) {
    let look = async || (fleet.vhost.look_at("results").await.expect("a queue").0 == count).then_some(());
    until(&format!("{count} replies"), look).await;
}

#[tokio::test]
async fn the_next_worker_replies_where_the_last_one_has_stopped_before_its_reply_was_out() {
    let fleet = Fleet::new().await;
    let channel = results(&fleet).await;
    let network = Proxy::to(&fleet.vhost.url).await;
    let worker = fleet.worker("first").set("AMQP_URL", network.through(&fleet.vhost.url));
    let mut worker = worker.set("REPLY_TO_ALLOW", "results").start().await;
    // From here on, only the connection for replies is affected, which does not exist yet.
    network.keep();
    end_one(&fleet, &channel, "a").await;
    replied(&fleet, 1).await;
    // The first reply to a client goes over another connection, which also takes time to close.
    let connection = fleet.vhost.lapin().await;
    let (client, mut replies) = names::client(&connection).await;
    names::call(&client, &mut replies, &job("client", "echo", json!(1))).await;
    network.set(Link::Frozen);
    end_one(&fleet, &channel, "b").await;
    worker.terminate();
    assert_eq!(worker.exit().await, 0);
    let _next = fleet.worker("next").set("REPLY_TO_ALLOW", "results").start().await;
    replied(&fleet, 2).await;
}

#[tokio::test]
async fn a_delivery_that_waits_for_its_reply_is_acked_in_time() {
    let fleet = Fleet::new().await;
    let channel = results(&fleet).await;
    let worker = fleet.worker("worker").set("REPLY_TO_ALLOW", "results");
    let mut worker = worker.set("ACK_AFTER_S", 1).start().await;
    // Existing connections stay, and none can be opened for replies.
    fleet.vhost.limit_connections(0);
    end_one(&fleet, &channel, "s").await;
    worker.said("the message is acked before the reply is out").await;
    assert!(!worker.log().contains("the reply was not sent"), "it is tried for longer: {}", worker.log());
    worker.terminate();
    assert_eq!(worker.exit().await, 0);
    fleet.vhost.limit_connections(-1);
    assert_eq!(fleet.vhost.waiting_and_consumers().await.0, 0, "messages that have come back");
}
