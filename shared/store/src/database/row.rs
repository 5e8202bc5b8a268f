//! Values on their way into a statement, and out of a row.

use std::collections::HashSet;
use std::time::Duration;

use job::{Change, JobId, JobState, Name, SessionKey, Usd};
use tokio_postgres::Row;
use uuid::Uuid;

/// Converts a duration to a parameter for `$n * interval '1 millisecond'`.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Converts ids to a parameter.
pub(crate) fn uuids<T: Copy + Into<Uuid>>(ids: &[T]) -> Vec<Uuid> {
    ids.iter().map(|id| (*id).into()).collect()
}

/// RFC 3339 in UTC, with milliseconds.
macro_rules! rfc3339 {
    ($column:literal) => {
        concat!("to_char(", $column, " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
    };
}
pub(crate) use rfc3339;

/// Reads the ids in the first column.
pub(crate) fn read_ids(rows: &[Row]) -> HashSet<Uuid> {
    rows.iter().map(|row| row.get(0)).collect()
}

pub(crate) fn read_job_id(row: &Row, column: usize) -> JobId {
    JobId::of_ledger(row.get(column))
}

/// Reads a job and the key of its session from the first columns of a row: the job is in this state now.
pub(crate) fn read_change(row: &Row, state: JobState) -> Change {
    Change::new(read_job_id(row, 0), SessionKey::of_ledger(row.get::<_, &str>(1)), state)
}

/// Reads a name, or `None` if the row was edited by hand and holds an invalid one.
pub(crate) fn read_name(row: &Row, column: usize) -> Option<Name> {
    row.get::<_, String>(column).try_into().ok()
}

pub(crate) fn read_state(row: &Row, column: usize) -> JobState {
    row.get::<_, &str>(column).parse().expect("the tables check their states")
}

/// Reads milliseconds, which may be null. A negative number, for a time that is over, reads as zero.
pub(crate) fn read_millis(row: &Row, column: usize) -> Option<Duration> {
    row.get::<_, Option<i64>>(column).map(|ms| Duration::from_millis(ms.max(0).unsigned_abs()))
}

pub(crate) fn read_usd(row: &Row, column: usize) -> Usd {
    Usd::from_micros(u64::try_from(row.get::<_, i64>(column)).unwrap_or(0))
}
