//! What waits and what runs at this moment: by pool, by tenant, and the jobs that are longest where they are. For an operator
//! who looks every second or two; so nothing here costs more with a longer backlog.

use job::{JobId, SessionKey};
use serde::Serialize;
use tokio_postgres::Row;

use super::{lined_pools, pools_in};
use crate::database::{Tx, read_job_id};
use crate::line::first_in_line;
use crate::{PoolSeen, Store, StoreError};

/// No more jobs of a pool and state, or of a tenant, are counted.
pub const COUNTED_TO: i64 = 10_000;
/// No more pools and tenants are shown.
const ROWS: i64 = 200;

/// The fleet at this moment.
#[derive(Clone, Debug, Serialize)]
pub struct FleetNow {
    /// Pools with live jobs or with workers, by name.
    pub pools: Vec<PoolNow>,
    /// Tenants with live jobs, by name.
    pub tenants: Vec<TenantNow>,
    /// The jobs that have been in their state for the longest time; scheduled ones only if they are due.
    pub oldest: Vec<JobNow>,
}

/// A pool at this moment. Each number of jobs is counted up to [`COUNTED_TO`].
#[derive(Clone, Debug, Serialize)]
pub struct PoolNow {
    /// Its name.
    pub pool: String,
    /// Workers that take jobs: their lease is fresh, and they do not drain.
    pub workers: i64,
    /// Workers that drain, with a fresh lease.
    pub draining: i64,
    /// Slots of those that take jobs.
    pub slots: i64,
    /// Jobs that run.
    pub running: i64,
    /// Jobs whose messages are at the broker.
    pub queued: i64,
    /// Jobs that are being published, or are due.
    pub due: i64,
    /// Jobs that are due later.
    pub later: i64,
    /// Jobs whose turn in their session has not come.
    pub blocked: i64,
    /// Jobs that wait for a person's answer.
    pub awaiting_input: i64,
    /// For how many seconds the job that could run and was queued first has waited.
    pub oldest_queued_s: Option<f64>,
    /// Runs begun per second over the last minute, as the workers report.
    pub starts_per_s: f64,
    /// What the admitter sees in the pool's line, if it has one.
    pub line: Option<PoolSeen>,
}

/// A tenant at this moment. Each number is counted up to [`COUNTED_TO`].
#[derive(Clone, Debug, Serialize)]
pub struct TenantNow {
    /// Its name.
    pub tenant: String,
    /// Jobs that run.
    pub running: i64,
    /// All its other live jobs.
    pub waiting: i64,
    /// How many may wait.
    pub max_waiting: Option<i64>,
}

/// A job that is long in its state.
#[derive(Clone, Debug, Serialize)]
pub struct JobNow {
    /// Its id.
    pub job_id: JobId,
    /// Its tenant.
    pub tenant: String,
    /// Its session.
    pub session_id: String,
    /// Its agent.
    pub agent_id: String,
    /// Its pool.
    pub pool: String,
    /// Its state.
    pub state: String,
    /// Since when, in seconds; since it was due, if it is scheduled.
    pub since_s: f64,
    /// Attempts spent.
    pub attempts: i32,
}

/// The CTEs `queued`, `publishing` and `blocked`: the pools that have jobs in these states.
macro_rules! waiting_pools {
    () => {
        concat!(pools_in!("queued"), ", ", pools_in!("publishing"), ", ", pools_in!("blocked"))
    };
}

/// The jobs of a pool in one state, counted up to a bound along `harness_jobs_waiting`.
macro_rules! count_in {
    ($state:literal) => {
        concat!(
            "(SELECT count(*) FROM (SELECT FROM harness_jobs j
                WHERE j.state = '",
            $state,
            "' AND j.pool = p.pool LIMIT $1) c)"
        )
    };
}

