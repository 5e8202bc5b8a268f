//! What a pool's jobs want and what its workers can do, for hundreds of pools in one round trip, each second.
//!
//! So nothing here costs more with a longer queue. Waiting jobs are looked up at the ends of an index or
//! counted up to a bound, and there are no more running jobs than slots. The broker knows how many jobs are
//! queued. Jobs that other AMQP clients publish are not in the ledger before their first claim.

use std::collections::HashMap;
use std::time::Duration;

use job::{Name, WorkerId};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::{Tx, millis, query, read_name};
use crate::{Durations, Store, StoreError};

/// A pool's jobs and workers at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolDemand {
    /// The moment, by Postgres's clock: Unix time in milliseconds.
    pub at_ms: u64,
    /// Jobs that run, on any worker.
    pub running: u64,
    /// Jobs whose turn in their session has not come; counted up to 10,000.
    pub blocked: u64,
    /// Jobs that are being published, or scheduled and due within the horizon or overdue; each counted up to 10,000.
    pub due_soon: u64,
    /// How long the oldest job that could run (queued, being published, or due) has waited, in milliseconds.
    pub oldest_waiting_ms: Option<u64>,
    /// Jobs in the pool's line that could run: that no limit, no bound of a tenant and no job of their session holds back.
    pub in_line: u64,
    /// Whether jobs wait there and no admitter has looked lately: `in_line` is all of them then, counted up to 10,000.
    pub line_is_old: bool,
    /// How long the oldest of these has waited, in milliseconds.
    pub oldest_in_line_ms: Option<u64>,
    /// Workers that take jobs: their lease is fresh, and they do not drain.
    pub workers: u32,
    /// Their slots together.
    pub slots: u64,
    /// Workers that hold at least one job, whether or not they drain or their lease is fresh.
    pub busy_workers: u32,
    /// Workers that drain, by a mark or a signal, with a fresh lease.
    pub draining_workers: u32,
    /// Runs begun per second over the last minute, as the workers report.
    pub starts_per_s: f64,
}

/// A worker that has not ended.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// Its id.
    pub worker: WorkerId,
    /// Its pool.
    pub pool: Name,
    /// Its host.
    pub host: String,
    /// Its pod, in Kubernetes.
    pub pod_name: Option<String>,
    /// How many jobs it runs at a time.
    pub slots: u32,
    /// How many jobs run there, according to the ledger.
    pub held: u64,
    /// Whether it drains on a signal.
    pub draining: bool,
    /// Whether its last heartbeat is younger than its lease.
    pub fresh: bool,
    /// How long ago it registered, in milliseconds.
    pub age_ms: u64,
    /// Its drain mark, if that is valid.
    pub mark: Option<MarkView>,
}

/// A valid drain mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkView {
    /// The leader that marked or renewed it last.
    pub epoch: i64,
    /// How much longer it is valid, in milliseconds.
    pub left_ms: u64,
    /// Whether the worker has confirmed that it holds nothing and takes nothing.
    pub drained: bool,
}

/// Whether a row's pool is among $1. (IS TRUE makes Postgres build a hash table of the pools. As a plain
/// condition, each row would be compared with hundreds of names, or joined.)
macro_rules! in_pools {
    () => {
        "(pool IN (SELECT unnest($1::text[]))) IS TRUE"
    };
}

const READ_WORKERS: &str = concat!(
    "
    SELECT worker_id, pool, slots, state = 'draining', heartbeat_at >= now() - lease_ms * interval '1 millisecond',
           CASE WHEN drain_until > now() THEN drain_epoch END,
           (extract(epoch FROM drain_until - now()) * 1000)::bigint, drained_at IS NOT NULL, starts_per_s,
           host, pod_name, (extract(epoch FROM now() - started_at) * 1000)::bigint
      FROM harness_workers WHERE state IN ('alive', 'draining') AND ",
    in_pools!(),
    " ORDER BY started_at, worker_id"
);

