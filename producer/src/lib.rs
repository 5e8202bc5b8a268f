//! The producer: accepts jobs and shows what became of them.
//!
//! It knows the ledger and the broker, but no worker and no harness. Only the workers know whether an agent exists. A
//! job counts as accepted once it is in the ledger. Its message follows; if this process dies in between, any relay
//! sends the message.
//!
//! The modules here are operations, which know neither a command line nor HTTP. `cli` parses the arguments, calls one
//! operation and prints the result; `http` does the same with requests.

mod intake_limits;
mod send_spans;
mod submit;
mod pulse;
mod publishing;
mod served;
mod same;
mod wait;
mod following;
mod why;
mod cancel;
mod dead;
mod fleet_gauges;
mod http;
pub mod cli;
