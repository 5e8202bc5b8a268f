//! What keeps the ledger itself in order: partitions, dates from the future, a restored backup, and what the
//! server and the account grant.

mod partitions;
mod blobs;
mod redate;
mod revive;
mod rights;
mod server;

pub use partitions::PartitionsAhead;
pub(crate) use partitions::{WEEK_MS, first_id};
pub use redate::Redating;
pub use revive::{FreshLease, Revived};
pub use server::Server;
