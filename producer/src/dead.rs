//! Dead letters: one view over failed jobs and messages that no worker could use, and the actions on them.
//!
//! Messages stay in the queue `harness.dead`, failed jobs in the ledger. A message whose job has failed appears once,
//! as that job.

mod selection;
mod plan;
mod read;
mod json;
mod settle;
mod renew;

pub use json::rfc3339;
pub use plan::Act;
pub use read::{DeadEntry, DeadEntryDetail, find, id_of, list};
pub use renew::{Renewal, redrive_one};
pub use selection::{Filter, Kind, Selection};
pub use settle::{Disposition, Event, Listener, Order, count, settle};
