//! Message headers: the names we use, reading them, and what a dead letter's must look like.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::Value;

pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const PUBLISH_NUMBER: &str = "x-harness-publish-number";
pub(crate) const REASON: &str = "x-harness-reason";
pub(crate) const CODE: &str = "x-harness-code";
pub(crate) const QUEUE: &str = "x-harness-queue";
pub(crate) const DEAD_AT: &str = "x-harness-dead-at";
const DROPPED: &str = "x-harness-headers-dropped";

/// The longest reason that is kept.
const MAX_REASON: usize = 2_000;
/// All properties must fit into one frame (128 KiB unless the broker is set otherwise); larger headers are left out.
const MAX_HEADERS: usize = 32 * 1024;

/// A header's text, if it is one.
pub(crate) fn text<'a>(table: Option<&'a FieldTable>, name: &str) -> Option<&'a str> {
    match table?.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// The properties of a dead letter: those of the original, without what would act again on the way to
/// `harness.dead` (`expiration`, `user_id`, `CC`, `BCC`), with the reason.
pub(crate) fn bury(
    original: &BasicProperties,
    reason: &str,
    code: &str,
    queue: &str,
    now: Duration,
) -> BasicProperties {
    let mut kept = BTreeMap::new();
    match original.headers() {
        Some(table) if weight(table) > MAX_HEADERS => {
            kept.insert(ShortString::from(DROPPED), AMQPValue::LongLongInt(weight(table) as i64));
        }
        Some(table) => kept.extend(table.inner().clone()),
        None => {}
    }
    // A `CC` header makes the broker put copies into the queues it names.
    for (name, renamed) in [("CC", "x-harness-cc"), ("BCC", "x-harness-bcc")] {
        if let Some(value) = kept.remove(name) {
            kept.insert(renamed.into(), value);
        }
    }
    let long = |text: &str| AMQPValue::LongString(clip(text, MAX_REASON).into());
    for (name, value) in [(REASON, reason), (CODE, code), (QUEUE, queue)] {
        kept.insert(name.into(), long(value));
    }
    kept.insert(DEAD_AT.into(), AMQPValue::LongLongInt(now.as_millis() as i64));
    if let Some(expiration) = original.expiration() {
        kept.insert("x-harness-expiration".into(), long(expiration.as_str()));
    }
    if let Some(user) = original.user_id() {
        kept.insert("x-harness-user-id".into(), long(user.as_str()));
    }
    without_actions(original).with_headers(kept.into())
}

/// Persistent, and without headers, `expiration` and `user_id`. Built anew: lapin's properties can be set, not unset.
fn without_actions(original: &BasicProperties) -> BasicProperties {
    let mut properties = BasicProperties::default().with_delivery_mode(2);
    macro_rules! keep {
        ($($get:ident => $set:ident),*) => {
            $(if let Some(value) = original.$get() { properties = properties.$set(value.clone()); })*
        };
    }
    keep!(content_type => with_content_type, content_encoding => with_content_encoding,
        priority => with_priority, correlation_id => with_correlation_id, reply_to => with_reply_to,
        message_id => with_message_id, timestamp => with_timestamp, kind => with_type,
        app_id => with_app_id, cluster_id => with_cluster_id);
    properties
}

/// The properties of a dead letter that goes back to work: without what we and the broker added when it died, and
/// without what would act again on its way. RabbitMQ drops what its own `x-death` shows to go in circles.
pub(crate) fn revive(dead: &BasicProperties) -> BasicProperties {
    let added = |name: &str| {
        name.starts_with("x-harness-")
            || name.starts_with("x-first-death-")
            || name.starts_with("x-last-death-")
            || ["x-death", "x-delivery-count", "CC", "BCC"].contains(&name)
    };
    let mut kept = BTreeMap::new();
    if let Some(table) = dead.headers() {
        kept.extend(table.inner().clone());
        kept.retain(|name, _| !added(name.as_str()));
    }
    without_actions(dead).with_headers(kept.into())
}

