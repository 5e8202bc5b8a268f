//! Jobs whose message is lost, or may be. They are made due again, so that their message is published once
//! more. The claim makes a second message harmless.

use std::time::Duration;

use job::Name;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use crate::database::{Params, millis, query, read_name};
use crate::{Store, StoreError};

/// A CTE for WITH RECURSIVE, named after a waiting state: the pools that have jobs in that state, and a last
/// row without a pool. It goes from one pool to the next by an index and reads none of the jobs between them:
/// a pool may have a million.
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

/// One statement per state, because a plan for any state could use no index. It waits for locks instead of
/// skipping them, because a confirm that is being noted at this moment may be false. It locks in the order of
/// job ids, as all statements that lock jobs do.
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
    /// Makes jobs due again if their publisher has noted neither a confirm nor a failure, because it died.
    /// Returns how many.
    pub async fn return_stuck(&self, older_than: Duration) -> Result<u64, StoreError> {
        self.count("return_stuck", RETURN_STUCK, &[&millis(older_than)]).await
    }

    /// Returns the pools that have jobs queued for longer than this.
    pub async fn pools_queued_longer_than(&self, age: Duration) -> Result<Vec<Name>, StoreError> {
        let rows = query(&self.pool, "queued_pools", QUEUED_POOLS, &[&millis(age)]).await?;
        Ok(rows.iter().filter_map(|row| read_name(row, 0)).collect())
    }

    /// Makes jobs due again if they have been queued for longer than this. The caller must have seen their
    /// queue empty. Because of this, a queue that is purged or deleted loses no job. Returns how many.
    pub async fn return_vanished(&self, pool: &Name, older_than: Duration) -> Result<u64, StoreError> {
        self.count("return_vanished", RETURN_VANISHED, &[&pool.as_str(), &millis(older_than)]).await
    }

    /// Makes all jobs of a pool due again if their message was in its queue, or on the way there, when the
    /// queue was deleted. Call this when the queue exists again, so that later messages go to the new one. It
    /// includes jobs whose message the broker has confirmed, because RabbitMQ confirms messages that are on
    /// the way to a quorum queue when it is deleted. Returns how many. A job whose message a worker has at
    /// that moment is published once too often, which its claim makes harmless.
    ///
    /// It takes only jobs that were due before `lost_before`, a moment before which nothing was published to
    /// the new queue. Jobs that another process has returned are due later. So a job is not published by each
    /// process that learns of the deletion.
    pub async fn return_lost(&self, pool: &Name, lost_before: std::time::Instant) -> Result<u64, StoreError> {
        let mut returned = 0;
        for statement in RETURN_LOST {
            // The clock is read again: jobs that were falsely confirmed during the first pass are `queued`
            // since then.
            let clock = self.clock().await?;
            let (now, lost_before) = (clock.now(), clock.at(Instant::from_std(lost_before)));
            loop {
                let params: [&(dyn ToSql + Sync); 3] = [&pool.as_str(), &now, &lost_before];
                let rows = query(&self.pool, "return_lost", statement, &params).await?;
                // One row: how many jobs were found, which others may have changed meanwhile, and how many
                // were returned.
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
