//! Failed jobs as dead letters: which of them are open, and how they are redriven or dismissed.
//!
//! A failed job stays in `harness_results`, where it ended, until retention removes it. It is open until it
//! is redriven (a new job does its work again) or dismissed. Only one of the two happens, and only once.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use job::{JobId, JobSpec, JobState, Label, Name, SessionKey, Tenant};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::accept::accepted;
use super::columns::{Columns, insert_for_publishing, new_jobs};
use super::labels::{LabelColumns, has_labels};
use crate::access::jobs_logged;
use crate::database::{Tx, millis, query, read_job_id, read_state, rfc3339, uuids};
use crate::{Store, StoreError};

/// Selects failed jobs. A field that is `None` lets all of them pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureFilter {
    /// The failure's code.
    pub code: Option<String>,
    /// The tenant.
    pub tenant: Option<Tenant>,
    /// The session: of that tenant, or of `default` if none is given.
    pub session: Option<Name>,
    /// The agent.
    pub agent: Option<Name>,
    /// The pool.
    pub pool: Option<Name>,
    /// The labels, all of them.
    pub labels: Vec<Label>,
    /// Failed no longer ago than this.
    pub since: Option<Duration>,
    /// Failed longer ago than this.
    pub before: Option<Duration>,
}

/// A job that has failed.
#[derive(Clone, Debug)]
pub struct FailedJob {
    /// The job.
    pub job_id: JobId,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its session.
    pub session_id: Name,
    /// Its agent.
    pub agent_id: String,
    /// Its pool.
    pub pool: String,
    /// Attempts spent.
    pub attempts: i32,
    /// The failure's code.
    pub code: String,
    /// The failure's message.
    pub reason: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    /// The same as Unix time in milliseconds.
    pub finished_unix_ms: i64,
    /// The job that does its work again.
    pub redriven_as: Option<JobId>,
    /// When it was dismissed; RFC 3339, UTC.
    pub dismissed_at: Option<String>,
    /// The envelope, where it was kept and asked for.
    pub message: Option<String>,
}

impl FailureFilter {
    /// Returns the key of the session that is selected.
    pub fn session_key(&self) -> Option<SessionKey> {
        let tenant = self.tenant.clone().unwrap_or_default();
        self.session.as_ref().map(|session| SessionKey::new(&tenant, session))
    }
}

impl FailedJob {
    /// Returns whether it was neither redriven nor dismissed.
    pub fn is_open(&self) -> bool {
        self.redriven_as.is_none() && self.dismissed_at.is_none()
    }
}

/// The state of a job, for a caller that holds a dead letter of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The job.
    pub job_id: JobId,
    /// The key of its session; `None` if it was cancelled before it was seen.
    pub session_key: Option<String>,
    /// Its state.
    pub state: JobState,
    /// Failed, and neither redriven nor dismissed.
    pub open: bool,
}

macro_rules! columns {
    ($message:literal) => {
        concat!(
            "SELECT r.job_id, r.session_id, r.agent_id, r.pool, r.attempts,
                    coalesce(r.failure ->> 'code', ''), coalesce(r.failure ->> 'message', ''), ",
            rfc3339!("r.finished_at"),
            ", (extract(epoch FROM r.finished_at) * 1000)::bigint, r.redriven_as, ",
            rfc3339!("r.dismissed_at"),
            ", ",
            $message,
            " FROM "
        )
    };
}

