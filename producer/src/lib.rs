//! The producer: accepts jobs and shows what became of them.
//!
//! It knows the ledger and the broker, but no worker and no harness. Only the workers know whether an agent exists. A
//! job counts as accepted once it is in the ledger. Its message follows; if this process dies in between, any relay
//! sends the message.
//!
//! The modules here are operations, which know no command line. `cli` parses the arguments, calls one operation and
//! prints the result.

mod intake_limits;
mod send_spans;
mod submit;
mod wait;
mod cancel;
mod dead;
mod fleet_gauges;
pub mod access;
pub mod cli;
