//! What a dead letter says about itself.
//!
//! Messages reach `harness.dead` in three ways: from us with a reason ([`crate::Publisher::dead_letter`]), from the
//! broker when it dead-letters a message (header `x-death`), and from `harness.jobs` when no queue is bound for a pool.
//! This module distinguishes them. [`crate::DeadLetterCursor`] reads them from the queue. What is done about them is
//! decided elsewhere.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::{DEAD_EXCHANGE, JOBS_EXCHANGE, headers};

/// A message in `harness.dead`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// A word to find it by, the same at every read. It is made of its body, its reason and its time.
    pub mark: String,
    /// The body, as it was published.
    pub body: Vec<u8>,
    /// The AMQP property `message_id`: the job's id, unless the id itself is wrong.
    pub message_id: Option<String>,
    /// The AMQP property `type`.
    pub kind: Option<String>,
    /// Why it is here, for people. Names the field that was wrong, if there is one.
    pub reason: String,
    /// The reason as a word to count by: ours (see [`crate::Publisher::dead_letter`]), the broker's
    /// (`delivery_limit`, `rejected`, `expired`, `maxlen`), `unroutable`, or `unknown`.
    pub code: String,
    /// The queue it was in before. `None` if it never reached one.
    pub source_queue: Option<String>,
    /// When it died, in milliseconds of Unix time. The broker's own times are whole seconds, and it gives none for
    /// messages that it could not route.
    pub dead_at_unix_ms: Option<u64>,
    /// All headers.
    pub headers: BTreeMap<String, Value>,
}

/// Why the broker dead-lettered a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// For people.
    pub reason: String,
    /// Whether it should return to its queue once more, because the broker dead-lettered it after many deliveries for
    /// the first time. That none of them was acked may be the fault of its consumers, and not of the message.
    pub is_second_chance: bool,
    /// The broker's reason: `delivery_limit`, `rejected`, `expired`, `maxlen`.
    pub code: String,
    /// The queue it was in.
    pub queue: Option<String>,
    /// When, in milliseconds of Unix time. RabbitMQ gives whole seconds.
    pub at_unix_ms: Option<u64>,
}

pub(crate) fn read(message: lapin::message::Delivery) -> (DeadLetter, BasicProperties) {
    let properties = message.properties;
    let table = properties.headers().as_ref();
    let cause = match (headers::text(table, headers::REASON), table.and_then(death)) {
        (Some(reason), _) => Cause {
            reason: reason.to_owned(),
            code: headers::text(table, headers::CODE).unwrap_or("unknown").to_owned(),
            source_queue: headers::text(table, headers::QUEUE).map(str::to_owned),
            dead_at_unix_ms: table
                .and_then(|table| table.inner().get(headers::DEAD_AT)?.as_long_long_int())
                .and_then(|at| u64::try_from(at).ok()),
        },
        (None, Some(death)) => Cause {
            reason: death.reason,
            code: death.code,
            source_queue: death.queue,
            dead_at_unix_ms: death.at_unix_ms,
        },
        (None, None) if message.exchange.as_str() == JOBS_EXCHANGE => Cause {
            reason: format!(
                "no queue is bound to {JOBS_EXCHANGE} for the routing key \"{}\"",
                message.routing_key
            ),
            code: "unroutable".to_owned(),
            ..Cause::default()
        },
        (None, None) => Cause {
            reason: format!("published to {DEAD_EXCHANGE} without a reason"),
            code: "unknown".to_owned(),
            ..Cause::default()
        },
    };
    let message_id = properties.message_id().as_ref().map(ToString::to_string);
    let mut mark = DefaultHasher::new();
    (&message.data, &message_id, &cause.reason, &cause.source_queue, cause.dead_at_unix_ms).hash(&mut mark);
    let letter = DeadLetter {
        mark: format!("{:016x}", mark.finish()),
        message_id,
        kind: properties.kind().as_ref().map(ToString::to_string),
        reason: cause.reason,
        code: cause.code,
        source_queue: cause.source_queue,
        dead_at_unix_ms: cause.dead_at_unix_ms,
        headers: table.map(headers::to_json).unwrap_or_default(),
        body: message.data,
    };
    (letter, properties)
}