const POOLS: &str = concat!(
    "WITH RECURSIVE ",
    waiting_pools!(),
    ", ",
    pools_in!("scheduled"),
    ", running AS MATERIALIZED (
        SELECT pool, count(*) AS jobs FROM harness_jobs WHERE worker_id IS NOT NULL GROUP BY pool
    ), awaiting AS MATERIALIZED (
        SELECT pool, count(*) AS jobs
          FROM (SELECT pool FROM harness_jobs WHERE state = 'awaiting_input' ORDER BY state_since LIMIT $1) a GROUP BY pool
    ), working AS MATERIALIZED (
        SELECT pool, count(*) FILTER (WHERE NOT drains) AS workers, count(*) FILTER (WHERE drains) AS draining,
               coalesce(sum(slots) FILTER (WHERE NOT drains), 0)::bigint AS slots,
               coalesce(sum(starts_per_s), 0)::float8 AS starts
          FROM (SELECT pool, slots, starts_per_s,
                       state = 'draining' OR coalesce(drain_until > now(), false) AS drains
                  FROM harness_workers
                 WHERE state IN ('alive', 'draining')
                   AND heartbeat_at >= now() - lease_ms * interval '1 millisecond') w
         GROUP BY pool
    ), pools AS (
        SELECT pool FROM queued UNION SELECT pool FROM publishing UNION SELECT pool FROM blocked
         UNION SELECT pool FROM scheduled UNION SELECT pool FROM running UNION SELECT pool FROM awaiting
         UNION SELECT pool FROM working UNION SELECT pool FROM ",
    lined_pools!(),
    " l
    )
    SELECT p.pool, coalesce(w.workers, 0), coalesce(w.draining, 0), coalesce(w.slots, 0), coalesce(r.jobs, 0), ",
    count_in!("queued"),
    ", ",
    count_in!("publishing"),
    " + (SELECT count(*) FROM (SELECT FROM harness_jobs j
          WHERE j.state = 'scheduled' AND j.pool = p.pool AND j.due_at <= now() LIMIT $1) c),
        (SELECT count(*) FROM (SELECT FROM harness_jobs j
          WHERE j.state = 'scheduled' AND j.pool = p.pool AND j.due_at > now() LIMIT $1) c), ",
    count_in!("blocked"),
    ", coalesce(a.jobs, 0),
        (SELECT greatest(extract(epoch FROM now() - j.state_since), 0)::float8 FROM harness_jobs j
          WHERE j.state = 'queued' AND j.pool = p.pool ORDER BY j.state_since LIMIT 1),
        coalesce(w.starts, 0), l.line, l.seen
      FROM pools p LEFT JOIN LATERAL (SELECT line, seen::text FROM harness_pools h WHERE h.pool = p.pool AND h.line OFFSET 0) l ON true
           LEFT JOIN working w USING (pool) LEFT JOIN running r USING (pool) LEFT JOIN awaiting a USING (pool)
     WHERE p.pool IS NOT NULL ORDER BY p.pool LIMIT $2"
);

/// By `harness_jobs_waiting_of_tenant`, in which the tenant `default` is not. Its jobs are mostly the most, and the first
/// that are read.
const TENANTS: &str = "
    WITH RECURSIVE others AS (
        SELECT (SELECT tenant FROM harness_jobs WHERE state <> 'running' AND tenant <> 'default' ORDER BY tenant LIMIT 1) AS tenant
        UNION ALL
        SELECT (SELECT j.tenant FROM harness_jobs j
                 WHERE j.state <> 'running' AND j.tenant <> 'default' AND j.tenant > o.tenant ORDER BY j.tenant LIMIT 1)
          FROM others o WHERE o.tenant IS NOT NULL
    ), running AS MATERIALIZED (
        SELECT tenant, count(*) AS jobs FROM harness_jobs WHERE worker_id IS NOT NULL GROUP BY tenant
    ), tenants AS (
        SELECT tenant FROM (SELECT tenant FROM others LIMIT $2) o UNION SELECT tenant FROM running UNION SELECT 'default'
    )
    SELECT t.tenant, coalesce(r.jobs, 0),
           CASE WHEN t.tenant = 'default'
                THEN (SELECT count(*) FROM (SELECT FROM harness_jobs j
                       WHERE j.tenant = 'default' AND j.state <> 'running' LIMIT $1) c)
                ELSE (SELECT count(*) FROM (SELECT FROM harness_jobs j
                       WHERE j.tenant = t.tenant AND j.state <> 'running' AND j.tenant <> 'default' LIMIT $1) c) END,
           h.max_waiting::bigint
      FROM tenants t LEFT JOIN running r USING (tenant) LEFT JOIN harness_tenants h ON h.name = t.tenant
     WHERE t.tenant IS NOT NULL ORDER BY t.tenant LIMIT $2";

