//! Dates from the future: what was written before Postgres's clock went back.
//!
//! Nothing dates a heartbeat or a job's state ahead, so a date that is yet to come was written by a clock
//! that was ahead then. If such rows were left alone, a dead worker would keep its jobs, and a job would stay
//! due later, for as long as that clock was wrong. A heartbeat is set to the present, which gives its worker
//! a whole lease from now and can kill no worker. A job's times are moved back as far as its state's date was
//! ahead, so that it waits for as long as it was meant to. A job's date that is ahead by less than a second
//! is left alone, because a transaction that began a moment after ours may have written it.

use std::time::SystemTime;

use tokio_postgres::types::ToSql;

use crate::database::query;
use crate::jobs::pools_in;
use crate::{Store, StoreError};

/// The answer is about the rows before the update, and counts locked ones as well, so it is false only when
/// none is left.
const REDATE_WORKERS: &str = "
    WITH redated AS (
        UPDATE harness_workers SET heartbeat_at = clock_timestamp()
         WHERE worker_id = ANY(ARRAY(
               SELECT worker_id FROM harness_workers
                WHERE state IN ('alive', 'draining') AND heartbeat_at > clock_timestamp() FOR UPDATE SKIP LOCKED))
    )
    SELECT EXISTS (SELECT FROM harness_workers
                    WHERE state IN ('alive', 'draining') AND heartbeat_at > clock_timestamp())";

/// Redates jobs that wait to be published or claimed. One statement per state, because a plan for any state
/// could use no index.
macro_rules! redate_waiting {
    ($state:literal) => {
        concat!(
            "WITH RECURSIVE ",
            pools_in!($state),
            "
    UPDATE harness_jobs SET due_at = due_at - (state_since - now()), state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT ahead.job_id FROM ",
            $state,
            " p
            CROSS JOIN LATERAL (
                  SELECT job_id FROM harness_jobs
                   WHERE state = '",
            $state,
            "' AND pool = p.pool AND state_since > now() + interval '1 second'
                   ORDER BY state_since LIMIT 1000 FOR UPDATE SKIP LOCKED) ahead
            LIMIT 1000))
    RETURNING job_id"
        )
    };
}
const REDATE_WAITING: [&str; 2] = [redate_waiting!("publishing"), redate_waiting!("queued")];

/// Redates the next jobs that are due later, in the order of their due time. No index shows which of them
/// have a date in the future, so all of them are read. A job without a place in its session is due at the moment that
/// its caller named, whatever the clock said when it came.
const REDATE_SCHEDULED: &str = "
    WITH page AS MATERIALIZED (
        SELECT max(due_at) AS last, count(*) AS found
          FROM (SELECT due_at FROM harness_jobs
                 WHERE state = 'scheduled' AND due_at > coalesce($1, now()) ORDER BY due_at LIMIT 1000) later
    ), redated AS (
        UPDATE harness_jobs
           SET due_at = CASE WHEN seq = 9223372036854775807 THEN due_at ELSE due_at - (state_since - now()) END, state_since = now()
         WHERE job_id = ANY(ARRAY(
               SELECT job_id FROM harness_jobs
                WHERE state = 'scheduled' AND due_at > coalesce($1, now()) AND due_at <= (SELECT last FROM page)
                  AND state_since > now() + interval '1 second'
                ORDER BY job_id FOR UPDATE SKIP LOCKED))
        RETURNING job_id
    )
    SELECT (SELECT count(*) FROM redated), CASE WHEN found = 1000 THEN last END FROM page";

/// The cursor of a walk over the jobs, a part at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Redating {
    /// The due time after which the walk over the scheduled jobs continues.
    behind: Option<SystemTime>,
    /// How many jobs were redated.
    pub jobs: u64,
}

impl Store {
    /// Sets heartbeats from the future to the present. Returns whether there may be more.
    pub async fn redate_workers(&self) -> Result<bool, StoreError> {
        let rows = query(&self.pool, "redate_workers", REDATE_WORKERS, &[]).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// Moves back the times of some jobs that are dated in the future. Returns whether there may be more.
    pub async fn redate_jobs(&self, walk: &mut Redating) -> Result<bool, StoreError> {
        let mut more = false;
        for statement in REDATE_WAITING {
            let redated = query(&self.pool, "redate_waiting", statement, &[]).await?.len();
            more |= redated > 0;
            walk.jobs += redated as u64;
        }
        let params: [&(dyn ToSql + Sync); 1] = [&walk.behind];
        let rows = query(&self.pool, "redate_scheduled", REDATE_SCHEDULED, &params).await?;
        let Some(row) = rows.first() else { return Ok(more) };
        walk.jobs += row.get::<_, i64>(0).unsigned_abs();
        let last: Option<SystemTime> = row.get(1);
        walk.behind = last.or(walk.behind);
        Ok(more || last.is_some())
    }
}
