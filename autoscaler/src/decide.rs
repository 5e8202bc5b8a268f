//! Decide: how many workers a pool should have, from what was seen, what was decided before, and the policy.
//!
//! Pure: no I/O, no clock. `now_ms` and every other time here is Unix time in milliseconds by one clock, Postgres's.

mod history;
mod observation;
mod policy;

pub use history::{History, Recommendation, Resize};
pub use observation::{Demand, Observation, Reading, Replicas, ServiceTime};
pub use policy::{Behavior, Mode, Policy, RateLimit, RateUnit, SelectPolicy, Window};