/// The condition of the index harness_results_failed comes first, so that the filter reads only rows of that
/// index.
macro_rules! open {
    () => {
        concat!(
            "harness_results r
          WHERE r.state = 'failed' AND r.redriven_as IS NULL AND r.dismissed_at IS NULL
            AND ($1::text IS NULL OR r.failure ->> 'code' = $1)
            AND ($2::text IS NULL OR r.session_id = $2)
            AND ($3::text IS NULL OR r.agent_id = $3)
            AND ($4::text IS NULL OR r.pool = $4)
            AND ($5::float8 IS NULL OR r.finished_at >= now() - $5 * interval '1 millisecond')
            AND ($6::float8 IS NULL OR r.finished_at < now() - $6 * interval '1 millisecond')
            AND ($7::text IS NULL OR r.tenant = $7)
            AND (cardinality($8::text[]) = 0 OR ",
            has_labels!("r.tenant", "r.job_id", "$8"),
            ")"
        )
    };
}

const OLDEST: &str = concat!(columns!("NULL::text"), open!(), " ORDER BY r.finished_at, r.job_id LIMIT $9");

const COUNT: &str = concat!("SELECT count(*) FROM ", open!());

const AFTER: &str = concat!(
    columns!("r.message::text"),
    open!(),
    " AND r.job_id > $9 AND r.finished_at <= $10 ORDER BY r.job_id LIMIT $11"
);

const AMONG: &str = concat!(
    columns!("r.message::text"),
    "unnest($1::uuid[]) AS t(job_id)
      CROSS JOIN LATERAL (SELECT * FROM harness_results r WHERE r.job_id = t.job_id AND r.state = 'failed' OFFSET 0) r
      ORDER BY r.job_id"
);

const STANDING: &str = "
    SELECT t.job_id, nullif(coalesce(j.session_id, r.session_id), ''), coalesce(j.state, r.state),
           coalesce(r.state = 'failed' AND r.redriven_as IS NULL AND r.dismissed_at IS NULL, false)
      FROM unnest($1::uuid[]) AS t(job_id)
      LEFT JOIN LATERAL (SELECT state, session_id FROM harness_jobs j WHERE j.job_id = t.job_id OFFSET 0) j ON true
      LEFT JOIN LATERAL (SELECT state, session_id, redriven_as, dismissed_at
                           FROM harness_results r WHERE r.job_id = t.job_id OFFSET 0) r ON true
     WHERE coalesce(j.state, r.state) IS NOT NULL";

/// A statement that waits here for a redrive of the same job then sees its mark, and skips the job.
macro_rules! lock_open {
    ($jobs:literal) => {
        concat!(
            "SELECT r.job_id FROM unnest(",
            $jobs,
            "::uuid[]) AS t(job_id) JOIN harness_results r ON r.job_id = t.job_id
          WHERE r.state = 'failed' AND r.redriven_as IS NULL AND r.dismissed_at IS NULL
          ORDER BY r.job_id FOR UPDATE OF r"
        )
    };
}

const REDRIVE: &str = concat!(
    "
    WITH open AS (",
    lock_open!("$12"),
    "
    ), incoming AS (
        SELECT * FROM ",
    new_jobs!("$12::uuid[]" as "failed"),
    "
    ), marked AS (
        UPDATE harness_results r SET redriven_as = i.job_id
          FROM open o JOIN incoming i ON i.failed = o.job_id
         WHERE r.job_id = o.job_id
        RETURNING r.redriven_as AS new_id
    )
    ",
    insert_for_publishing!(),
    "marked m JOIN incoming i ON i.job_id = m.new_id
     ORDER BY turn
    RETURNING job_id, state"
);

const LOG_REDRIVEN: &str = jobs_logged!(
    "jobs_redriven",
    ", 'redriven_as', jsonb_agg(redriven_as ORDER BY job_id)",
    "SELECT r.tenant, r.job_id, r.redriven_as
       FROM unnest($2::uuid[]) AS t(job_id)
      CROSS JOIN LATERAL (SELECT tenant, job_id, redriven_as FROM harness_results r
                           WHERE r.job_id = t.job_id AND r.redriven_as = ANY($3::uuid[]) OFFSET 0) r"
);

const DISMISS: &str = concat!(
    "
    UPDATE harness_results r SET dismissed_at = now()
      FROM (",
    lock_open!("$1"),
    ") o
     WHERE r.job_id = o.job_id
    RETURNING r.job_id"
);

/// A job is dismissed once.
const LOG_DROPPED: &str = jobs_logged!(
    "jobs_dropped",
    "",
    "SELECT r.tenant, r.job_id
       FROM unnest($2::uuid[]) AS t(job_id)
      CROSS JOIN LATERAL (SELECT tenant, job_id FROM harness_results r
                           WHERE r.job_id = t.job_id AND r.dismissed_at = now() OFFSET 0) r"
);

impl Store {
    /// Returns the open failed jobs without their envelopes, earliest failure first.
    pub async fn failed_jobs(
        &self,
        filter: &FailureFilter,
        limit: i64,
    ) -> Result<Vec<FailedJob>, StoreError> {
        let values = Values::of(filter);
        let mut params = values.params();
        params.push(&limit);
        Ok(query(&self.pool, "failed_jobs", OLDEST, &params).await?.iter().map(read).collect())
    }

    /// Counts the open failed jobs.
    pub async fn count_failed(&self, filter: &FailureFilter) -> Result<u64, StoreError> {
        let values = Values::of(filter);
        let rows = query(&self.pool, "count_failed", COUNT, &values.params()).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0) as u64))
    }

    /// Returns the next open failed jobs after this one that had failed by then, in the order of their ids.
    /// So a redrive that fails again does not come up again.
    pub async fn failed_after(
        &self,
        filter: &FailureFilter,
        after: Option<JobId>,
        by: SystemTime,
        limit: i64,
    ) -> Result<Vec<FailedJob>, StoreError> {
        let values = Values::of(filter);
        let after = after.map_or(Uuid::nil(), Uuid::from);
        let mut params = values.params();
        params.extend([&after as &(dyn ToSql + Sync), &by, &limit]);
        Ok(query(&self.pool, "failed_after", AFTER, &params).await?.iter().map(read).collect())
    }

    /// Returns those of these jobs that have failed, open or not, in the order of their ids.
    pub async fn failed_among(&self, jobs: &[JobId]) -> Result<Vec<FailedJob>, StoreError> {
        Ok(query(&self.pool, "failed_among", AMONG, &[&uuids(jobs)]).await?.iter().map(read).collect())
    }

    /// Returns the state of those of these jobs that the ledger knows.
    pub async fn standing(&self, jobs: &[JobId]) -> Result<Vec<Standing>, StoreError> {
        let rows = query(&self.pool, "standing", STANDING, &[&uuids(jobs)]).await?;
        let standing = |row: &Row| Standing {
            job_id: read_job_id(row, 0),
            session_key: row.get(1),
            state: read_state(row, 2),
            open: row.get(3),
        };
        Ok(rows.iter().map(standing).collect())
    }

    /// Takes new jobs into the ledger to do the work of failed ones again. Those that are `publishing` the caller publishes
    /// next. Returns the new jobs whose failed job was still open, and their states. Nothing happens to
    /// the others. The operators' log names the actor.
    pub async fn redrive(
        &self,
        actor: &str,
        jobs: &[(JobId, JobSpec)],
    ) -> Result<HashMap<JobId, JobState>, StoreError> {
        let failed: Vec<Uuid> = jobs.iter().map(|(failed, _)| (*failed).into()).collect();
        let columns = Columns::of(jobs.iter().map(|(_, spec)| spec));
        let labels = LabelColumns::of(jobs.iter().map(|(_, spec)| spec));
        let ids: Vec<Uuid> = jobs.iter().map(|(_, spec)| spec.job_id.into()).collect();
        let params = columns.params_and(&failed);
        let statements = [REDRIVE, LOG_REDRIVEN];
        let tx = Tx::prepare_more(&self.pool, "redrive", statements, labels.statement()).await?;
        let ([rows, _], _) = tx.run_more([&params, &[&actor, &failed, &ids]], &labels.params()).await?;
        let new = rows.iter().map(|row| (read_job_id(row, 0), read_state(row, 1)));
        let new: HashMap<JobId, JobState> = new.collect();
        self.changes.note(|| {
            let specs = jobs.iter().map(|(_, spec)| spec);
            specs.filter_map(|spec| new.get(&spec.job_id).map(|state| accepted(spec, *state)))
        });
        Ok(new)
    }

    /// Dismisses failed jobs; their results stay. Returns those that were still open. The operators' log names the actor.
    pub async fn dismiss(&self, actor: &str, jobs: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids = uuids(jobs);
        let tx = Tx::prepare(&self.pool, "dismiss", [DISMISS, LOG_DROPPED]).await?;
        let [rows, _] = tx.run([&[&ids], &[&actor, &ids]]).await?;
        Ok(rows.iter().map(|row| read_job_id(row, 0)).collect())
    }
}

