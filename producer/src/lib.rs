//! The producer: takes jobs in, and shows what became of them.
//!
//! It knows the ledger and the broker, but no worker and no harness: whether an agent exists is for the workers to
//! say. A job counts as accepted once it stands in the ledger; its message follows, and if this process dies in
//! between, any relay sends it.
//!
//! What lies here are operations: they know no command line. `cli` parses, calls one of them and prints.

mod yardstick;
mod sends;
mod submit;
mod wait;
mod cancel;
mod dead;
mod readings;
pub mod access;
pub mod cli;
