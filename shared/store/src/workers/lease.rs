//! Workers and their leases. All times are Postgres's; no host's clock takes part.

use std::time::Duration;

use job::{Name, WorkerId};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::database::{BEAT_BOUND, LOCK_OUT_WORKER, TURN_SWITCHES, Tx, millis, query, query_within};
use crate::jobs::read_claim;
use crate::spend::LEAVE_WORKERS;
use crate::{Claim, Clock, Store, StoreError, Throughput};

/// What a worker says about itself when it starts.
#[derive(Clone, Debug)]
pub struct WorkerRegistration {
    /// A fresh id: one per boot, and a new one after a death.
    pub worker: WorkerId,
    /// The host's name, for people.
    pub host: String,
    /// The pod, for the autoscaler.
    pub pod_name: Option<String>,
    /// The pool it serves.
    pub pool: Name,
    /// How many jobs it runs at a time.
    pub slots: u32,
    /// How long its jobs are safe after its last heartbeat.
    pub lease: Duration,
    /// The newest migration that it knows.
    pub schema: i64,
}

/// A worker, for people.
#[derive(Clone, Debug)]
pub struct OlderWorker {
    /// Its host.
    pub host: String,
    /// Its pool.
    pub pool: String,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug)]
pub enum Beat {
    /// The lease is renewed.
    Alive {
        /// The runs that the ledger believes to be under way here.
        held: Vec<Claim>,
        /// Postgres's clock, which may have been set since the last beat.
        clock: Clock,
    },
    /// This worker was declared dead, for good.
    Dead,
}

/// A process that goes on under a new id is in the same pod, and the autoscaler that marked the old id may be
/// about to scale that pod away. So the new id inherits the mark.
const REGISTER: &str = "
    INSERT INTO harness_workers
           (worker_id, host, pod_name, pool, slots, state, lease_ms, schema_version, drain_epoch, drain_until)
    SELECT $1::uuid, $2::text, $3::text, $4::text, $5::int, 'alive', $6::bigint, $8::bigint,
           (SELECT drain_epoch FROM harness_workers WHERE worker_id = $7),
           (SELECT drain_until FROM harness_workers WHERE worker_id = $7)
    ON CONFLICT DO NOTHING";

/// Those whose lease has run out count until they are declared dead, because until then they may go on. Releases from
/// before the column know no schema that is asked for.
const OLDER: &str = "
    SELECT host, pool FROM harness_workers
     WHERE state IN ('alive', 'draining') AND coalesce(schema_version, 0) < $1
     ORDER BY started_at LIMIT 1";

const BEAT: &str = "
    WITH beat AS (
        UPDATE harness_workers
           SET heartbeat_at = clock_timestamp(), starts_per_s = $2, durations = $3::text::json
         WHERE worker_id = $1 AND state <> 'dead' RETURNING worker_id
    )
    SELECT j.job_id, j.session_id, j.epoch, clock_timestamp() FROM beat b LEFT JOIN harness_jobs j ON j.worker_id = b.worker_id";

const SET_DRAINING: &str = "
    UPDATE harness_workers SET state = 'draining', noticed_at = now() WHERE worker_id = $1 AND state = 'alive'";

const STOP: &str = "
    UPDATE harness_workers SET state = 'stopped', ended_at = now()
     WHERE worker_id = $1 AND state <> 'dead'
       AND NOT EXISTS (SELECT FROM harness_jobs j WHERE j.worker_id = $1)";

/// Deletes the rows of workers that ended so long ago that nothing needs them. One of each pool stays: it says that the pool
/// was served.
const FORGET: &str = "
    DELETE FROM harness_workers w
     WHERE state IN ('stopped', 'dead') AND ended_at < now() - $1 * interval '1 millisecond'
       AND NOT EXISTS (SELECT FROM harness_jobs j WHERE j.worker_id = w.worker_id)
       AND (SELECT o.worker_id FROM harness_workers o
             WHERE o.pool = w.pool AND o.worker_id > w.worker_id LIMIT 1) IS NOT NULL";

