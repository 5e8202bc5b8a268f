//! How Postgres is asked: connections, transactions of one round trip, batches, its clock, what can go wrong,
//! how values are read and written, and every lock.

mod error;
mod connect;
mod pool;
mod tx;
mod clock;
mod changes;
mod batch;
mod row;
mod form;
mod locks;

pub(crate) use batch::{Batched, Batcher, alone_in_its_batch, commit};
pub use changes::ChangeReceiver;
pub(crate) use changes::Changes;
pub use clock::{Clock, ClockStep};
pub(crate) use clock::{NOW, unix_ms};
pub use error::StoreError;
pub(crate) use form::{Switches, TURN_SWITCHES, as_text};
pub(crate) use locks::{
    LOCK_LEADERSHIP, LOCK_OUT_WORKER, LOCK_OUT_WORKERS, LOCK_SESSIONS, LOCK_WORKER, LOCK_WORKERS_AND_JOBS,
    PARTITIONS_KEY, leads, may_take,
};
pub(crate) use pool::BEAT_BOUND;
pub use pool::StoreConfig;
pub(crate) use row::{
    millis, read_change, read_ids, read_job_id, read_millis, read_name, read_state, read_usd, rfc3339, uuids,
};
pub(crate) use tx::{Params, Tx, queries, query, query_within};