/// Reads the index of running jobs, as a heartbeat does.
const READ_HELD: &str = "
    SELECT worker_id, pool, count(*) FROM harness_jobs WHERE worker_id IS NOT NULL GROUP BY worker_id, pool";

/// A job's age counts from when it first could run, not from when its message was published last. In a pool with a line it
/// counts from its turn: before that, no queue had it, and how long it waits says nothing of the queue.
const READ_WAITING: &str = "
    SELECT (SELECT count(*) FROM (SELECT FROM harness_jobs
                                   WHERE state = 'blocked' AND pool = p.pool LIMIT 10000) blocked),
           (SELECT count(*) FROM (SELECT FROM harness_jobs
                                   WHERE state = 'publishing' AND pool = p.pool LIMIT 10000) publishing)
           + (SELECT count(*) FROM (SELECT FROM harness_jobs
                                     WHERE state = 'scheduled' AND pool = p.pool
                                       AND due_at <= now() + $2 * interval '1 millisecond' LIMIT 10000) due),
           (extract(epoch FROM now() - least(
               (SELECT CASE WHEN l.line THEN state_since ELSE due_at END FROM harness_jobs
                 WHERE state = 'queued' AND pool = p.pool ORDER BY state_since LIMIT 1),
               (SELECT CASE WHEN l.line THEN state_since ELSE due_at END FROM harness_jobs
                 WHERE state = 'publishing' AND pool = p.pool ORDER BY state_since LIMIT 1),
               CASE WHEN l.line THEN NULL ELSE
                    (SELECT due_at FROM harness_jobs WHERE state = 'scheduled' AND pool = p.pool AND due_at <= now()
                      ORDER BY due_at LIMIT 1) END)) * 1000)::bigint,
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
           CASE WHEN l.fresh THEN l.could_run
                WHEN l.line THEN (SELECT count(*) FROM (SELECT FROM harness_jobs
                                                         WHERE state = 'waiting' AND pool = p.pool LIMIT 10000) waiting)
                ELSE 0 END,
           CASE WHEN l.fresh AND l.could_run > 0 THEN (l.seen ->> 'oldest_ms')::bigint END,
           l.line AND l.fresh IS NOT TRUE
      FROM unnest($1::text[]) WITH ORDINALITY AS p(pool, turn)
      LEFT JOIN LATERAL (SELECT line, could_run, seen, line AND seen_at > now() - interval '10 seconds' AS fresh
                           FROM harness_pools h WHERE h.pool = p.pool OFFSET 0) l ON true
     ORDER BY turn";

/// A worker's last report counts for a while after its end, so that a rollout does not forget how long jobs
/// take.
const READ_DURATIONS: &str = concat!(
    "SELECT pool, durations::text FROM (
            SELECT pool, durations, heartbeat_at FROM harness_workers WHERE state IN ('alive', 'draining')
            UNION ALL
            SELECT pool, durations, heartbeat_at FROM harness_workers
             WHERE state IN ('stopped', 'dead') AND ended_at >= now() - interval '10 minutes') w
      WHERE durations IS NOT NULL AND heartbeat_at >= now() - interval '10 minutes' AND ",
    in_pools!()
);

