//! Measures the broker's throughput through this crate. Publishes to one quorum queue with many confirms in flight, and
//! consumes with many slots, each of which acks its messages one by one.
//!
//! ```sh
//! AMQP_URL=amqp://… cargo run --release -p queue --example raw -- [messages] [in flight] [slots] [bytes]
//! ```

#![expect(clippy::disallowed_macros, reason = "a measurement may end when its output is closed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use queue::{Broker, BrokerConfig, Message, jobs_queue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let url = std::env::var("AMQP_URL").expect("AMQP_URL: the broker to measure");
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let messages = arguments.next().unwrap_or(100_000) as u64;
    let in_flight = arguments.next().unwrap_or(2_000);
    let slots = arguments.next().unwrap_or(256);
    let bytes = arguments.next().unwrap_or(1_024);

    let pool: job::Name = format!("raw-{}", uuid::Uuid::new_v4()).parse().expect("a name");
    let queue = jobs_queue(&pool);
    let stop = CancellationToken::new();
    let publishing = Broker::start(BrokerConfig::new(&url, "raw publisher").with_pools([pool]), stop.clone());
    let consuming = Broker::start(BrokerConfig::new(&url, "raw consumer"), stop.clone());
    publishing.ready(Duration::from_secs(10)).await.expect("a broker");

    let took = publish(&publishing, &queue, messages, in_flight, bytes).await;
    report("publish only", messages, took);
    let took = consume(&consuming, &queue, messages, slots).await;
    report("consume only", messages, took);
    let started = Instant::now();
    tokio::join!(
        publish(&publishing, &queue, messages, in_flight, bytes),
        consume(&consuming, &queue, messages, slots)
    );
    report("both at once", messages, started.elapsed());
    publishing.close().await;
    consuming.close().await;
    delete(&url, &queue).await.expect("deleted");
}

async fn delete(url: &str, queue: &str) -> lapin::Result<()> {
    let connection = lapin::Connection::connect(url, Default::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(queue.into(), Default::default()).await?;
    connection.close(200, "done".into()).await
}

fn report(what: &str, messages: u64, took: Duration) {
    println!("{what}: {messages} messages in {took:.2?}: {:.0} msg/s", messages as f64 / took.as_secs_f64());
}

async fn publish(broker: &Broker, queue: &str, messages: u64, in_flight: usize, bytes: usize) -> Duration {
    let started = Instant::now();
    let left = Arc::new(AtomicU64::new(messages));
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let (publisher, queue, left) = (broker.publisher(), queue.to_owned(), left.clone());
        callers.spawn(async move {
            while let Ok(number) =
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            {
                let mut message = Message::new("raw", vec![b'x'; bytes]);
                message.message_id = Some(number.to_string());
                publisher.publish(&queue, message).await.expect("confirmed");
            }
        });
    }
    while callers.join_next().await.is_some() {}
    started.elapsed()
}

async fn consume(broker: &Broker, queue: &str, messages: u64, slots: usize) -> Duration {
    let started = Instant::now();
    let left = Arc::new(AtomicU64::new(messages));
    let done = CancellationToken::new();
    let mut callers = JoinSet::new();
    for _ in 0..slots {
        let mut slot = broker.slot(queue, "raw");
        let (left, done) = (left.clone(), done.clone());
        callers.spawn(async move {
            while let Some(Some(delivery)) = done.run_until_cancelled(slot.next()).await {
                delivery.ack().await.expect("acked");
                if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    done.cancel();
                }
            }
        });
    }
    done.cancelled().await;
    let took = started.elapsed();
    while callers.join_next().await.is_some() {}
    took
}
