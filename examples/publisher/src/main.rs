//! A publisher in Rust: it sends one job by AMQP, waits for the confirm and for the reply, and prints the job's output.
//!
//! ```sh
//! publisher SESSION AGENT [INPUT]     # INPUT is JSON; AMQP_URL names the broker
//! ```
//!
//! As a template. Four things make a publish safe:
//!
//! 1. The job id is made once, before the first try. The same id is the same job, so a job that is published again
//!    after an error runs once.
//! 2. The message is persistent, and the job counts as accepted when the broker has confirmed it, not before.
//! 3. The reply queue exists before the job is published, and belongs to this connection.
//! 4. Every wait has a bound.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};
use tokio::time::timeout;
use uuid::Uuid;

/// The pool that shall run the job; its name is the routing key.
const POOL: &str = "default";
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
const REPLY_TIMEOUT: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (session, agent, input) = match arguments.as_slice() {
        [session, agent] => (session, agent, Value::Null),
        [session, agent, input] => (session, agent, input.parse().context("INPUT is not JSON")?),
        _ => bail!("expected: publisher SESSION AGENT [INPUT]"),
    };
    let url = std::env::var("AMQP_URL").context("AMQP_URL is not set")?;
    let connection =
        Connection::connect(&url, ConnectionProperties::default()).await.context("connecting")?;
    let channel = connection.create_channel().await.context("opening a channel")?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.context("asking for confirms")?;
    let (reply_queue, replies) = listen(&channel).await?;

    // A UUID of version 7. A service that may crash here stores it with its own data first.
    let job_id = Uuid::now_v7().to_string();
    let job = json!({
        "schema": "harness.job.v1",
        "job_id": job_id,
        "session_id": session,
        "agent_id": agent,
        "input": input,
    });
    publish(&channel, &job_id, &job, &reply_queue).await?;
    eprintln!("{job_id} is accepted");

    let result = reply(replies, &job_id).await?;
    connection.close(200, "done".into()).await.context("closing")?;
    ensure!(result["state"] == "succeeded", "the job has {}: {}", result["state"], result["failure"]);
    println!("{}", result["output"]);
    Ok(())
}

/// Declares a reply queue, which the broker names and removes with this connection; returns its name and what comes to it.
async fn listen(channel: &Channel) -> Result<(String, Consumer)> {
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await;
    let name = queue.context("declaring a reply queue")?.name().clone();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let replies = channel.basic_consume(name.clone(), "".into(), options, FieldTable::default()).await;
    Ok((name.to_string(), replies.context("consuming replies")?))
}

/// Publishes a job and waits for the broker's confirm. After an error it may or may not have been accepted: publish the same again.
async fn publish(channel: &Channel, job_id: &str, job: &Value, reply_queue: &str) -> Result<()> {
    let properties = BasicProperties::default()
        .with_delivery_mode(2) // persistent
        .with_content_type("application/json".into())
        .with_message_id(job_id.into())
        .with_correlation_id(job_id.into())
        .with_reply_to(reply_queue.into());
    let body = job.to_string();
    let sent = async {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm =
            channel.basic_publish("harness.jobs".into(), POOL.into(), options, body.as_bytes(), properties);
        confirm.await?.await
    };
    let confirm =
        timeout(CONFIRM_TIMEOUT, sent).await.context("the broker does not confirm")?.context("publishing")?;
    ensure!(confirm.is_ack() && confirm.take_message().is_none(), "the broker does not take the job");
    Ok(())
}

/// Waits for the reply to a job: a `harness.result.v1`. One can come twice, and none comes to a queue that is gone.
async fn reply(mut replies: Consumer, job_id: &str) -> Result<Value> {
    let found = async {
        while let Some(delivery) = replies.next().await {
            let delivery = delivery.context("waiting for the reply")?;
            let correlation_id = delivery.properties.correlation_id().as_ref();
            if correlation_id.is_some_and(|id| id.as_str() == job_id) {
                return serde_json::from_slice(&delivery.data).context("reading the reply");
            }
        }
        bail!("the broker has ended the connection")
    };
    timeout(REPLY_TIMEOUT, found).await.context("no reply has come")?
}
