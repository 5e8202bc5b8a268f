//! Publishing that does not give up, like a client that retries under the same job ids until everything is accepted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use job::{JobId, JobSpec, Name};
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection};
use tests::Fleet;
use tokio::time::{Instant, sleep, timeout};

use crate::workload::Part;

/// Longer than any outage here.
const TIMEOUT: Duration = Duration::from_secs(120);
const ATTEMPT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(300);
/// The pause from one part to the next.
const PACE: Duration = Duration::from_millis(1_400);

/// Publishes part after part, so that publishing takes some seconds.
pub async fn parts(fleet: Arc<Fleet>, parts: Vec<Part>) -> anyhow::Result<()> {
    for part in parts {
        let next = Instant::now() + PACE;
        match part.raw {
            true => raw(&fleet.vhost.url, part.jobs).await?,
            false => enqueue(&fleet, &part.jobs).await?,
        }
        tokio::time::sleep_until(next).await;
    }
    Ok(())
}

/// Publishes through `producer enqueue`, until it has accepted all jobs.
pub async fn enqueue(fleet: &Fleet, jobs: &[JobSpec]) -> anyhow::Result<()> {
    let lines: Vec<String> = jobs.iter().map(job::encode).collect();
    let lines = lines.join("\n");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let ran = fleet.producer_with_input(&lines, &["enqueue", "--file", "-"]).await;
        if ran.code == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "jobs were not accepted within {} s: {ran:?}", TIMEOUT.as_secs());
        sleep(PAUSE).await;
    }
}

/// Publishes as any other AMQP client would, until the broker has confirmed all jobs.
pub async fn raw(url: &str, jobs: Vec<JobSpec>) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut left = jobs;
    loop {
        // Errors of an attempt show in what is left.
        let text = match timeout(ATTEMPT, attempt(url, &mut left)).await {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} messages were not confirmed: {text}", left.len());
        sleep(PAUSE).await;
    }
}

async fn attempt(url: &str, left: &mut Vec<JobSpec>) -> lapin::Result<()> {
    let connection = Connection::connect(url, Default::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(Default::default()).await?;
    let queue = queue::jobs_queue(&Name::default());
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let mut sent = Vec::with_capacity(left.len());
    for spec in left.iter() {
        let properties =
            BasicProperties::default().with_message_id(spec.job_id.to_string().into()).with_delivery_mode(2);
        let body = job::encode(spec);
        let confirm =
            channel.basic_publish("".into(), queue.as_str().into(), options, body.as_bytes(), properties);
        sent.push((spec.job_id, confirm.await?));
    }
    let mut confirmed: Vec<JobId> = Vec::new();
    let mut result = Ok(());
    for (job_id, confirm) in sent {
        match confirm.await {
            // Otherwise it was nacked, or returned because the queue does not exist yet.
            Ok(confirm) => {
                if confirm.is_ack() && confirm.take_message().is_none() {
                    confirmed.push(job_id);
                }
            }
            Err(error) => result = Err(error),
        }
    }
    left.retain(|spec| !confirmed.contains(&spec.job_id));
    result?;
    connection.close(200, "done".into()).await
}

/// Returns a job's message with headers of this many bytes on the wire, and with this time to live.
pub fn heavy(spec: &JobSpec, bytes: usize, expiration: Option<&str>) -> (Vec<u8>, BasicProperties) {
    let mut table = FieldTable::default();
    // Name, type and length take seven.
    table.insert("h".into(), AMQPValue::LongString("x".repeat(bytes - 7).into()));
    let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(table);
    if let Some(expiration) = expiration {
        properties = properties.with_expiration(expiration.into());
    }
    (job::encode(spec).into_bytes(), properties)
}

/// Returns a job's message whose result goes to this name.
pub fn replying(spec: &JobSpec, name: &str) -> (Vec<u8>, BasicProperties) {
    let properties = BasicProperties::default().with_delivery_mode(2).with_reply_to(name.into());
    (job::encode(spec).into_bytes(), properties)
}

/// Publishes messages straight into the queue, as some other client would.
pub async fn foreign(url: &str, messages: Vec<(Vec<u8>, BasicProperties)>) -> anyhow::Result<()> {
    let connection = Connection::connect(url, Default::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(Default::default()).await?;
    let queue = queue::jobs_queue(&Name::default());
    let mut sent = Vec::with_capacity(messages.len());
    for (body, properties) in &messages {
        let (queue, options) = (queue.as_str().into(), Default::default());
        let confirm = channel.basic_publish("".into(), queue, options, body, properties.clone());
        sent.push(confirm.await?);
    }
    for confirm in sent {
        ensure!(confirm.await?.is_ack(), "the broker refused a message");
    }
    connection.close(200, "done".into()).await.context("closing")
}

/// Publishes to a pool that no worker serves, through the exchange that other clients use.
pub async fn unroutable(url: &str, jobs: &[JobSpec]) -> anyhow::Result<()> {
    let connection = Connection::connect(url, Default::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(Default::default()).await?;
    for spec in jobs {
        let body = job::encode(spec);
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirm = channel.basic_publish(
            queue::JOBS_EXCHANGE.into(),
            "nobody".into(),
            Default::default(),
            body.as_bytes(),
            properties,
        );
        ensure!(confirm.await?.await?.is_ack(), "the broker refused a message");
    }
    connection.close(200, "done".into()).await.context("closing")
}
