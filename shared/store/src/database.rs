//! How Postgres is asked: connections, transactions of one round trip, batches, its clock, and what can go wrong.

mod error;
mod connect;
mod pool;
mod tx;
mod clock;
mod batch;

pub(crate) use batch::{Batched, alone_in_its_batch};
pub use clock::{Clock, ClockStep};
pub(crate) use clock::{NOW, unix_ms};
pub use error::StoreError;
pub use pool::{Store, StoreConfig};
pub(crate) use tx::{Params, Tx, query, query_within};
