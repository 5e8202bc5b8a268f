//! Message headers: the names we use, how they are read, and which ones a dead letter gets.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const PUBLISH_NUMBER: &str = "x-harness-publish-number";
pub(crate) const REASON: &str = "x-harness-reason";
pub(crate) const CODE: &str = "x-harness-code";
pub(crate) const QUEUE: &str = "x-harness-queue";
pub(crate) const DEAD_AT: &str = "x-harness-dead-at";
/// How many bytes of headers were left out of a message.
pub(crate) const DROPPED: &str = "x-harness-headers-dropped";
/// Whether the message was published again after the broker had dead-lettered it.
pub(crate) const RETURNED: &str = "x-harness-returned";
/// The length of what precedes a frame's payload (AMQP 0-9-1, section 2.3.5), and of what follows it.
pub(crate) const FRAME_HEAD: usize = 7;
pub(crate) const FRAME_END: usize = 1;
/// What a frame takes in addition to its payload.
pub(crate) const FRAME_OVERHEAD: usize = FRAME_HEAD + FRAME_END;
const DELIVERY_COUNT: &str = "x-delivery-count";

/// The longest reason that is kept.
const MAX_REASON: usize = 2_000;
/// How much a dead letter keeps of its message's headers. That leaves room for what the broker adds later.
const MAX_HEADERS: usize = 32 * 1024;

/// Returns a header's text, if it is a text.
pub(crate) fn text<'a>(table: Option<&'a FieldTable>, name: &str) -> Option<&'a str> {
    match table?.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// Returns the properties of a dead letter: those of the original with the reason added, and without those that would
/// act again on the way to `harness.dead` (`expiration`, `user_id`, `CC`, `BCC`).
pub(crate) fn bury(
    original: &BasicProperties,
    reason: &str,
    code: &str,
    queue: &str,
    now: Duration,
) -> BasicProperties {
    let table = original.headers().clone().unwrap_or_default();
    let mut kept = cut(table, MAX_HEADERS).inner().clone();
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

/// Returns persistent properties without headers, `expiration` and `user_id`. They are built anew, because lapin's
/// properties can be set but not unset.
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

/// Returns the properties of a dead letter that is published again: without what we and the broker added when it died,
/// and without what would act again on its way. RabbitMQ drops a message whose `x-death` shows that it goes in circles.
pub(crate) fn redriven(letter: &BasicProperties) -> BasicProperties {
    let mut kept = BTreeMap::new();
    if let Some(table) = letter.headers() {
        kept.extend(table.inner().clone());
        kept.retain(|name, _| {
            !was_added(name.as_str().as_bytes()) && !["CC", "BCC"].contains(&name.as_str())
        });
    }
    without_actions(letter).with_headers(kept.into())
}

/// As [`redriven`], for a dead letter that is returned automatically. A header says so.
pub(crate) fn returned(letter: &BasicProperties) -> BasicProperties {
    let properties = redriven(letter);
    let mut table = properties.headers().clone().unwrap_or_default();
    table.insert(RETURNED.into(), AMQPValue::Boolean(true));
    properties.with_headers(table)
}

/// Whether we or the broker wrote this header, judging by its name.
fn was_added(name: &[u8]) -> bool {
    let by_us_or_the_broker: [&[u8]; 3] = [b"x-harness-", b"x-first-death-", b"x-last-death-"];
    by_us_or_the_broker.iter().any(|start| name.starts_with(start))
        || name == b"x-death"
        || name == DELIVERY_COUNT.as_bytes()
}

/// Chooses which headers, given by name and size, are kept within `room` bytes. Those about the message's own history
/// come first, then as many of the rest as fit. Returns their indexes in ascending order.
pub(crate) fn that_fit<'a>(headers: impl Iterator<Item = (&'a [u8], usize)>, room: usize) -> Vec<usize> {
    let matters = |name: &[u8]| was_added(name) || name == TRACEPARENT.as_bytes();
    let mut ranked: Vec<_> =
        headers.enumerate().map(|(place, (name, bytes))| (!matters(name), bytes, place)).collect();
    ranked.sort_unstable();
    let mut left = room;
    let mut places = Vec::new();
    for (_, bytes, place) in ranked {
        if let Some(rest) = left.checked_sub(bytes) {
            left = rest;
            places.push(place);
        }
    }
    places.sort_unstable();
    places
}

/// Returns the headers that fit into `room` bytes, and one that says so if some do not.
fn cut(table: FieldTable, room: usize) -> FieldTable {
    let whole = weight(&table);
    if whole <= room {
        return table;
    }
    let entries = || table.inner().iter().filter(|(name, _)| name.as_str() != DROPPED);
    let mark = entry_weight(DROPPED, &AMQPValue::LongLongInt(0));
    let weighed =
        entries().map(|(name, value)| (name.as_str().as_bytes(), entry_weight(name.as_str(), value)));
    let places = that_fit(weighed, room.saturating_sub(mark));
    let all: Vec<_> = entries().collect();
    let kept = places.into_iter().map(|place| (all[place].0.clone(), all[place].1.clone()));
    let mut kept = FieldTable::from(kept.collect::<BTreeMap<_, _>>());
    let before = dropped(&table);
    let present = if table.contains_key(DROPPED) { whole - mark } else { whole };
    let lost = before + (present - weight(&kept)) as u64;
    kept.insert(DROPPED.into(), AMQPValue::LongLongInt(i64::try_from(lost).unwrap_or(i64::MAX)));
    kept
}

