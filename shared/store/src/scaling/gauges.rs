//! What the ledger shows of the fleet's health, for export as metrics. It is read from the ends of indexes,
//! so that a long backlog costs no more than a short one.

use std::time::Duration;

use job::Name;

use crate::database::{Tx, query, read_name};
use crate::jobs::{lined_pools, pools_in};
use crate::{Store, StoreError};

/// A pool, as the ledger knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolGauges {
    /// The pool.
    pub pool: Name,
    /// How long the job that was queued first has waited; zero if none is queued.
    pub oldest_queued: Duration,
    /// How long the first job in the pool's line has waited that only waits for a slot, if it still does; zero if there was none.
    pub oldest_in_line: Duration,
    /// Workers that take jobs.
    pub alive: i64,
    /// Workers that drain.
    pub draining: i64,
}

/// Pools that have jobs queued, a line, or have ever had a worker, but no more than a thousand.
const READ_POOLS: &str = concat!(
    "WITH RECURSIVE ",
    pools_in!("queued"),
    ", served AS (
        SELECT (SELECT pool FROM harness_workers ORDER BY pool LIMIT 1) AS pool
        UNION ALL
        SELECT (SELECT w.pool FROM harness_workers w WHERE w.pool > s.pool ORDER BY w.pool LIMIT 1)
          FROM served s WHERE s.pool IS NOT NULL
    ), pools AS (
        SELECT pool FROM queued WHERE pool IS NOT NULL UNION SELECT pool FROM served WHERE pool IS NOT NULL
         UNION SELECT pool FROM ",
    lined_pools!(),
    " l
    )
    SELECT pool,
           coalesce((SELECT extract(epoch FROM now() - j.state_since) FROM harness_jobs j
                      WHERE j.state = 'queued' AND j.pool = p.pool ORDER BY j.state_since LIMIT 1), 0)::float8,
           coalesce((SELECT (l.seen ->> 'oldest_ms')::float8 / 1000 + extract(epoch FROM now() - l.seen_at)::float8
                       FROM harness_pools l
                      WHERE l.pool = p.pool AND l.line AND l.could_run > 0), 0),
           (SELECT count(*) FROM harness_workers w WHERE w.pool = p.pool AND w.state = 'alive'),
           (SELECT count(*) FROM harness_workers w WHERE w.pool = p.pool AND w.state = 'draining')
      FROM pools p ORDER BY pool LIMIT 1000"
);

const OLDEST_DUE: &str = "
    SELECT extract(epoch FROM now() - due_at)::float8 FROM harness_jobs
     WHERE state = 'scheduled' AND due_at <= now() ORDER BY due_at LIMIT 1";

const OLDEST_PUBLISHING: &str = concat!(
    "WITH RECURSIVE ",
    pools_in!("publishing"),
    "
    SELECT coalesce(extract(epoch FROM now() - min((
               SELECT j.state_since FROM harness_jobs j WHERE j.state = 'publishing' AND j.pool = p.pool
                ORDER BY j.state_since LIMIT 1))), 0)::float8
      FROM publishing p WHERE pool IS NOT NULL"
);

impl Store {
    /// Returns a reading of each pool.
    pub async fn pool_gauges(&self) -> Result<Vec<PoolGauges>, StoreError> {
        let rows = query(&self.pool, "pool_readings", READ_POOLS, &[]).await?;
        let reading = |row: &tokio_postgres::Row| {
            Some(PoolGauges {
                pool: read_name(row, 0)?,
                oldest_queued: seconds(row.get(1)),
                oldest_in_line: seconds(row.get(2)),
                alive: row.get(3),
                draining: row.get(4),
            })
        };
        Ok(rows.iter().filter_map(reading).collect())
    }

    /// Returns the longest time that a job has waited for a relay: due but not published, or published but
    /// not noted.
    pub async fn relay_lag(&self) -> Result<Duration, StoreError> {
        let tx = Tx::prepare(&self.pool, "relay_lag", [OLDEST_DUE, OLDEST_PUBLISHING]).await?;
        let oldest = tx.run([&[], &[]]).await?;
        let ages = oldest.iter().filter_map(|rows| rows.first()).map(|row| seconds(row.get(0)));
        Ok(ages.max().unwrap_or_default())
    }
}

/// Converts an age, which is negative if Postgres's clock has stepped back. That reads as zero.
fn seconds(age: f64) -> Duration {
    Duration::try_from_secs_f64(age).unwrap_or_default()
}
