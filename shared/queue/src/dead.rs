//! Looking at dead letters without taking them away.
//!
//! Messages come to `harness.dead` on three ways: from us with a reason ([`crate::Publisher::dead_letter`]), from
//! the broker that gave a message up (header `x-death`), and from `harness.jobs` when no queue is bound for a pool.
//! This module tells them apart; what is done about them is decided elsewhere.

use std::collections::BTreeMap;

use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::link::bounded;
use crate::{Broker, DEAD_EXCHANGE, DEAD_QUEUE, JOBS_EXCHANGE, QueueError, headers};

/// No more than this is taken into memory at once, whatever the limit.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// A message in `harness.dead`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// The body, as it was published.
    pub body: Vec<u8>,
    /// The AMQP property `message_id`: the job's id, unless that is what is wrong with it.
    pub message_id: Option<String>,
    /// The AMQP property `type`.
    pub kind: Option<String>,
    /// Why it is here, for people. Names the field that was wrong, where there is one.
    pub reason: String,
    /// The same as a word to count by: ours (see [`crate::Publisher::dead_letter`]), the broker's
    /// (`delivery_limit`, `rejected`, `expired`, `maxlen`), `unroutable`, or `unknown`.
    pub code: String,
    /// The queue it was in before; `None` for what never reached one.
    pub source_queue: Option<String>,
    /// When it died, in milliseconds of Unix time; the broker's own are whole seconds.
    pub dead_at_unix_ms: Option<u64>,
    /// All headers.
    pub headers: BTreeMap<String, Value>,
}

impl Broker {
    /// The oldest dead letters, at most `limit`, and at most 64 MiB of them. They stay where they are; while this
    /// runs, nobody else sees them.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let within = self.shared().config.operation_timeout;
        let link = self.shared().live_link(within).await?;
        // A channel of its own: when it is closed, or dropped with this future, they go back.
        let channel = link.channel().await?;
        let looking = async {
            let mut letters = Vec::new();
            let mut bytes = 0;
            while letters.len() < limit && bytes < MAX_BYTES {
                let got = channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions { no_ack: false }).await?;
                let Some(message) = got else { break };
                bytes += message.delivery.data.len();
                letters.push(read(message.delivery));
            }
            Ok(letters)
        };
        let letters = bounded(within, "look at the dead letters", looking).await;
        let _ = bounded(within, "close a channel", channel.close(200, "done".into())).await;
        letters
    }

    /// How many dead letters there are.
    pub async fn dead_letter_count(&self) -> Result<u64, QueueError> {
        Ok(self.depth(DEAD_QUEUE).await?.map_or(0, |depth| depth.ready))
    }
}

fn read(message: lapin::message::Delivery) -> DeadLetter {
    let properties = &message.properties;
    let table = properties.headers().as_ref();
    let death = table.and_then(cause);
    let cause = match headers::text(table, headers::REASON) {
        Some(reason) => Cause {
            reason: reason.to_owned(),
            code: headers::text(table, headers::CODE).unwrap_or("unknown").to_owned(),
            source_queue: headers::text(table, headers::QUEUE).map(str::to_owned),
            dead_at_unix_ms: table
                .and_then(|table| table.inner().get(headers::DEAD_AT)?.as_long_long_int())
                .and_then(|at| u64::try_from(at).ok()),
        },
        None if death.is_some() => death.unwrap_or_default(),
        None if message.exchange.as_str() == JOBS_EXCHANGE => Cause {
            reason: format!(
                "no queue is bound to {JOBS_EXCHANGE} for the routing key \"{}\"",
                message.routing_key
            ),
            code: "unroutable".to_owned(),
            ..Cause::default()
        },
        None => Cause {
            reason: format!("published to {DEAD_EXCHANGE} without a reason"),
            code: "unknown".to_owned(),
            ..Cause::default()
        },
    };
    DeadLetter {
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        kind: properties.kind().as_ref().map(ToString::to_string),
        reason: cause.reason,
        code: cause.code,
        source_queue: cause.source_queue,
        dead_at_unix_ms: cause.dead_at_unix_ms,
        headers: table.map(headers::to_json).unwrap_or_default(),
        body: message.data,
    }
}

#[derive(Default)]
struct Cause {
    reason: String,
    code: String,
    source_queue: Option<String>,
    dead_at_unix_ms: Option<u64>,
}

/// What RabbitMQ says about a message it gave up: the newest entry of `x-death`
/// (<https://www.rabbitmq.com/docs/dlx#effects>).
fn cause(table: &FieldTable) -> Option<Cause> {
    let AMQPValue::FieldArray(deaths) = table.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
    let code = headers::text(Some(newest), "reason")?.to_owned();
    let queue = headers::text(Some(newest), "queue").map(str::to_owned);
    let why = match code.as_str() {
        "delivery_limit" => {
            "it was delivered too often without an ack: it may end every worker that takes it"
        }
        "expired" => "its time to live was over",
        "maxlen" => "the queue was full",
        "rejected" => "a consumer rejected it",
        _ => "for a reason we do not know",
    };
    let at = newest.inner().get("time").and_then(AMQPValue::as_timestamp);
    Some(Cause {
        reason: format!(
            "the broker took it out of {} ({code}): {why}",
            queue.as_deref().unwrap_or("a queue")
        ),
        code,
        source_queue: queue,
        dead_at_unix_ms: at.map(|seconds| seconds.saturating_mul(1_000)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::ShortString;

    fn message(exchange: &str, headers: BTreeMap<ShortString, AMQPValue>) -> lapin::message::Delivery {
        let key = ShortString::from("nowhere");
        let mut message = lapin::message::Delivery::mock(1, exchange.into(), key, false, b"body".to_vec());
        message.properties = lapin::BasicProperties::default().with_headers(headers.into());
        message
    }

    #[test]
    fn a_message_the_broker_gave_up_tells_why_and_from_where() {
        let long = |text: &str| AMQPValue::LongString(text.into());
        let death = BTreeMap::from([
            ("reason".into(), long("delivery_limit")),
            ("queue".into(), long("harness.jobs.p")),
            ("time".into(), AMQPValue::Timestamp(7)),
        ]);
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death.into())].into());
        let letter = read(message("harness.dead", BTreeMap::from([("x-death".into(), deaths)])));
        assert_eq!(
            (letter.code.as_str(), letter.source_queue.as_deref()),
            ("delivery_limit", Some("harness.jobs.p"))
        );
        assert_eq!(letter.dead_at_unix_ms, Some(7_000));
        assert!(letter.reason.contains("too often"), "{}", letter.reason);
        assert_eq!(letter.headers["x-death"][0]["reason"], "delivery_limit");
    }

    #[test]
    fn an_unroutable_message_and_a_stray_one_are_told_apart() {
        let unroutable = read(message(JOBS_EXCHANGE, BTreeMap::new()));
        assert_eq!(unroutable.code, "unroutable");
        assert!(unroutable.reason.contains("nowhere"), "{}", unroutable.reason);
        assert_eq!(read(message("", BTreeMap::new())).code, "unknown");
    }
}
