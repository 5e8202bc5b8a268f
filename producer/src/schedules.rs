//! Schedules: jobs that are made by the clock. Here they are checked before they are kept, and their next instants are
//! shown. The relay that leads fires them.

mod content;
mod kept;

pub use kept::{Change, FiringView, MOST, MOST_FIRINGS, Made, Wanted, create, next, resume};