impl Store {
    /// Returns the demand of these pools, in their order. Jobs due within `due_horizon` count as due soon.
    pub async fn demand(&self, pools: &[Name], due_horizon: Duration) -> Result<Vec<PoolDemand>, StoreError> {
        let names: Vec<&str> = pools.iter().map(Name::as_str).collect();
        let tx = Tx::prepare(&self.pool, "demand", [READ_WORKERS, READ_HELD, READ_WAITING]).await?;
        let [workers, held, waiting] = tx.run([&[&names], &[], &[&names, &millis(due_horizon)]]).await?;

        let mut demands: HashMap<&str, PoolDemand> = HashMap::with_capacity(names.len());
        for (name, row) in names.iter().zip(&waiting) {
            let count = |column: usize| row.get::<_, i64>(column).unsigned_abs();
            let demand = PoolDemand {
                at_ms: count(3),
                blocked: count(0),
                due_soon: count(1),
                oldest_waiting_ms: row.get::<_, Option<i64>>(2).map(|ms| ms.max(0).unsigned_abs()),
                in_line: count(4),
                line_is_old: count(4) > 0 && row.get::<_, Option<bool>>(6).unwrap_or_default(),
                oldest_in_line_ms: row.get::<_, Option<i64>>(5).map(|ms| ms.max(0).unsigned_abs()),
                ..PoolDemand::default()
            };
            demands.insert(name, demand);
        }
        let mut busy = HashMap::<Uuid, u64>::new();
        for row in &held {
            let count = row.get::<_, i64>(2).unsigned_abs();
            *busy.entry(row.get(0)).or_default() += count;
            if let Some(demand) = demands.get_mut(row.get::<_, &str>(1)) {
                demand.running += count;
            }
        }
        for row in &workers {
            let Some(demand) = demands.get_mut(row.get::<_, &str>(1)) else { continue };
            demand.busy_workers += u32::from(busy.contains_key(&row.get(0)));
            let (draining, fresh): (bool, bool) = (row.get(3), row.get(4));
            let marked = row.get::<_, Option<i64>>(5).is_some();
            if !fresh {
                continue;
            }
            demand.starts_per_s += f64::from(row.get::<_, f32>(8));
            if draining || marked {
                demand.draining_workers += 1;
            } else {
                demand.workers += 1;
                demand.slots += u64::from(row.get::<_, i32>(2).unsigned_abs());
            }
        }
        Ok(names.iter().map(|name| demands.get(name).cloned().unwrap_or_default()).collect())
    }

    /// Returns the workers of these pools that have not ended, oldest first.
    pub async fn pool_workers(&self, pools: &[Name]) -> Result<Vec<WorkerView>, StoreError> {
        let names: Vec<&str> = pools.iter().map(Name::as_str).collect();
        let tx = Tx::prepare(&self.pool, "pool_workers", [READ_WORKERS, READ_HELD]).await?;
        // Marks are read first, so that what is known of a worker's jobs is no older than what is known of
        // its draining.
        let [workers, held] = tx.run([&[&names], &[]]).await?;
        let mut busy = HashMap::<Uuid, u64>::new();
        for row in &held {
            *busy.entry(row.get(0)).or_default() += row.get::<_, i64>(2).unsigned_abs();
        }
        Ok(workers.iter().filter_map(|row| read_worker(row, &busy)).collect())
    }

    /// Returns how long runs took lately in each of these pools, in their order. It counts the runs that
    /// ended within the last five minutes of their worker.
    pub async fn service_times(&self, pools: &[Name]) -> Result<Vec<Durations>, StoreError> {
        let names: Vec<&str> = pools.iter().map(Name::as_str).collect();
        let rows = query(&self.pool, "service_times", READ_DURATIONS, &[&names]).await?;
        let mut sums = HashMap::<&str, Durations>::new();
        for row in &rows {
            sums.entry(row.get(0)).or_default().merge(&Durations::from_json(row.get(1)));
        }
        Ok(names.iter().map(|name| sums.get(name).cloned().unwrap_or_default()).collect())
    }
}

/// Reads [`READ_WORKERS`].
fn read_worker(row: &Row, busy: &HashMap<Uuid, u64>) -> Option<WorkerView> {
    let id: Uuid = row.get(0);
    let mark = row.get::<_, Option<i64>>(5).map(|epoch| MarkView {
        epoch,
        left_ms: row.get::<_, Option<i64>>(6).unwrap_or_default().max(0).unsigned_abs(),
        drained: row.get(7),
    });
    Some(WorkerView {
        worker: id.into(),
        pool: read_name(row, 1)?,
        host: row.get(9),
        pod_name: row.get(10),
        slots: row.get::<_, i32>(2).unsigned_abs(),
        held: busy.get(&id).copied().unwrap_or_default(),
        draining: row.get(3),
        fresh: row.get(4),
        age_ms: row.get::<_, i64>(11).max(0).unsigned_abs(),
        mark,
    })
}
