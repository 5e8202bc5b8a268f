//! The fleet's vocabulary: what a job is, how it is written on the wire, which states it passes through and how it
//! can end.
//!
//! Pure: no I/O, no clock (`now` is always an argument), no async runtime. This crate has never heard of RabbitMQ,
//! Postgres or a harness. Every other crate uses its types.

mod id;
mod labels;
mod tenant;
mod json;
mod usd;
mod given;
mod retry;
mod trouble;
mod shown;
mod trace;
mod reply;
mod spec;
mod message;
mod strict;
mod state;
mod outcome;
mod change;

pub use change::{
    CHANGES, Change, TEXT, TextPiece, decode_changes, decode_text, encode_changes, encode_text,
};
pub use id::{IdError, JobId, Name, WorkerId};
pub use json::{Json, JsonError};
pub use labels::{Label, Labels, MAX_LABELS};
pub use message::{
    DEFAULT_MAX_BYTES, DecodeError, Limits, Peek, SCHEMA, decode, decode_loose, decode_stored, encode, peek,
};
pub use outcome::{Failure, FailureCode, Outcome};
pub use reply::{ReplyRule, ReplyTo};
pub use retry::{Backoff, POISON_DEATHS, RetryPolicy};
pub use shown::{one_line, pretty_lines, shown};
pub use spec::{JobSpec, OnBusy};
pub use state::{JobEvent, JobState};
pub use strict::{RequestedJob, Unique, decode_strict};
pub use tenant::{SessionKey, Tenant};
pub use trace::{BadTraceParent, TraceId, TraceParent};
pub use trouble::Trouble;
pub use usd::Usd;
