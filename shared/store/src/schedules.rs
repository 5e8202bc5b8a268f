//! Schedules: jobs that are made by the clock. The rule of time is for others: here a schedule is a row with its next
//! instant, which is moved on in the transaction that writes the jobs to the inbox.

mod kept;
mod fired;

pub use fired::{DueSchedule, Fired, MovedSchedule, ScheduleBacklog};
pub use kept::{ChangedSchedule, CreatedSchedule, Instant, NewSchedule, ScheduleView};
