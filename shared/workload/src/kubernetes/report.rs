//! Events of the Kubernetes API (`events.k8s.io/v1`), which `kubectl describe` shows below a workload.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{CONTROLLER, Reference};
use crate::Event;

/// The same refusal is not reported again within this time.
pub(super) const REPEAT_AFTER: Duration = Duration::from_secs(300);

/// The longest note that the API takes, in bytes.
const NOTE_BYTES: usize = 1024;

/// What an event is about.
pub(super) struct Regarding<'a> {
    pub namespace: &'a str,
    pub workload: &'a Reference,
    /// The workload's uid.
    pub uid: &'a str,
    /// The autoscaler that reports it.
    pub instance: &'a str,
}

/// Makes the manifest of an event.
pub(super) fn manifest(event: &Event, regarding: &Regarding<'_>) -> Value {
    let (kind, reason, action) = match event {
        Event::Resized { .. } => ("Normal", "Resized", "Resize"),
        Event::NotResized { .. } => ("Warning", "NotResized", "Resize"),
        Event::Waits { usual: true, .. } => ("Normal", "ScaleInWaits", "Resize"),
        Event::Waits { usual: false, .. } => ("Warning", "ScaleInWaits", "Resize"),
        Event::TakenBack { .. } => ("Normal", "DrainTakenBack", "TakeBack"),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Regarding { namespace, workload, uid, instance } = regarding;
    // The convention of client-go: the object's name, and a number that none of its other events has.
    let id = uuid::Uuid::now_v7().simple();
    let group = if workload.group.is_empty() { String::new() } else { format!("{}/", workload.group) };
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{}.{id}", workload.name), "namespace": namespace },
        "eventTime": timestamp(now),
        "type": kind,
        "reason": reason,
        "action": action,
        "note": shortened(&note(event)),
        "reportingController": CONTROLLER,
        "reportingInstance": shortened_to(instance, 128),
        "regarding": {
            "apiVersion": format!("{group}{}", workload.version),
            "kind": workload.kind,
            "namespace": namespace,
            "name": workload.name,
            "uid": uid,
        },
    })
}

fn note(event: &Event) -> String {
    match event {
        Event::Resized { from, to, why } => format!("Resized from {from} to {to} replicas: {why}"),
        Event::NotResized { why } => format!("Not resized: {why}"),
        Event::Waits { from, to, why, .. } => format!("Shrinking from {from} to {to} replicas waits: {why}"),
        Event::TakenBack { workers, why } => format!("{workers} drained workers take jobs again: {why}"),
    }
}

fn shortened(note: &str) -> &str {
    shortened_to(note, NOTE_BYTES)
}

fn shortened_to(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Formats a time as RFC 3339 with microseconds, as `MicroTime` wants it.
pub(super) fn timestamp(since_epoch: Duration) -> String {
    let micros = i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX);
    let time = k8s_openapi::jiff::Timestamp::from_microsecond(micros).unwrap_or_default();
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_microseconds_and_a_note_an_end() {
        assert_eq!(timestamp(Duration::from_micros(1_700_000_000_000_001)), "2023-11-14T22:13:20.000001Z");
        assert_eq!(shortened(&"ü".repeat(600)).len(), 1024);
        assert_eq!(shortened(&format!("x{}", "ü".repeat(600))).len(), 1023);
    }
}