/// A filter as the parameters of a statement.
struct Values<'a> {
    code: Option<&'a str>,
    session: Option<String>,
    agent: Option<&'a str>,
    pool: Option<&'a str>,
    ages: [Option<f64>; 2],
    tenant: Option<&'a str>,
    labels: Vec<String>,
}

impl Values<'_> {
    fn of(filter: &FailureFilter) -> Values<'_> {
        Values {
            code: filter.code.as_deref(),
            session: filter.session_key().map(String::from),
            agent: filter.agent.as_ref().map(Name::as_str),
            pool: filter.pool.as_ref().map(Name::as_str),
            ages: [filter.since.map(millis), filter.before.map(millis)],
            tenant: filter.tenant.as_ref().map(Tenant::as_str),
            labels: filter.labels.iter().map(Label::to_string).collect(),
        }
    }

    fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        let Values { code, session, agent, pool, ages: [since, before], tenant, labels } = self;
        vec![code, session, agent, pool, since, before, tenant, labels]
    }
}

fn read(row: &Row) -> FailedJob {
    let (tenant, session_id) = SessionKey::split(row.get(1));
    FailedJob {
        job_id: read_job_id(row, 0),
        tenant,
        session_id,
        agent_id: row.get(2),
        pool: row.get(3),
        attempts: row.get(4),
        code: row.get(5),
        reason: row.get(6),
        finished_at: row.get(7),
        finished_unix_ms: row.get(8),
        redriven_as: row.get::<_, Option<Uuid>>(9).map(JobId::of_ledger),
        dismissed_at: row.get(10),
        message: row.get(11),
    }
}
