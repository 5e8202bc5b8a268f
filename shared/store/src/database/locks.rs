//! Every lock of the ledger, and the order in which a transaction takes them: from the top of this table to
//! its bottom.
//!
//! | lock | order | taken by | so that |
//! |---|---|---|---|
//! | keys of jobs | tenant, kind, key | acceptance, where a job has a key | of two jobs with one key, the second finds the first |
//! | a leadership, shared | one | marks, decisions, schedules that fire, turns in a line | no successor leads before they have committed |
//! | a worker's row, `KEY SHARE` | one | claim, conclude | it is not declared dead, stopped, marked or drained |
//! | workers' rows, `UPDATE` | `worker_id` | marks, a drain's confirmation, stop | claims under way end, and later ones see it |
//! | limits, advisory, before all that follows | one | a reservation (shared), a limit that is set (alone) | no reservation that has not seen the limit is under way when it holds |
//! | sessions' rows | `session_id` | claim, conclude, cancel, rescue, what a line blocks, a fold within a run | only one of them at a time decides about a session |
//! | jobs' rows | `job_id` | claim, cancel, rescue, what a line blocks, a fold within a run; checkpoint, reservation and the settlement of an answer that is checkpointed (`SHARE`), jobs of a deleted queue | the row stays as it was read |
//! | the same, under their sessions' locks | by statement | conclude (ends, then retries), cancel (running, then waiting) | the row changes once |
//! | accounts' rows with a limit, `NO KEY UPDATE` | `key` | a reservation, a fold | they decide one after the other, each on what the one before it held |
//! | rows of providers' limits, `NO KEY UPDATE` | `account` | a reservation, a fold | as with accounts |
//! | calls' rows | `call_id` | settlement, and what ends a run, after the jobs' rows | a call is settled once |
//! | inputs' rows, under their sessions' locks | `job_id`, `call_id` where questions are asked, else by statement | questions, an answer, the end of its time, the end of a job | a call is answered once |
//! | blobs' rows | `session_id`, `hash` where checkpoints store them, else by statement | a checkpoint, after the jobs' rows and before calls' rows; a fold, a rollback and the emptying of a session, under its lock | what a row refers to stays |
//! | results' rows | `job_id` | redrive, dismissal | only one of the two happens, and only once |
//! | a pool's grant, advisory | none waits for it | an insertion of jobs into a pool with a line | others do not count at the same moment |
//! | a tenant's row, `SHARE` | one | a new key | the tenant is not closed meanwhile |
//! | keys' rows | `id` | revocation, noted uses | each of them changes once |
//! | a tenant's row of its rate | one, alone | each slice of a rate | no two doors are granted the same |
//! | a tenant's row, `NO KEY UPDATE` | one | a new webhook, a new schedule | two at once do not both take the last place |
//! | deliveries' rows, then their webhook's | by statement | a result, a request to send again | the row changes once |
//! | schedules' rows | `id` | those that fire; pause, resume and removal, of one | what was decided on a row counts only while it is the same |
//! | entries of the inbox, by job and tenant | in the order of instants | schedules that fire; `harness_enqueue`, which takes nothing else of ours | the same id again is the same job |
//! | the end of the operators' log, advisory | one | every act that is logged | each row follows the one before it |
//!
//! Those of results, and of jobs under their sessions' locks, are taken by the statements that choose the rows. The order of jobs matters for transactions
//! that may wait for each other without a session's lock.
//!
//! **Statements that lock nothing else** remove rows of the inbox whose jobs are in the ledger, and for upkeep close the questions
//! of jobs that have ended, and remove inputs of forgotten jobs, blobs that are not live and schedules of one instant that is over.
//!
//! **A service's transaction** may hold an entry of the inbox for as long as it likes. A schedule that fires the same id waits for it,
//! for two seconds: then it is put off, and the others fire without it.
//!
//! **Nothing waits** for rows that can be taken later (`SKIP LOCKED`): the relay's jobs (due, in their turn, published,
//! stuck, vanished), schedules that are due, expired keys of jobs, dates from the future, workers whose lease has run out, deliveries that
//! are due, accounts that upkeep folds, and running jobs that a batch of requests asks to make room. A single such request does wait, because it
//! holds no other lock. A worker whose row is locked by its own claim is alive.
//!
//! **A heartbeat waits for no claim**: it changes no key, so it does not conflict with `KEY SHARE`.
//!
//! **Whole tables** are locked by a revival (`SHARE ROW EXCLUSIVE`, when no worker is alive) and by an audit
//! (`ACCESS SHARE` on the results, before its snapshot, so that no partition is dropped while it reads). They
//! are also locked for a moment when a partition is added or removed, with a bound of three seconds.

/// Keeps the leadership in place until the transaction ends. No row means that another process holds it, or
/// that none does.
pub(crate) const LOCK_LEADERSHIP: &str = "
    SELECT FROM harness_leases
     WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp() FOR SHARE";

/// The same condition for the statements after [`LOCK_LEADERSHIP`], with the same first parameters.
macro_rules! leads {
    () => {
        "EXISTS (SELECT FROM harness_leases
                  WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp())"
    };
}
pub(crate) use leads;

/// Selects whether the worker is drained; no row means that it is not alive. Keeps it from being declared
/// dead, stopped or drained until the transaction ends.
pub(crate) const LOCK_WORKER: &str = "
    SELECT coalesce(drained_at IS NOT NULL AND drain_until > now(), false) FROM harness_workers
     WHERE worker_id = $1 AND state IN ('alive', 'draining') FOR KEY SHARE";

/// A condition for the statements after [`LOCK_WORKER`]: whether the worker may take jobs.
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

/// Waits until the worker's claims under way have ended, and makes later ones wait.
pub(crate) const LOCK_OUT_WORKER: &str = "SELECT FROM harness_workers WHERE worker_id = $1 FOR UPDATE";

/// As [`LOCK_OUT_WORKER`], for several workers. They are locked in order, because another leader might do the
/// same.
pub(crate) const LOCK_OUT_WORKERS: &str = "
    SELECT count(*) FROM (
        SELECT FROM harness_workers WHERE worker_id = ANY($1) ORDER BY worker_id FOR UPDATE) locked";

/// Locks sessions, in order.
pub(crate) const LOCK_SESSIONS: &str = "
    SELECT count(*) FROM (SELECT FROM harness_sessions
     WHERE session_id = ANY($1) ORDER BY session_id FOR UPDATE) locked";

/// Keeps out claims and conclusions, because both lock a worker's row.
pub(crate) const LOCK_WORKERS_AND_JOBS: &str =
    "LOCK TABLE harness_workers, harness_jobs IN SHARE ROW EXCLUSIVE MODE";

/// An advisory lock, so that one process at a time makes partitions.
pub(crate) const PARTITIONS_KEY: i64 = 0x6861_726e_6573_7300;