/// Returns how many bytes of headers were left out before.
fn dropped(table: &FieldTable) -> u64 {
    let bytes = table.inner().get(DROPPED).and_then(AMQPValue::as_long_long_int);
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

/// Returns the size of a message's headers when it was published, in bytes on the wire: without the broker's count of
/// deliveries, and with what was left out since.
pub(crate) fn published_bytes(table: Option<&FieldTable>) -> u64 {
    let Some(table) = table else { return 0 };
    let own = table.inner().iter().filter(|(name, _)| ![DROPPED, DELIVERY_COUNT].contains(&name.as_str()));
    let own: usize = own.map(|(name, value)| entry_weight(name.as_str(), value)).sum();
    (own as u64).saturating_add(dropped(table))
}

/// Returns the same properties with no more headers than fit into a frame of this size.
pub(crate) fn fitted(properties: BasicProperties, frame_max: usize) -> BasicProperties {
    match properties.headers() {
        Some(table) => {
            // Class, weight, body size and flags; delivery mode, priority and timestamp; the table's own length.
            let numbers = 14 + 1 + 1 + 8 + 4;
            let texts = [
                properties.content_type(),
                properties.content_encoding(),
                properties.correlation_id(),
                properties.reply_to(),
                properties.expiration(),
                properties.message_id(),
                properties.kind(),
                properties.user_id(),
                properties.app_id(),
                properties.cluster_id(),
            ];
            let texts: usize = texts.into_iter().flatten().map(|text| text.as_str().len() + 1).sum();
            let room = frame_max.saturating_sub(FRAME_OVERHEAD + numbers + texts);
            if weight(table) <= room {
                return properties;
            }
            let table = cut(table.clone(), room);
            properties.with_headers(table)
        }
        None => properties,
    }
}

fn clip(text: &str, max_bytes: usize) -> String {
    let end = (0..=max_bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

/// Returns the size of a table's content in bytes on the wire.
fn weight(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| entry_weight(name.as_str(), value)).sum()
}

fn entry_weight(name: &str, value: &AMQPValue) -> usize {
    1 + name.len() + value_weight(value)
}

/// Returns the size of a value, including the byte for its type.
fn value_weight(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::Void => 1,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 2,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 3,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 5,
        AMQPValue::DecimalValue(_) => 6,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 9,
        AMQPValue::ShortString(text) => 2 + text.as_str().len(),
        AMQPValue::LongString(text) => 5 + text.len(),
        AMQPValue::ByteArray(bytes) => 5 + bytes.len(),
        AMQPValue::FieldTable(table) => 5 + weight(table),
        AMQPValue::FieldArray(array) => 5 + array.as_slice().iter().map(value_weight).sum::<usize>(),
    }
}

/// Returns headers as JSON, for people to read.
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
    use lapin::types::ShortString;

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
        let kept = redriven(&buried);
        assert_eq!(kept.message_id(), original.message_id());
        assert_eq!(kept.headers().as_ref(), Some(&table(&[("traceparent", long("kept"))])));
        let given_up = table(&[
            ("x-death", AMQPValue::Void),
            ("x-first-death-queue", long("q")),
            ("a", AMQPValue::Void),
        ]);
        let kept = redriven(&BasicProperties::default().with_headers(given_up).with_expiration("5".into()));
        assert_eq!(kept.headers().as_ref(), Some(&table(&[("a", AMQPValue::Void)])));
        assert!(kept.expiration().is_none());
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
        assert!(!headers.contains_key("a"));
        assert_eq!(headers.inner()[DROPPED], AMQPValue::LongLongInt(40_014));
        assert!(weight(headers) < 3_000, "{}", weight(headers));
    }

    #[test]
    fn what_would_burst_a_frame_loses_its_largest_headers_and_what_was_lost_adds_up() {
        let table =
            table(&[("large", long(&"x".repeat(3_000))), ("small", long("s")), ("x-death", AMQPValue::Void)]);
        let properties = BasicProperties::default().with_message_id("m".into()).with_headers(table.clone());
        let frame = 8 + 14 + 1 + 1 + 8 + 4 + 2 + weight(&table);
        assert_eq!(fitted(properties.clone(), frame), properties);
        let cut = fitted(properties, frame - 1);
        let left = cut.headers().as_ref().unwrap();
        assert_eq!(left.inner()[DROPPED], AMQPValue::LongLongInt(3_011));
        assert!(left.contains_key("small") && left.contains_key("x-death"));
        assert_eq!(published_bytes(Some(left)), weight(&table) as u64);
        let cut = super::cut(left.clone(), weight(left) - 1);
        assert_eq!((dropped(&cut), cut.contains_key("x-death")), (3_011 + 12, true));
    }
}
