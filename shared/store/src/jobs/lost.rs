//! Jobs whose message is lost, or may be: due again, so that it is published once more. A second message is met by the claim.

use std::time::Duration;

use job::Name;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use crate::database::{Params, millis, query, read_name};
use crate::{Store, StoreError};

/// A CTE of a WITH RECURSIVE, by the name of a waiting state: the pools that have jobs in it, and a last row without one. It
/// goes from one pool to the next, without a look at what lies between: a pool may have a million.
macro_rules! pools_in {
    ($state:literal) => {
        concat!(
            $state,
            " AS (
                SELECT (SELECT pool FROM harness_jobs WHERE state = '",
            $state,
            "' ORDER BY pool LIMIT 1) AS pool
                UNION ALL
                SELECT (SELECT j.pool FROM harness_jobs j
                         WHERE j.state = '",
            $state,
            "' AND j.pool > p.pool ORDER BY j.pool LIMIT 1)
                  FROM ",
            $state,
            " p WHERE p.pool IS NOT NULL
            )"
        )
    };
}
pub(crate) use pools_in;

const RETURN_STUCK: &str = concat!(
    "WITH RECURSIVE ",
    pools_in!("publishing"),
    "
    UPDATE harness_jobs SET state = 'scheduled', due_at = now(), state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT stuck.job_id FROM publishing p
            CROSS JOIN LATERAL (
                  SELECT job_id FROM harness_jobs
                   WHERE state = 'publishing' AND pool = p.pool AND state_since < now() - $1 * interval '1 millisecond'
                   ORDER BY state_since LIMIT 1000 FOR UPDATE SKIP LOCKED) stuck
            LIMIT 1000))
    RETURNING job_id"
);

const RETURN_VANISHED: &str = "
    UPDATE harness_jobs SET state = 'scheduled', due_at = now(), state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM harness_jobs
            WHERE state = 'queued' AND pool = $1 AND state_since < now() - $2 * interval '1 millisecond'
            LIMIT 1000 FOR UPDATE SKIP LOCKED))
    RETURNING job_id";

/// For one state each: a plan for any state could use no index. Waits for locks instead of skipping them: a confirm that is
/// being noted just now may be false. In the order of job ids, as everybody who locks jobs.
macro_rules! return_lost {
    ($state:literal) => {
        concat!(
            "
    WITH found AS MATERIALIZED (
        SELECT job_id FROM harness_jobs WHERE state = '",
            $state,
            "' AND pool = $1 AND state_since < $2 AND due_at < $3 ORDER BY state_since LIMIT 1000
    ), returned AS (
        UPDATE harness_jobs SET state = 'scheduled', due_at = now(), state_since = now()
         WHERE job_id = ANY(ARRAY(
               SELECT job_id FROM harness_jobs
                WHERE job_id = ANY(ARRAY(SELECT job_id FROM found)) AND due_at < $3 AND state = '",
            $state,
            "'
                ORDER BY job_id FOR UPDATE))
        RETURNING job_id
    )
    SELECT (SELECT count(*) FROM found), (SELECT count(*) FROM returned)"
        )
    };
}
const RETURN_LOST: [&str; 2] = [return_lost!("publishing"), return_lost!("queued")];

const QUEUED_POOLS: &str = concat!(
    "WITH RECURSIVE ",
    pools_in!("queued"),
    "
    SELECT pool FROM queued p
     WHERE pool IS NOT NULL
       AND (SELECT j.state_since FROM harness_jobs j WHERE j.state = 'queued' AND j.pool = p.pool
             ORDER BY j.state_since LIMIT 1) < now() - $1 * interval '1 millisecond'"
);

impl Store {
    /// Makes jobs due again whose publisher noted neither a confirm nor a failure: it died. Returns how many.
    pub async fn return_stuck(&self, older_than: Duration) -> Result<u64, StoreError> {
        self.count("return_stuck", RETURN_STUCK, &[&millis(older_than)]).await
    }

    /// Pools that have jobs queued for longer than this.
    pub async fn pools_queued_longer_than(&self, age: Duration) -> Result<Vec<Name>, StoreError> {
        let rows = query(&self.pool, "queued_pools", QUEUED_POOLS, &[&millis(age)]).await?;
        Ok(rows.iter().filter_map(|row| read_name(row, 0)).collect())
    }

    /// Makes jobs due again that were queued for longer than this, when the caller has seen their queue empty:
    /// a queue that was purged or deleted loses nothing. Returns how many.
    pub async fn return_vanished(&self, pool: &Name, older_than: Duration) -> Result<u64, StoreError> {
        self.count("return_vanished", RETURN_VANISHED, &[&pool.as_str(), &millis(older_than)]).await
    }

    /// Makes all jobs of a pool due again whose message was in its queue, or on the way there, when the queue was deleted.
    /// Called when the queue stands again, so that what is published from now on goes to the new one. Also what the broker
    /// has confirmed: RabbitMQ confirms what was under way to a quorum queue that is deleted. Returns how many; a job whose
    /// message a worker just has is published once too often, which its claim makes harmless.
    ///
    /// Only what was due before `lost_before`, a moment before which nothing was published to the new queue: what another process has
    /// returned is due later, and is not published by each process that hears of the deletion.
    pub async fn return_lost(&self, pool: &Name, lost_before: std::time::Instant) -> Result<u64, StoreError> {
        let mut returned = 0;
        for statement in RETURN_LOST {
            // Read anew: what was confirmed falsely while the first pass went on is `queued` since then.
            let clock = self.clock().await?;
            let (now, lost_before) = (clock.now(), clock.at(Instant::from_std(lost_before)));
            loop {
                let params: [&(dyn ToSql + Sync); 3] = [&pool.as_str(), &now, &lost_before];
                let rows = query(&self.pool, "return_lost", statement, &params).await?;
                // One row: how many were found, which others may have changed meanwhile, and how many were returned.
                let (found, some) =
                    rows.first().map_or((0, 0), |row| (row.get::<_, i64>(0), row.get::<_, i64>(1)));
                returned += some.unsigned_abs();
                if found == 0 {
                    break;
                }
            }
        }
        Ok(returned)
    }

    async fn count(&self, name: &'static str, sql: &str, params: &Params<'_>) -> Result<u64, StoreError> {
        Ok(query(&self.pool, name, sql, params).await?.len() as u64)
    }
}