#[derive(Default)]
struct Cause {
    reason: String,
    code: String,
    source_queue: Option<String>,
    dead_at_unix_ms: Option<u64>,
}

/// The broker's reason for a message that was delivered too often.
const DELIVERY_LIMIT: &str = "delivery_limit";

/// Returns what RabbitMQ says about a message that it dead-lettered: the newest entry of `x-death`
/// (<https://www.rabbitmq.com/docs/dlx#effects>).
pub(crate) fn death(table: &FieldTable) -> Option<Death> {
    let AMQPValue::FieldArray(deaths) = table.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
    let code = headers::text(Some(newest), "reason")?.to_owned();
    let queue = headers::text(Some(newest), "queue").map(str::to_owned);
    let is_second_chance = code == DELIVERY_LIMIT && !table.contains_key(headers::RETURNED);
    let why = match code.as_str() {
        DELIVERY_LIMIT if is_second_chance => {
            "it was delivered too often without an ack, and is published again once"
        }
        DELIVERY_LIMIT => {
            "it was delivered too often without an ack, even after it was published again: it may end every worker that takes it"
        }
        "expired" => "its time to live was over",
        "maxlen" => "the queue was full",
        "rejected" => "a consumer rejected it",
        _ => "for a reason we do not know",
    };
    let at = newest.inner().get("time").and_then(AMQPValue::as_timestamp);
    Some(Death {
        reason: format!(
            "the broker took it out of {} ({code}): {why}",
            queue.as_deref().unwrap_or("a queue")
        ),
        is_second_chance,
        code,
        queue,
        at_unix_ms: at.map(|seconds| seconds.saturating_mul(1_000)),
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
    fn a_message_the_broker_gave_up_says_why_and_from_where() {
        let long = |text: &str| AMQPValue::LongString(text.into());
        let death = BTreeMap::from([
            ("reason".into(), long("delivery_limit")),
            ("queue".into(), long("harness.jobs.p")),
            ("time".into(), AMQPValue::Timestamp(7)),
        ]);
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death.into())].into());
        let (letter, _) = read(message("harness.dead", BTreeMap::from([("x-death".into(), deaths)])));
        assert_eq!(
            (letter.code.as_str(), letter.source_queue.as_deref()),
            ("delivery_limit", Some("harness.jobs.p"))
        );
        assert_eq!(letter.dead_at_unix_ms, Some(7_000));
        assert!(letter.reason.contains("too often"), "{}", letter.reason);
        assert_eq!(letter.headers["x-death"][0]["reason"], "delivery_limit");
    }

    #[test]
    fn what_was_delivered_too_often_gets_one_second_chance() {
        let dead_of = |reason: &str, more: &[&str]| {
            let entry = BTreeMap::from([("reason".into(), AMQPValue::LongString(reason.into()))]);
            let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(entry.into())].into());
            let mut table = FieldTable::default();
            table.insert("x-death".into(), deaths);
            for name in more {
                table.insert((*name).into(), AMQPValue::Boolean(true));
            }
            death(&table).expect("a death").is_second_chance
        };
        assert!(dead_of("delivery_limit", &[]));
        assert!(!dead_of("delivery_limit", &[headers::RETURNED]), "it was returned once before");
        assert!(!dead_of("rejected", &[]), "a consumer has looked at it");
    }

    #[test]
    fn an_unroutable_message_and_a_stray_one_are_distinguished() {
        let (unroutable, _) = read(message(JOBS_EXCHANGE, BTreeMap::new()));
        assert_eq!(unroutable.code, "unroutable");
        assert!(unroutable.reason.contains("nowhere"), "{}", unroutable.reason);
        assert_eq!(read(message("", BTreeMap::new())).0.code, "unknown");
    }

    #[test]
    fn a_letter_keeps_its_mark_however_often_it_is_looked_at() {
        let looked_at = |times: i64| {
            let count = AMQPValue::LongLongInt(times);
            read(message("", BTreeMap::from([("x-delivery-count".into(), count)]))).0.mark
        };
        assert_eq!(looked_at(1), looked_at(2));
        assert_ne!(looked_at(1), read(message(JOBS_EXCHANGE, BTreeMap::new())).0.mark);
    }
}
