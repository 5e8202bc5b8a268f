//! The fleet's vocabulary: what a job is, how it is written on the wire, which states it passes through and how it
//! can end.
//!
//! Pure: no I/O, no clock (`now` is always an argument), no async runtime. This crate has never heard of RabbitMQ,
//! Postgres or a harness. Every other crate uses its types.

mod id;
mod labels;
mod lane;
mod tenant;
mod json;
mod usd;
mod usage;
mod given;
mod retry;
mod trouble;
mod shown;
mod trace;
mod reply;
mod run_at;
mod spec;
mod message;
mod strict;
mod input;
mod state;
mod outcome;
mod change;

pub use change::{
    CHANGES, Change, Note, TEXT, TextPiece, decode_changes, decode_text, encode_changes, encode_text,
};
pub use id::{IdError, JobId, Name, WorkerId};
pub use input::{
    CallId, ClosedInput, INPUT_SCHEMA, Input, InputAnswer, InputKind, InputRequest, MAX_ANSWER_BYTES,
    MAX_INPUTS, MAX_QUESTION_BYTES, MAX_QUESTIONS, MAX_TIMEOUT, decode_input, encode_input, is_input,
};
pub use json::{Json, JsonError, verbatim_list};
pub use labels::{Label, Labels, MAX_LABELS};
pub use lane::{Lane, LimitKeys, MAX_LIMIT_KEYS};
pub use message::{
    DEFAULT_MAX_BYTES, DecodeError, Limits, Peek, SCHEMA, decode, decode_loose, decode_stored, encode, peek,
};
pub use outcome::{Failure, FailureCode, Outcome};
pub use reply::{ReplyRule, ReplyTo};
pub use retry::{Backoff, POISON_DEATHS, RetryPolicy};
pub use run_at::RunAt;
pub use shown::{one_line, pretty_lines, shown, shown_lines};
pub use spec::{JobSpec, OnBusy, parse_user_id};
pub use state::{JobEvent, JobState};
pub use strict::{RequestedJob, Unique, decode_strict, decode_strict_as};
pub use tenant::{SessionKey, Tenant};
pub use trace::{BadTraceParent, TraceId, TraceParent};
pub use trouble::Trouble;
pub use usage::{Usage, add_counts};
pub use usd::Usd;
