//! What a run left open: a call that is never settled may have been billed, so it counts in full.
//!
//! Each statement is part of the transaction that ends the run, and comes after the one that locks the jobs: its
//! snapshot shows every call that the run could reserve. It finds the ids first, then locks the calls in their order.
//!
//! `state || ''` and `epoch + 0` keep Postgres from partial indexes. That of held calls has the dead entries of all
//! calls that were ever held. While such an index looks small, it would be read whole instead of looking up a row.

use super::account::keys_of_call;

macro_rules! leave {
    ($calls:expr) => {
        concat!(
            "WITH open AS MATERIALIZED (
                SELECT call_id FROM harness_calls WHERE state || '' = 'held' AND call_id = ANY(ARRAY(",
            $calls,
            ")) ORDER BY call_id FOR UPDATE
            ), c AS (
                UPDATE harness_calls
                   SET state = 'unknown', cost_microusd = reserved_microusd, settled_at = now(),
                       reason = 'its run ended before it was settled'
                 WHERE call_id = ANY(ARRAY(SELECT call_id FROM open))
                RETURNING *
            ), moved AS (
                INSERT INTO harness_account_moves (key, spent_microusd, held_microusd)
                SELECT k.key, sum(c.cost_microusd), -sum(c.reserved_microusd) FROM c ",
            keys_of_call!(),
            " GROUP BY k.key
            )
            SELECT call_id FROM c"
        )
    };
}

/// Selects the held calls of older runs of the jobs `j`.
macro_rules! of_older_runs {
    ($jobs:literal) => {
        concat!(
            "SELECT c.call_id FROM (",
            $jobs,
            " OFFSET 0) j
              CROSS JOIN LATERAL (SELECT call_id FROM harness_calls c
                                   WHERE c.session_id = j.session_id AND c.job_id = j.job_id AND c.state || '' = 'held'
                                     AND c.epoch < j.epoch OFFSET 0) c"
        )
    };
}

/// After a claim of the jobs $1. A job that was claimed for the first time has no older run, and costs no look-up of
/// calls.
pub(crate) const LEAVE_OLDER_RUNS: &str = leave!(of_older_runs!(
    "SELECT job_id, session_id, epoch FROM harness_jobs
      WHERE job_id = ANY($1) AND epoch + 0 > 0 AND started_at < state_since"
));

/// After a rescue of what had begun in the sessions $1.
pub(crate) const LEAVE_OLDER_RUNS_OF: &str = leave!(of_older_runs!(
    "SELECT job_id, session_id, epoch FROM harness_jobs WHERE session_id = ANY($1) AND epoch > 0"
));

/// When those of the workers $1 that are dead or stopped run nothing: their calls of jobs that have ended.
pub(crate) const LEAVE_WORKERS: &str = leave!(
    "SELECT c.call_id FROM unnest($1::uuid[]) AS w(worker_id)
      CROSS JOIN LATERAL (SELECT call_id FROM harness_calls c
                           WHERE c.state = 'held' AND c.worker_id = w.worker_id OFFSET 0) c
      WHERE (SELECT state FROM harness_workers h WHERE h.worker_id = w.worker_id) IN ('dead', 'stopped')"
);

/// When no worker is alive.
pub(crate) const LEAVE_ALL: &str = leave!("SELECT call_id FROM harness_calls WHERE state = 'held'");

/// Whatever is left, of any worker or run: a process of an older release rescues and claims without these statements. It
/// looks at all that is held.
pub(super) const LEAVE_LEFT: &str = leave!(
    "SELECT c.call_id FROM harness_calls c
      WHERE c.state = 'held'
        AND (coalesce((SELECT w.state FROM harness_workers w WHERE w.worker_id = c.worker_id), 'unknown')
                 NOT IN ('alive', 'draining')
             OR c.epoch < (SELECT j.epoch FROM harness_jobs j WHERE j.job_id = c.job_id))"
);
