//! Traces: the position in its caller's trace that a job comes with (W3C Trace Context), and the job's own trace id.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::JobId;

/// A trace's id: 16 bytes that are not all zero, written as 32 lower-case hexadecimal digits.
///
/// A job uses its caller's trace id, or else its own job id. A UUIDv7 has the same length, and its last seven bytes are
/// random, as Trace Context requires. So the job's id finds its trace, and nothing has to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct TraceId(NonZeroU128);

impl TraceId {
    /// Returns the id as a number.
    pub fn get(self) -> u128 {
        self.0.get()
    }
}

impl From<JobId> for TraceId {
    fn from(id: JobId) -> TraceId {
        // A UUIDv7 holds its version, so it is never zero.
        TraceId(NonZeroU128::new(Uuid::from(id).as_u128()).expect("no job id is zero"))
    }
}

impl From<TraceId> for Uuid {
    /// Keeps the 16 bytes. The result need not be a UUID of any version.
    fn from(id: TraceId) -> Uuid {
        Uuid::from_u128(id.get())
    }
}

impl TryFrom<Uuid> for TraceId {
    type Error = BadTraceParent;
    fn try_from(bytes: Uuid) -> Result<TraceId, BadTraceParent> {
        NonZeroU128::new(bytes.as_u128()).map(TraceId).ok_or(BadTraceParent)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from(*self).simple().fmt(f)
    }
}

impl From<TraceId> for String {
    fn from(id: TraceId) -> String {
        id.to_string()
    }
}

/// A position in a trace: the header `traceparent` of W3C Trace Context, such as
/// `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct TraceParent {
    trace_id: TraceId,
    span_id: NonZeroU64,
    sampled: bool,
}

impl TraceParent {
    /// Builds it from a trace, a span in it, and whether that span is recorded. Returns `None` if either id is zero.
    pub fn of_parts((trace_id, span_id, sampled): (u128, u64, bool)) -> Option<TraceParent> {
        let trace_id = TraceId(NonZeroU128::new(trace_id)?);
        Some(TraceParent { trace_id, span_id: NonZeroU64::new(span_id)?, sampled })
    }

    /// Returns the trace, the span that is the parent of what follows, and whether that span is recorded.
    pub fn parts(self) -> (u128, u64, bool) {
        (self.trace_id.get(), self.span_id.get(), self.sampled)
    }

    /// Returns the root of a job's own trace, for a caller that must name a parent although no process has written
    /// that span. It is marked as sampled, because a receiver takes anything else as a request not to record.
    pub fn root_of(job: JobId) -> TraceParent {
        let trace_id = TraceId::from(job);
        // The first of these bits is always set: it belongs to the variant of every UUID.
        let span_id = NonZeroU64::MIN | 1 << 63 | trace_id.get() as u64;
        TraceParent { trace_id, span_id, sampled: true }
    }

    /// Returns the trace.
    pub fn trace_id(self) -> TraceId {
        self.trace_id
    }
}

/// The text is not a position in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a traceparent such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
pub struct BadTraceParent;

impl FromStr for TraceParent {
    type Err = BadTraceParent;

    /// Reads a version later than 00 as version 00, as Trace Context requires.
    fn from_str(text: &str) -> Result<TraceParent, BadTraceParent> {
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(BadTraceParent)?;
            let is_hex = part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            u128::from_str_radix(part, 16).ok().filter(|_| is_hex).ok_or(BadTraceParent)
        };
        let (version, trace_id, span_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == 0xff || version == 0 && parts.next().is_some() {
            return Err(BadTraceParent);
        }
        TraceParent::of_parts((trace_id, span_id as u64, flags & 1 == 1)).ok_or(BadTraceParent)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl From<TraceParent> for String {
    fn from(place: TraceParent) -> String {
        place.to_string()
    }
}

/// Reads a `traceparent`, or `None` if the text is not a valid one. Trace Context then requires a new trace, and no
/// job is refused because of its tracing data.
pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TraceParent>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_traceparent_is_read_and_written_to_the_letter() {
        for text in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000001-0000000000000001-00",
        ] {
            let place: TraceParent = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
            assert_eq!(place.parts().2, text.ends_with("01"));
            assert_eq!(TraceParent::of_parts(place.parts()), Some(place));
        }
        // A later version may add fields. We ignore its other flags.
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more-of-it";
        let read: TraceParent = later.parse().unwrap();
        assert_eq!(read.to_string(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
        ] {
            assert_eq!(text.parse::<TraceParent>(), Err(BadTraceParent), "{text}");
        }
    }

    #[test]
    fn a_jobs_own_trace_has_the_digits_of_its_id() {
        let id = JobId::now();
        let trace = TraceId::from(id).to_string();
        assert_eq!(trace, id.to_string().replace('-', ""));
        let root = TraceParent::root_of(id);
        assert_eq!(root.trace_id(), TraceId::from(id));
        assert_eq!(root.to_string().parse(), Ok(root));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), hexish in "[0-9a-fé-]{50,60}") {
            let _ = text.parse::<TraceParent>();
            let _ = hexish.parse::<TraceParent>();
        }
    }
}
