//! What the tests share: a real broker, a pool for each test, and cleaning up afterwards.

#![expect(dead_code, reason = "every test file uses its own part of this")]

pub mod raw;

use std::time::Duration;

use futures::FutureExt;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use queue::{Broker, BrokerConfig, BrokerStatus, Depth, Message, jobs_queue};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything takes here. A test that reaches it has failed.
pub const TIMEOUT: Duration = Duration::from_secs(30);

pub fn amqp_url() -> String {
    std::env::var("AMQP_URL").expect("AMQP_URL is not set: these tests need a RabbitMQ. Run `make test`")
}

/// A broker connection with a pool that no other test uses.
pub struct Desk {
    pub broker: Broker,
    pub pool: job::Name,
    pub queue: String,
    pub connection_name: String,
}

/// Runs a test with its own desk, and deletes its queue whatever happens.
pub async fn at_desk(test: impl AsyncFnOnce(&Desk)) {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let pool: job::Name = format!("test-{id}").parse().expect("a name");
    let connection_name = format!("test {id}");
    let config = BrokerConfig::new(amqp_url(), &connection_name).with_pools([pool.clone()]);
    let broker = Broker::start(config, CancellationToken::new());
    let queue = jobs_queue(&pool);
    let desk = Desk { broker, pool, queue, connection_name };
    let outcome = std::panic::AssertUnwindSafe(async {
        desk.broker.ready(TIMEOUT).await.expect("a broker that answers");
        test(&desk).await;
    });
    let outcome = outcome.catch_unwind().await;
    desk.broker.close().await;
    delete_queue(&desk.queue).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

impl Desk {
    pub async fn publish(&self, id: &str) {
        let mut message = Message::new("test.v1", id);
        message.message_id = Some(id.to_owned());
        within(self.broker.publisher().publish(&self.queue, message)).await.expect("confirmed");
    }

    pub async fn ready(&self) -> u64 {
        let depth: Option<Depth> = self.broker.depth(&self.queue).await.expect("a depth");
        depth.expect("the queue").ready
    }

    /// Waits until this many messages wait in the queue.
    pub async fn until_ready(&self, count: u64) {
        until(async || self.ready().await == count).await;
    }
}

/// Gives up after [`TIMEOUT`].
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(TIMEOUT, work).await.expect("an end within 30 s")
}

/// Polls a condition, if there is no event to wait for.
pub async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a status and returns it.
pub async fn until_status(broker: &Broker, wanted: impl FnMut(&BrokerStatus) -> bool) -> BrokerStatus {
    let mut status = broker.status();
    within(status.wait_for(wanted)).await.expect("a supervisor").clone()
}

/// Returns a plain lapin channel, without our own code.
pub async fn lapin_channel() -> (lapin::Connection, lapin::Channel) {
    let connection = lapin::Connection::connect(&amqp_url(), Default::default()).await.expect("a broker");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

pub async fn delete_queue(queue: &str) {
    let (connection, channel) = lapin_channel().await;
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
    connection.close(200, "done".into()).await.expect("closed");
}

/// Whether such a queue exists.
pub async fn queue_is_there(queue: &str) -> bool {
    let (connection, channel) = lapin_channel().await;
    let look = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    let is_there = channel.queue_declare(queue.into(), look, FieldTable::default()).await.is_ok();
    connection.close(200, "done".into()).await.expect("closed");
    is_there
}

/// Returns the arguments of a pool's queue.
pub fn as_ours() -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut arguments = FieldTable::default();
    for (key, value) in [
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text(queue::DEAD_EXCHANGE)),
        ("x-dead-letter-routing-key", text(queue::DEAD_QUEUE)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongInt(1_000)),
    ] {
        arguments.insert(key.into(), value);
    }
    arguments
}

/// Declares a queue that is not ours.
pub async fn declare_foreign_queue(queue: &str, arguments: FieldTable) {
    let (connection, channel) = lapin_channel().await;
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.expect("declared");
    connection.close(200, "done".into()).await.expect("closed");
}

/// Ends a connection from the broker's side, as an operator would.
pub async fn close_by_force(connection_name: &str) {
    let name = connection_name.to_owned();
    let closed = tokio::task::spawn_blocking(move || {
        let deadline = std::time::Instant::now() + TIMEOUT;
        loop {
            // The management database learns of a connection a little later than we do.
            let connections = management("GET", "/api/connections");
            let connections: serde_json::Value = serde_json::from_str(&connections).expect("JSON");
            let ours = connections.as_array().expect("a list").iter().find(|connection| {
                connection["user_provided_name"] == name.as_str() && connection["name"].is_string()
            });
            if let Some(ours) = ours {
                let id = ours["name"].as_str().expect("a name").replace(' ', "%20").replace('>', "%3E");
                management("DELETE", &format!("/api/connections/{id}"));
                return true;
            }
            if std::time::Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert!(closed.await.expect("a thread"), "the broker does not list the connection {connection_name}");
}

fn management(method: &str, path: &str) -> String {
    let base = std::env::var("RABBITMQ_MANAGEMENT_URL")
        .expect("RABBITMQ_MANAGEMENT_URL is not set: this test needs the management plugin. Run `make test`");
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let answer =
        std::process::Command::new("curl").args(["-sS", "-f", "-X", method, &url]).output().expect("curl");
    assert!(answer.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8(answer.stdout).expect("UTF-8")
}
