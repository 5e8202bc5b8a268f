//! The way to the broker and back into line: accept, due, confirmed, unconfirmed.

use job::{JobId, JobSpec, Name, TraceId};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::database::{Params, Tx, millis, query, read_job_id};
use crate::{Store, StoreError};

/// What became of a submitted job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the ledger now.
    New,
    /// The same id was accepted before: nothing changed.
    Duplicate,
    /// Postgres cannot hold it, for this reason: nothing changed.
    Refused(String),
}

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

const ACCEPT: &str = "
    INSERT INTO harness_jobs (job_id, session_id, agent_id, user_id, pool, message, deadline_at, trace_id, state, due_at)
    SELECT job_id, session_id, agent_id, user_id, pool, message::json, to_timestamp(deadline / 1000), trace_id,
           'publishing', now()
      FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::float8[], $8::uuid[])
      WITH ORDINALITY AS t(job_id, session_id, agent_id, user_id, pool, message, deadline, trace_id, turn)
     ORDER BY turn
    ON CONFLICT DO NOTHING
    RETURNING job_id";

/// The second statement behind an insert of jobs that may have ended: the insert has waited for whoever was ending one,
/// and only a fresh snapshot sees that end.
pub(crate) const DROP_ENDED: &str = "
    DELETE FROM harness_jobs
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM unnest($1::uuid[]) AS t(job_id)
            WHERE (SELECT r.job_id FROM harness_results r WHERE r.job_id = t.job_id) IS NOT NULL))
    RETURNING job_id";

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

const TAKE_DUE: &str = "
    UPDATE harness_jobs SET state = 'publishing', state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM harness_jobs WHERE state = 'scheduled' AND due_at <= now()
            ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING job_id, pool, message::text";

const CONFIRM: &str = "
    UPDATE harness_jobs SET state = 'queued', state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM harness_jobs WHERE job_id = ANY($1) AND state = 'publishing' FOR UPDATE SKIP LOCKED))";

const UNCONFIRMED: &str = "
    UPDATE harness_jobs SET state = 'scheduled', due_at = now() + $2 * interval '1 millisecond', state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM harness_jobs WHERE job_id = ANY($1) AND state = 'publishing' FOR UPDATE SKIP LOCKED))";

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

/// New jobs as the statements take them that insert them.
pub(crate) struct Columns<'a> {
    pub(crate) jobs: Vec<Uuid>,
    sessions: Vec<&'a str>,
    agents: Vec<&'a str>,
    users: Vec<Option<&'a str>>,
    pools: Vec<&'a str>,
    messages: Vec<String>,
    deadlines: Vec<Option<f64>>,
    traces: Vec<Option<Uuid>>,
}

impl<'a> Columns<'a> {
    pub(crate) fn of(specs: impl Iterator<Item = &'a JobSpec> + Clone) -> Columns<'a> {
        Columns {
            jobs: specs.clone().map(|spec| spec.job_id.into()).collect(),
            sessions: specs.clone().map(|spec| spec.session_id.as_str()).collect(),
            agents: specs.clone().map(|spec| spec.agent_id.as_str()).collect(),
            users: specs.clone().map(|spec| spec.user_id.as_deref()).collect(),
            pools: specs.clone().map(|spec| spec.pool.as_str()).collect(),
            messages: specs.clone().map(job::encode).collect(),
            deadlines: specs.clone().map(|spec| spec.deadline_unix_ms().map(|ms| ms as f64)).collect(),
            traces: specs.map(foreign_trace).collect(),
        }
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 8] {
        let Columns { jobs, sessions, agents, users, pools, messages, deadlines, traces } = self;
        [jobs, sessions, agents, users, pools, messages, deadlines, traces]
    }
}

/// What is kept of a job's trace: nothing, where it is the job's own.
fn foreign_trace(spec: &JobSpec) -> Option<Uuid> {
    foreign(spec.job_id, spec.trace_id())
}

/// The trace, unless it is the job's own.
pub(crate) fn foreign(job_id: JobId, trace_id: TraceId) -> Option<Uuid> {
    (trace_id != job_id.into()).then(|| trace_id.into())
}

impl Store {
    /// Takes jobs into the ledger, in order, as already being published: the caller publishes them next, and if
    /// it dies first, they come due by [`Store::return_stuck`]. One that is refused keeps no other out.
    pub async fn accept(&self, specs: &[JobSpec]) -> Result<Vec<Accepted>, StoreError> {
        match self.accept_together(specs).await {
            Err(error) if error.may_lie_in_one_call() => {}
            answers => return answers,
        }
        let mut answers = Vec::with_capacity(specs.len());
        for spec in specs {
            answers.push(match self.accept_together(std::slice::from_ref(spec)).await {
                Ok(mut one) => one.remove(0),
                Err(refused @ StoreError::Refused { .. }) => Accepted::Refused(refused.to_string()),
                Err(error) => return Err(error),
            });
        }
        Ok(answers)
    }