fn clip(text: &str, max_bytes: usize) -> String {
    let end = (0..=max_bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

/// About how many bytes a table takes on the wire.
fn weight(table: &FieldTable) -> usize {
    table.inner().iter().map(|(key, value)| key.as_str().len() + 1 + value_weight(value)).sum()
}

fn value_weight(value: &AMQPValue) -> usize {
    5 + match value {
        AMQPValue::LongString(text) => text.len(),
        AMQPValue::ShortString(text) => text.as_str().len(),
        AMQPValue::ByteArray(bytes) => bytes.len(),
        AMQPValue::FieldTable(table) => weight(table),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(value_weight).sum(),
        _ => 8,
    }
}

/// Headers as JSON, for people to read.
pub(crate) fn to_json(table: &FieldTable) -> BTreeMap<String, Value> {
    table.inner().iter().map(|(key, value)| (key.to_string(), value_to_json(value))).collect()
}

fn value_to_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(it) => (*it).into(),
        AMQPValue::ShortShortInt(it) => (*it).into(),
        AMQPValue::ShortShortUInt(it) => (*it).into(),
        AMQPValue::ShortInt(it) => (*it).into(),
        AMQPValue::ShortUInt(it) => (*it).into(),
        AMQPValue::LongInt(it) => (*it).into(),
        AMQPValue::LongUInt(it) => (*it).into(),
        AMQPValue::LongLongInt(it) => (*it).into(),
        AMQPValue::Float(it) => (*it).into(),
        AMQPValue::Double(it) => (*it).into(),
        AMQPValue::DecimalValue(it) => (f64::from(it.value) / 10f64.powi(it.scale.into())).into(),
        AMQPValue::Timestamp(it) => (*it).into(),
        AMQPValue::ShortString(it) => it.as_str().into(),
        AMQPValue::LongString(it) => String::from_utf8_lossy(it.as_bytes()).into(),
        AMQPValue::ByteArray(it) => String::from_utf8_lossy(it.as_slice()).into(),
        AMQPValue::FieldArray(it) => it.as_slice().iter().map(value_to_json).collect(),
        AMQPValue::FieldTable(it) => to_json(it).into_iter().collect(),
        AMQPValue::Void => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let entries = entries.iter().map(|(key, value)| (ShortString::from(*key), value.clone()));
        entries.collect::<BTreeMap<_, _>>().into()
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn a_dead_letter_keeps_what_it_was_and_loses_what_would_act_again() {
        let original = BasicProperties::default()
            .with_message_id("m".into())
            .with_expiration("5".into())
            .with_user_id("somebody".into())
            .with_headers(table(&[("CC", long("elsewhere")), ("mine", long("kept"))]));
        let buried = bury(&original, "job_id: missing", "undecodable", "q", Duration::from_millis(7));
        assert_eq!(buried.message_id().as_ref().unwrap().as_str(), "m");
        assert!(buried.expiration().is_none() && buried.user_id().is_none());
        let headers = buried.headers().as_ref();
        assert_eq!(text(headers, "mine"), Some("kept"));
        assert_eq!(text(headers, "x-harness-cc"), Some("elsewhere"));
        assert_eq!(text(headers, "CC"), None);
        assert_eq!(text(headers, REASON), Some("job_id: missing"));
        assert_eq!(headers.unwrap().inner()[DEAD_AT], AMQPValue::LongLongInt(7));
    }

    #[test]
    fn what_goes_back_to_work_is_what_was_published() {
        let original = BasicProperties::default()
            .with_message_id("m".into())
            .with_headers(table(&[("traceparent", long("kept")), ("CC", long("elsewhere"))]));
        let buried = bury(&original, "agent_id: got \"x\"", "unknown_agent", "q", Duration::ZERO);
        let revived = revive(&buried);
        assert_eq!(revived.message_id(), original.message_id());
        assert_eq!(revived.headers().as_ref(), Some(&table(&[("traceparent", long("kept"))])));
        let given_up = table(&[
            ("x-death", AMQPValue::Void),
            ("x-first-death-queue", long("q")),
            ("a", AMQPValue::Void),
        ]);
        let revived = revive(&BasicProperties::default().with_headers(given_up).with_expiration("5".into()));
        assert_eq!(revived.headers().as_ref(), Some(&table(&[("a", AMQPValue::Void)])));
        assert!(revived.expiration().is_none());
    }

    #[test]
    fn headers_that_would_burst_a_frame_are_left_out() {
        let heavy = table(&[("a", AMQPValue::FieldTable(table(&[("b", long(&"x".repeat(40_000)))])))]);
        let buried = bury(
            &BasicProperties::default().with_headers(heavy),
            "é".repeat(3_000).as_str(),
            "c",
            "q",
            Duration::ZERO,
        );
        let headers = buried.headers().as_ref().unwrap();
        assert!(headers.contains_key(DROPPED) && !headers.contains_key("a"));
        assert!(weight(headers) < 3_000, "{}", weight(headers));
    }
}
