//! Dispatch: gives out the jobs that are due for publishing, and notes whether the broker took them.

use std::time::Duration;

use job::{JobId, JobSpec, JobState, Name};
use tracing::error;

use super::columns::{has_line, no_place};
use crate::database::{millis, query, read_change, read_job_id, read_name, read_state, uuids};
use crate::{Store, StoreError};

/// A job whose message is to be published.
#[derive(Clone, Debug)]
pub struct DueJob {
    /// The job.
    pub job_id: JobId,
    /// The pool whose queue it goes to.
    pub pool: Name,
    /// The envelope.
    pub message: String,
}

impl DueJob {
    /// This job, which was accepted a moment ago.
    pub fn of(spec: &JobSpec) -> DueJob {
        DueJob::encoded(spec, job::encode(spec))
    }

    /// The same, where its envelope is written already.
    pub fn encoded(spec: &JobSpec, message: String) -> DueJob {
        DueJob { job_id: spec.job_id, pool: spec.pool.clone(), message }
    }
}

/// What is due for the first time gets its place in its session, in the order of due times (`width_bucket` finds a job by
/// halves in a sorted array). Where the pool has a line, it waits there; a job that has begun does so before all others.
const TAKE_DUE: &str = concat!(
    "
    WITH due AS MATERIALIZED (
        SELECT job_id, seq, due_at FROM harness_jobs WHERE state = 'scheduled' AND due_at <= now()
            ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ), placed AS MATERIALIZED (
        SELECT job_id, nextval('harness_jobs_seq_seq') AS place
          FROM (SELECT job_id FROM due WHERE seq = ",
    no_place!(),
    " ORDER BY due_at, job_id) first
    ), places AS MATERIALIZED (
        SELECT array_agg(job_id ORDER BY job_id) AS jobs, array_agg(place ORDER BY job_id) AS places FROM placed
    )
    UPDATE harness_jobs j SET state_since = now(),
           state = CASE WHEN ",
    has_line!("pool"),
    " THEN 'waiting' ELSE 'publishing' END,
           lane = CASE WHEN epoch > 0 THEN 0 ELSE lane END,
           seq = CASE WHEN seq = ",
    no_place!(),
    " THEN (SELECT places[width_bucket(j.job_id, jobs)] FROM places) ELSE seq END
     WHERE job_id = ANY(ARRAY(SELECT job_id FROM due))
    RETURNING job_id, session_id, pool, CASE WHEN state = 'publishing' THEN message::text END, state"
);

const CONFIRM: &str = "
    UPDATE harness_jobs SET state = 'queued', state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM harness_jobs WHERE job_id = ANY($1) AND state = 'publishing' FOR UPDATE SKIP LOCKED))
    RETURNING job_id, session_id";

const UNCONFIRMED: &str = "
    UPDATE harness_jobs SET state = 'scheduled', due_at = now() + $2 * interval '1 millisecond', state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM harness_jobs WHERE job_id = ANY($1) AND state = 'publishing' FOR UPDATE SKIP LOCKED))
    RETURNING job_id, session_id";

impl Store {
    /// Takes jobs that are due, oldest first: to publish them, or into their pool's line. One that is due for the first time
    /// enters its session's order. No other relay gets the same ones. Returns those to publish, and how many it took.
    pub async fn take_due(&self, limit: i64) -> Result<(Vec<DueJob>, i64), StoreError> {
        let rows = query(&self.pool, "take_due", TAKE_DUE, &[&limit]).await?;
        self.changes.note(|| rows.iter().map(|row| read_change(row, read_state(row, 4))));
        let due = |row: &tokio_postgres::Row| {
            let job_id = read_job_id(row, 0);
            let message: String = row.get::<_, Option<String>>(3)?;
            let Some(pool) = read_name(row, 2) else {
                error!(%job_id, "the row of this job in harness_jobs was changed by hand: its pool is no name, and it is not published");
                return None;
            };
            Some(DueJob { job_id, pool, message })
        };
        Ok((rows.iter().filter_map(due).collect(), rows.len() as i64))
    }

    /// Notes the broker's confirm, for those that are still being published.
    pub async fn confirm(&self, jobs: &[JobId]) -> Result<(), StoreError> {
        let rows = query(&self.pool, "confirm", CONFIRM, &[&uuids(jobs)]).await?;
        self.changes.note(|| rows.iter().map(|row| read_change(row, JobState::Queued)));
        Ok(())
    }

    /// Makes jobs that the broker did not take due again, after a while.
    pub async fn unconfirmed(&self, jobs: &[JobId], again_in: Duration) -> Result<(), StoreError> {
        let rows = query(&self.pool, "unconfirmed", UNCONFIRMED, &[&uuids(jobs), &millis(again_in)]).await?;
        self.changes.note(|| rows.iter().map(|row| read_change(row, JobState::Scheduled)));
        Ok(())
    }
}