macro_rules! columns {
    ($since:literal) => {
        concat!(
            "SELECT job_id, session_id, agent_id, pool, state, ",
            $since,
            " AS since, attempts FROM harness_jobs j "
        )
    };
}

/// The first ones of each pool in this state.
macro_rules! first_in {
    ($state:literal) => {
        concat!(
            "SELECT f.* FROM ",
            $state,
            " p CROSS JOIN LATERAL (",
            columns!("state_since"),
            "WHERE j.state = '",
            $state,
            "' AND j.pool = p.pool ORDER BY j.state_since LIMIT $1) f"
        )
    };
}

/// Of a line its first job is looked at (`heads`), in so many lines of a pool.
const OLDEST: &str = concat!(
    "WITH RECURSIVE ",
    waiting_pools!(),
    ", heads AS (
        SELECT h.*, 1 AS found FROM ",
    lined_pools!(),
    " p CROSS JOIN LATERAL ",
    first_in_line!("p.pool"),
    " h
        UNION ALL
        SELECT n.*, h.found + 1 FROM heads h CROSS JOIN LATERAL ",
    first_in_line!("h.pool", "(h.lane, h.tenant, h.line)"),
    " n
         WHERE h.found < 1000
    ), found AS (",
    first_in!("queued"),
    " UNION ALL ",
    first_in!("publishing"),
    " UNION ALL ",
    first_in!("blocked"),
    " UNION ALL (",
    columns!("due_at"),
    "WHERE j.state = 'scheduled' AND j.due_at <= now() ORDER BY j.due_at LIMIT $1) UNION ALL (",
    columns!("state_since"),
    "WHERE j.state = 'awaiting_input' ORDER BY j.state_since LIMIT $1) UNION ALL (",
    columns!("state_since"),
    "WHERE j.job_id = ANY(ARRAY(SELECT job_id FROM heads)) ORDER BY j.state_since LIMIT $1) UNION ALL (",
    columns!("state_since"),
    "WHERE j.worker_id IS NOT NULL ORDER BY j.state_since LIMIT $1))
    SELECT job_id, session_id, agent_id, pool, state, greatest(extract(epoch FROM now() - since), 0)::float8, attempts
      FROM found ORDER BY since, job_id LIMIT $1"
);

impl Store {
    /// Returns what waits and runs now, with so many of the jobs that are longest where they are.
    pub async fn fleet_now(&self, oldest: u32) -> Result<FleetNow, StoreError> {
        let tx = Tx::prepare(&self.pool, "fleet_now", [POOLS, TENANTS, OLDEST]).await?;
        let oldest = i64::from(oldest);
        let [pools, tenants, oldest] =
            tx.run([&[&COUNTED_TO, &ROWS], &[&COUNTED_TO, &ROWS], &[&oldest]]).await?;
        Ok(FleetNow {
            pools: pools.iter().map(read_pool).collect(),
            tenants: tenants.iter().map(read_tenant).filter(|it| it.running + it.waiting > 0).collect(),
            oldest: oldest.iter().map(read_job).collect(),
        })
    }
}

fn read_pool(row: &Row) -> PoolNow {
    PoolNow {
        pool: row.get(0),
        workers: row.get(1),
        draining: row.get(2),
        slots: row.get(3),
        running: row.get(4),
        queued: row.get(5),
        due: row.get(6),
        later: row.get(7),
        blocked: row.get(8),
        awaiting_input: row.get(9),
        oldest_queued_s: row.get(10),
        starts_per_s: row.get(11),
        line: row
            .get::<_, Option<bool>>(12)
            .map(|_| row.get::<_, Option<&str>>(13).map(PoolSeen::from_json).unwrap_or_default()),
    }
}

fn read_tenant(row: &Row) -> TenantNow {
    TenantNow { tenant: row.get(0), running: row.get(1), waiting: row.get(2), max_waiting: row.get(3) }
}

fn read_job(row: &Row) -> JobNow {
    let (tenant, session) = SessionKey::split(row.get(1));
    JobNow {
        job_id: read_job_id(row, 0),
        tenant: tenant.to_string(),
        session_id: session.into(),
        agent_id: row.get(2),
        pool: row.get(3),
        state: row.get(4),
        since_s: row.get(5),
        attempts: row.get(6),
    }
}
