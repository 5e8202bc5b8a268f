//! A ledger that was restored from a backup: the workers of that time are gone, and the world has gone on.
//!
//! After the backup was taken, fencing tokens were given out to programs that may still compare them. So all
//! later tokens are far above them. Jobs that ran or were on their way are due again. It does not matter
//! whether their message is still at the broker, because their claim makes a second one harmless.

use uuid::Uuid;

use crate::database::{LOCK_WORKERS_AND_JOBS, Tx, query, rfc3339};
use crate::spend::LEAVE_ALL;
use crate::{Store, StoreError};

/// A worker that the ledger believes to be alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreshLease {
    /// Its id.
    pub worker: Uuid,
    /// Its host.
    pub host: String,
    /// Its last heartbeat: Unix time in microseconds.
    pub beat_at_us: i64,
}

/// What was revived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revived {
    /// Workers that were signed off.
    pub workers: u64,
    /// Jobs that are due again.
    pub jobs: u64,
    /// Calls of models that were under way, and count in full now.
    pub calls: u64,
    /// When the last call that the ledger knows was reserved, if it knows any: RFC 3339, UTC. What was spent between
    /// then and the restore is missing.
    pub last_call: Option<String>,
}

const FRESH: &str = "
    SELECT worker_id, host, (extract(epoch FROM heartbeat_at) * 1000000)::bigint FROM harness_workers
     WHERE state IN ('alive', 'draining') AND heartbeat_at >= clock_timestamp() - lease_ms * interval '1 millisecond'
     ORDER BY started_at";

/// Skips more epochs than are ever given out between a backup and its restore, but few of those that a bigint
/// holds.
const SKIP_EPOCHS: &str = "
    SELECT setval('harness_epoch', (SELECT last_value FROM harness_epoch) + 4294967296),
           setval('harness_leader_epoch', (SELECT last_value FROM harness_leader_epoch) + 4294967296)";

/// Spends no attempt, because we interrupted the jobs. A dead worker's jobs are left to rescue, which charges
/// them.
const MAKE_DUE: &str = "
    UPDATE harness_jobs j
       SET state = 'scheduled', due_at = now(), state_since = now(), worker_id = NULL,
           epoch = CASE WHEN j.epoch > 0 THEN nextval('harness_epoch') ELSE j.epoch END
     WHERE state IN ('publishing', 'queued')
        OR (state = 'running'
            AND (SELECT w.state FROM harness_workers w WHERE w.worker_id = j.worker_id) IS DISTINCT FROM 'dead')
    RETURNING job_id";

const SIGN_OFF: &str = "
    UPDATE harness_workers SET state = 'stopped', ended_at = now() WHERE state IN ('alive', 'draining') RETURNING worker_id";

/// The numbers of transactions begin anew on another server.
const READ_ALL_MOVES: &str = "UPDATE harness_accounts SET folded_tx = '0' WHERE folded_tx <> '0'";

/// What was used in the minute before the backup no longer counts, and keys were shut for minutes at most.
const BEGIN_RATES: &str = "
    WITH keys AS (DELETE FROM harness_provider_keys), rates AS (DELETE FROM harness_provider_rates)
    DELETE FROM harness_provider_moves";

/// Its entries are those of the backup, and their ages by another clock.
const EMPTY_CACHE: &str = "DELETE FROM harness_cache";

const LAST_CALL: &str = concat!("SELECT ", rfc3339!("max(reserved_at)"), " FROM harness_calls");

const LOG: &str = "INSERT INTO harness_audit_log (actor, act) VALUES ($1, 'revived')";

impl Store {
    /// Returns the workers whose lease has not run out. After a restore they are those of the backup, unless
    /// one is still alive.
    pub async fn fresh_leases(&self) -> Result<Vec<FreshLease>, StoreError> {
        let rows = query(&self.pool, "fresh_leases", FRESH, &[]).await?;
        let lease = |row: &tokio_postgres::Row| FreshLease {
            worker: row.get(0),
            host: row.get(1),
            beat_at_us: row.get(2),
        };
        Ok(rows.iter().map(lease).collect())
    }

    /// Makes a restored ledger ready. Call this only when no worker is alive ([`Store::fresh_leases`]): a
    /// live one would lose its jobs.
    pub async fn revive(&self, actor: &str) -> Result<Revived, StoreError> {
        let sql = [
            LOCK_WORKERS_AND_JOBS,
            SKIP_EPOCHS,
            MAKE_DUE,
            SIGN_OFF,
            LEAVE_ALL,
            READ_ALL_MOVES,
            BEGIN_RATES,
            EMPTY_CACHE,
            LAST_CALL,
            LOG,
        ];
        let tx = Tx::prepare(&self.pool, "revive", sql).await?;
        let [_, _, jobs, workers, calls, _, _, _, last_call, _] =
            tx.run([&[], &[], &[], &[], &[], &[], &[], &[], &[], &[&actor]]).await?;
        Ok(Revived {
            workers: workers.len() as u64,
            jobs: jobs.len() as u64,
            calls: calls.len() as u64,
            last_call: last_call.first().and_then(|row| row.get(0)),
        })
    }
}
