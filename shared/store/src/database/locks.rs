//! Every lock of the ledger, and the order in which a transaction takes them: from the top of this page to its bottom.
//!
//! | lock | order | taken by | so that |
//! |---|---|---|---|
//! | a leadership, shared | one | marks, decisions | no successor leads before they have committed |
//! | a worker's row, `KEY SHARE` | one | claim, conclude | it is neither declared dead, nor stopped, nor marked or drained meanwhile |
//! | workers' rows, `UPDATE` | `worker_id` | marks, a drain's confirmation, stop | claims under way are over, and those to come see it |
//! | sessions' rows | `session_id` | claim, conclude, cancel, rescue | one of them decides over a session at a time |
//! | jobs' rows | `job_id` | claim, cancel, rescue; checkpoint (`SHARE`), the return of what a deleted queue has lost | the row stays as it was read |
//! | the same, under their sessions' locks | by statement | conclude (ends, then further attempts), cancel (those that run, then those that wait) | the row changes once |
//! | results' rows | `job_id` | redrive, dismissal | of the two one happens, and once |
//!
//! The last two are taken by the statements that choose the rows. The order of jobs counts for those that may wait for each other
//! without a session's lock.
//!
//! **Nothing waits** for what is only swept up (`SKIP LOCKED`): the relay's jobs (due, published, stuck, vanished), dates from
//! the future, workers whose lease has run out, and running jobs that many others ask to make room; one alone waits, and holds nothing. A worker whose own claim holds its row lives.
//!
//! **A heartbeat waits for no claim**: it changes no key, and so goes together with `KEY SHARE`.
//!
//! **Whole tables** are locked by a revival (`SHARE ROW EXCLUSIVE`, when no worker lives), by an audit (`ACCESS SHARE` on the results,
//! before its snapshot, so that no partition is dropped under its eyes), and for a moment where a partition comes or goes, with a
//! bound of three seconds.

/// Holds the leadership in place until the transaction ends. No row: it is somebody else's, or nobody's.
pub(crate) const LOCK_LEADERSHIP: &str = "
    SELECT FROM harness_leases
     WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp() FOR SHARE";

/// The same question for the statements behind [`LOCK_LEADERSHIP`], as their first parameters.
macro_rules! leads {
    () => {
        "EXISTS (SELECT FROM harness_leases
                  WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp())"
    };
}
pub(crate) use leads;

/// Whether the worker lives, and is drained; locked against being declared dead, stopped, or drained, until the transaction
/// ends.
pub(crate) const LOCK_WORKER: &str = "
    SELECT coalesce(drained_at IS NOT NULL AND drain_until > now(), false) FROM harness_workers
     WHERE worker_id = $1 AND state IN ('alive', 'draining') FOR KEY SHARE";

/// The same for the statements behind it: whether it may take jobs.
macro_rules! may_take {
    ($worker:literal) => {
        concat!(
            "EXISTS (SELECT FROM harness_workers WHERE worker_id = ",
            $worker,
            " AND state IN ('alive', 'draining')
                    AND (drained_at IS NULL OR drain_until <= now()))"
        )
    };
}
pub(crate) use may_take;

/// Waits for the worker's claims under way, and keeps those to come waiting.
pub(crate) const LOCK_OUT_WORKER: &str = "SELECT FROM harness_workers WHERE worker_id = $1 FOR UPDATE";

/// The same for several. In order, as several leaders might.
pub(crate) const LOCK_OUT_WORKERS: &str = "
    SELECT count(*) FROM (
        SELECT FROM harness_workers WHERE worker_id = ANY($1) ORDER BY worker_id FOR UPDATE) locked";

/// Locks sessions, in order.
pub(crate) const LOCK_SESSIONS: &str = "
    SELECT count(*) FROM (SELECT FROM harness_sessions
     WHERE session_id = ANY($1) ORDER BY session_id FOR UPDATE) locked";

/// No claim and no conclusion meanwhile: both lock a worker's row.
pub(crate) const LOCK_WORKERS_AND_JOBS: &str =
    "LOCK TABLE harness_workers, harness_jobs IN SHARE ROW EXCLUSIVE MODE";

/// An advisory lock, so that one process at a time makes partitions.
pub(crate) const PARTITIONS_KEY: i64 = 0x6861_726e_6573_7300;