    async fn accept_together(&self, specs: &[JobSpec]) -> Result<Vec<Accepted>, StoreError> {
        let columns = Columns::of(specs.iter());
        let jobs = &columns.jobs;
        let tx = Tx::prepare(&self.pool, "accept", [ACCEPT, DROP_ENDED]).await?;
        let [inserted, ended] = tx.run([&columns.params(), &[jobs]]).await?;
        let mut new: HashSet<Uuid> = inserted.iter().map(|row| row.get(0)).collect();
        for row in &ended {
            new.remove(&row.get(0));
        }
        // An id that stands twice in one call is new once.
        let accepted = |id: &Uuid| if new.remove(id) { Accepted::New } else { Accepted::Duplicate };
        Ok(jobs.iter().map(accepted).collect())
    }

    /// Takes jobs that are due, oldest first, to publish them. No other relay gets the same ones.
    pub async fn take_due(&self, limit: i64) -> Result<Vec<DueJob>, StoreError> {
        let rows = query(&self.pool, "take_due", TAKE_DUE, &[&limit]).await?;
        let due = |row: &tokio_postgres::Row| DueJob {
            job_id: read_job_id(row, 0),
            pool: row.get::<_, String>(1).try_into().expect("only valid pool names are written"),
            message: row.get(2),
        };
        Ok(rows.iter().map(due).collect())
    }

    /// Notes the broker's confirm, for those that are still being published.
    pub async fn confirm(&self, jobs: &[JobId]) -> Result<(), StoreError> {
        let jobs: Vec<Uuid> = jobs.iter().map(|id| (*id).into()).collect();
        query(&self.pool, "confirm", CONFIRM, &[&jobs]).await?;
        Ok(())
    }

    /// Makes jobs due again, after a while, that the broker did not take.
    pub async fn unconfirmed(&self, jobs: &[JobId], again_in: Duration) -> Result<(), StoreError> {
        let jobs: Vec<Uuid> = jobs.iter().map(|id| (*id).into()).collect();
        query(&self.pool, "unconfirmed", UNCONFIRMED, &[&jobs, &millis(again_in)]).await?;
        Ok(())
    }

    /// Makes jobs due again whose publisher noted neither a confirm nor a failure: it died. Returns how many.
    pub async fn return_stuck(&self, older_than: Duration) -> Result<u64, StoreError> {
        self.count("return_stuck", RETURN_STUCK, &[&millis(older_than)]).await
    }

    /// Pools that have jobs queued for longer than this.
    pub async fn pools_queued_longer_than(&self, age: Duration) -> Result<Vec<Name>, StoreError> {
        let rows = query(&self.pool, "queued_pools", QUEUED_POOLS, &[&millis(age)]).await?;
        Ok(rows.iter().filter_map(|row| row.get::<_, String>(0).try_into().ok()).collect())
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
