//! The producer: accepts jobs and shows what became of them. Its other commands are for operators: dead letters,
//! sessions, the audit, the schema, a relay.
//!
//! It knows the ledger and the broker, but not how a worker or a harness works: it only counts the workers that the
//! ledger lists. Only the workers know whether an agent exists. A job counts as accepted once it is in the ledger. Its
//! message follows; if this process dies in between, any relay sends the message.
//!
//! The modules here are operations, which know neither a command line nor HTTP. `cli` parses the arguments, calls one
//! operation and prints the result; `http` does the same with requests.

// Operations, and what they share.
mod intake_limits;
mod send_spans;
mod older;
mod backlog;
mod submit;
mod pulse;
mod bounded_queue;
mod publishing;
mod schedules;
mod served;
mod same;
mod wait;
mod following;
mod why;
mod cancel;
mod dead;
mod webhooks;
mod session_now;

// What `producer relay` exports.
mod spend_gauges;
mod fleet_gauges;

// Which caller of the HTTP API a key stands for.
pub mod access;

// The HTTP API and the command line.
mod http;
pub mod cli;

pub use session_now::{Appended, SessionNow};