impl Store {
    /// Registers a worker. Its lease starts now.
    pub async fn register_worker(&self, worker: &WorkerRegistration) -> Result<(), StoreError> {
        self.register(worker, None).await
    }

    /// Registers a worker that replaces one that was declared dead. It inherits the dead one's drain mark.
    pub async fn register_successor(
        &self,
        worker: &WorkerRegistration,
        dead_worker: WorkerId,
    ) -> Result<(), StoreError> {
        self.register(worker, Some(dead_worker)).await
    }

    async fn register(
        &self,
        worker: &WorkerRegistration,
        dead_worker: Option<WorkerId>,
    ) -> Result<(), StoreError> {
        let dead_worker = dead_worker.map(Uuid::from);
        let id = Uuid::from(worker.worker);
        let (slots, lease_ms) = (worker.slots as i32, worker.lease.as_millis() as i64);
        let pool = worker.pool.as_str();
        let params: [&(dyn ToSql + Sync); 8] =
            [&id, &worker.host, &worker.pod_name, &pool, &slots, &lease_ms, &dead_worker, &worker.schema];
        // On the heartbeat's connection, which is open from now on.
        query_within(BEAT_BOUND, &self.beats, "register_worker", REGISTER, &params).await?;
        let on = query_within(BEAT_BOUND, &self.beats, "turn_switches", TURN_SWITCHES, &[]).await?;
        self.switches.are(&on);
        Ok(())
    }

    /// Renews the lease, on a connection of its own, and reports how fast the worker works.
    pub async fn beat(&self, worker: WorkerId, throughput: &Throughput) -> Result<Beat, StoreError> {
        let durations = (!throughput.durations.is_empty()).then(|| throughput.durations.to_json());
        let params: [&(dyn ToSql + Sync); 3] = [&Uuid::from(worker), &throughput.starts_per_s, &durations];
        let asked = Instant::now();
        let rows = query_within(BEAT_BOUND, &self.beats, "beat", BEAT, &params).await?;
        let Some(first) = rows.first() else { return Ok(Beat::Dead) };
        let clock = Clock::new(first.get(3), asked, Instant::now());
        let held = rows.iter().filter(|row| row.get::<_, Option<Uuid>>(0).is_some());
        Ok(Beat::Alive { held: held.map(|row| read_claim(row, worker)).collect(), clock })
    }

    /// Marks a worker that was asked to stop. It takes no more jobs but still runs some. If it dies now, no
    /// job is charged with its death.
    pub async fn mark_draining(&self, worker: WorkerId) -> Result<(), StoreError> {
        query(&self.pool, "mark_draining", SET_DRAINING, &[&Uuid::from(worker)]).await?;
        Ok(())
    }

    /// Ends a worker's registration in good order. It stays if the worker still holds jobs: then its lease
    /// runs out and they are rescued.
    pub async fn mark_stopped(&self, worker: WorkerId) -> Result<(), StoreError> {
        let id = Uuid::from(worker);
        let sql = [LOCK_OUT_WORKER, STOP, LEAVE_WORKERS];
        let tx = Tx::prepare(&self.pool, "mark_stopped", sql).await?;
        tx.run([&[&id], &[&id], &[&[id].as_slice()]]).await?;
        Ok(())
    }

    /// Returns a worker that does not know this schema, if there is one.
    pub async fn older_worker(&self, schema: i64) -> Result<Option<OlderWorker>, StoreError> {
        let rows = query(&self.pool, "older_worker", OLDER, &[&schema]).await?;
        Ok(rows.first().map(|row| OlderWorker { host: row.get(0), pool: row.get(1) }))
    }

    /// Deletes the rows of workers that ended longer ago than this, but one of each pool. Looks as well whether an older worker is still in the way
    /// of what it could not read.
    pub async fn forget_workers(&self, ended_before: Duration) -> Result<(), StoreError> {
        query(&self.pool, "forget_workers", FORGET, &[&millis(ended_before)]).await?;
        self.switches.are(&query(&self.pool, "turn_switches", TURN_SWITCHES, &[]).await?);
        Ok(())
    }
}
