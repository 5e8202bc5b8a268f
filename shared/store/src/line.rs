//! The line of a pool: jobs that may run wait here until it is their turn, and whose turn it is is decided from rows.
//!
//! A pool has a line if its row in `harness_pools` says so. One process at a time, the admitter, gives turns: it reads what is
//! in flight ([`crate::Store::line_facts`]), finds which lines have jobs ([`crate::Store::find_lines`]), and admits some of each
//! ([`crate::Store::admit`]) under its leadership, which that transaction locks. All others only free places. So a bound is never
//! passed, and there is no counter that could be wrong.
//!
//! A line within a pool is the jobs of one lane, one tenant and the same limit keys, in the order in which they came due.

mod pools;
mod limits;
mod facts;
mod find;
mod admit;
mod asking;

pub use admit::{Admitted, AdmittedJob, BusyJob, LineTake};
pub use asking::AskingPlace;
pub use facts::{
    Grant, HeldKeys, InFlight, LineBounds, LineCount, LineFacts, OldestInFlight, PoolCapacity, PoolSeen,
};
pub(crate) use find::first_in_line;
pub use find::{Entered, LinePlace, Since};
pub use limits::{ChangedLimit, HIGHEST_LIMIT, LimitView, MOST_LIMITS};
pub use pools::{ChangedPool, PoolView};
