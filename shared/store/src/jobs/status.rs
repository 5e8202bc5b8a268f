//! The state of jobs, live or ended, and of the fleet as a whole.

use std::collections::{BTreeMap, HashMap};

use job::{Failure, JobId, JobState, Json, Labels, Name, SessionKey, Tenant, TraceId, Usd};
use serde::Serialize;
use tokio_postgres::Row;
use uuid::Uuid;

use super::inputs::{OpenInput, questions_of, read_questions};
use super::labels::{labels_of, read_labels};
use crate::database::{query, read_job_id, read_state, read_usd, rfc3339, uuids};
use crate::{Store, StoreError};

/// A job as its caller sees it.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// The job.
    pub job_id: JobId,
    /// The trace that holds its attempts.
    pub trace_id: TraceId,
    /// Its tenant.
    #[serde(skip_serializing_if = "Tenant::is_default")]
    pub tenant: Tenant,
    /// Its session.
    pub session_id: String,
    /// Its agent.
    pub agent_id: String,
    /// Its pool.
    pub pool: String,
    /// Its labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its state.
    pub state: JobState,
    /// Attempts spent.
    pub attempts: i32,
    /// Iterations that are safe in the ledger.
    pub iterations: i64,
    /// Spend so far.
    pub cost_usd: Usd,
    /// Tokens read so far.
    pub input_tokens: i64,
    /// Tokens written so far.
    pub output_tokens: i64,
    /// The worker that runs it or ended it.
    pub worker_id: Option<Uuid>,
    /// RFC 3339, UTC.
    pub accepted_at: String,
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// RFC 3339, UTC.
    pub finished_at: Option<String>,
    /// What it asks persons, while it waits for their answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<OpenInput>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What it delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Json>,
}

/// A job without what was said and what was spent: it is as small as its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobHead {
    /// The job.
    pub job_id: JobId,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its session.
    pub session_id: String,
    /// Its state.
    pub state: JobState,
    /// RFC 3339, UTC.
    pub accepted_at: String,
}

/// Sums over the ledger.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FleetCounts {
    /// Live jobs by state.
    pub jobs: BTreeMap<String, i64>,
    /// Workers that hold a lease or drain.
    pub workers: i64,
    /// Jobs that wait and could start: ready at the broker, or about to be published.
    pub waiting: i64,
    /// Seconds since the oldest waiting job could start.
    pub oldest_waiting_s: f64,
}

/// A session in the middle of its work.
#[derive(Clone, Debug, Serialize)]
pub struct SessionProgress {
    /// Its name.
    pub session_id: String,
    /// Iterations that are safe in the ledger.
    pub iterations: i64,
    /// The worker that runs it.
    pub worker_id: Option<Uuid>,
    /// Jobs ended.
    pub ended: i64,
    /// Attempts spent by jobs that are live.
    pub attempts: i64,
}

const READ_LIVE: &str = concat!(
    "SELECT j.job_id, j.session_id, j.agent_id, j.pool, j.state, j.attempts,
       c.iterations + coalesce(j.folded_iterations, 0), c.cost + coalesce(j.folded_cost_microusd, 0),
       c.tokens_in + coalesce(j.folded_input_tokens, 0), c.tokens_out + coalesce(j.folded_output_tokens, 0), j.worker_id, ",
    rfc3339!("j.accepted_at"),
    ", ",
    rfc3339!("j.started_at"),
    ", NULL::text, j.failure::text, NULL::text, j.trace_id, ",
    labels_of!("j.job_id"),
    ", CASE WHEN j.state = 'awaiting_input' THEN ",
    questions_of!("j.job_id"),
    " END
  FROM harness_jobs j
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(iterations), 0)::bigint AS iterations, coalesce(sum(cost_microusd), 0)::bigint AS cost,
              coalesce(sum(input_tokens), 0)::bigint AS tokens_in, coalesce(sum(output_tokens), 0)::bigint AS tokens_out
         FROM harness_checkpoints c WHERE c.session_id = j.session_id AND c.job_id = j.job_id) c
 WHERE j.job_id = ANY($1)"
);

/// The columns of an ended job `r`, as [`read_view`] takes them. What may be large is read only where the condition holds.
macro_rules! ended_columns {
    ($is_read:literal) => {
        concat!(
            "r.job_id, r.session_id, r.agent_id, r.pool, r.state, r.attempts, r.iterations, r.cost_microusd,
             r.input_tokens, r.output_tokens, r.worker_id, ",
            rfc3339!("r.accepted_at"),
            ", ",
            rfc3339!("r.started_at"),
            ", ",
            rfc3339!("r.finished_at"),
            ", CASE WHEN ",
            $is_read,
            " THEN r.failure::text END, CASE WHEN ",
            $is_read,
            " THEN r.output::text END, r.trace_id, CASE WHEN ",
            $is_read,
            " THEN ",
            labels_of!("r.job_id"),
            " END, NULL::text"
        )
    };
}
pub(super) use ended_columns;

const READ_ENDED: &str = concat!(
    "SELECT ",
    ended_columns!("true"),
    "
  FROM unnest($1::uuid[]) AS t(job_id)
 CROSS JOIN LATERAL (SELECT * FROM harness_results r WHERE r.job_id = t.job_id OFFSET 0) r"
);

const READ_LIVE_HEADS: &str = concat!(
    "SELECT job_id, session_id, state, ",
    rfc3339!("accepted_at"),
    " FROM harness_jobs WHERE job_id = ANY($1)"
);

const READ_ENDED_HEADS: &str = concat!(
    "SELECT r.job_id, r.session_id, r.state, ",
    rfc3339!("r.accepted_at"),
    "
  FROM unnest($1::uuid[]) AS t(job_id)
 CROSS JOIN LATERAL (
       SELECT job_id, session_id, state, accepted_at FROM harness_results r WHERE r.job_id = t.job_id OFFSET 0) r"
);

/// What is asked about jobs: of live ones, then of ended ones, each with the question's name; and how a row is read.
struct Looked<T> {
    live: (&'static str, &'static str),
    ended: (&'static str, &'static str),
    read: fn(&Row) -> T,
}

const VIEWS: Looked<JobView> =
    Looked { live: ("jobs_live", READ_LIVE), ended: ("jobs_ended", READ_ENDED), read: read_view };
const HEADS: Looked<JobHead> = Looked {
    live: ("live_heads", READ_LIVE_HEADS),
    ended: ("ended_heads", READ_ENDED_HEADS),
    read: read_head,
};

const ENDED_AMONG: &str = "
    SELECT r.job_id, r.state FROM unnest($1::uuid[]) AS t(job_id)
     CROSS JOIN LATERAL (SELECT job_id, state FROM harness_results r WHERE r.job_id = t.job_id OFFSET 0) r";

const COUNT_STATES: &str =
    "SELECT state, count(*) FROM harness_jobs WHERE $1::text IS NULL OR pool = $1 GROUP BY state";

const COUNT_FLEET: &str = "
    SELECT (SELECT count(*) FROM harness_workers
             WHERE state IN ('alive', 'draining') AND ($1::text IS NULL OR pool = $1)),
           count(*), coalesce(extract(epoch FROM now() - min(greatest(accepted_at, due_at))), 0)::float8
      FROM harness_jobs
     WHERE (state IN ('waiting', 'publishing', 'queued') OR (state = 'scheduled' AND due_at <= now()))
       AND ($1::text IS NULL OR pool = $1)";

const SESSION_PROGRESS: &str = "
    SELECT s.session_id,
           s.iteration_count + (SELECT coalesce(sum(iterations), 0)::bigint FROM harness_checkpoints c
                                 WHERE c.session_id = s.session_id),
           r.worker_id,
           (SELECT count(*) FROM harness_results e WHERE e.session_id = s.session_id),
           (SELECT coalesce(sum(attempts), 0)::bigint FROM harness_jobs j WHERE j.session_id = s.session_id)
      FROM harness_sessions s
      LEFT JOIN harness_jobs r ON r.session_id = s.session_id AND r.state = 'running'
     WHERE s.session_id = ANY($1)
     ORDER BY s.session_id";

impl JobView {
    /// A job of which the ledger has only the order to start it.
    pub(crate) fn scheduled(job_id: JobId, tenant: Tenant, accepted_at: String) -> JobView {
        JobView {
            job_id,
            trace_id: job_id.into(),
            tenant,
            session_id: job_id.to_string(),
            agent_id: String::new(),
            pool: String::new(),
            labels: Labels::default(),
            state: JobState::Scheduled,
            attempts: 0,
            iterations: 0,
            cost_usd: Usd::default(),
            input_tokens: 0,
            output_tokens: 0,
            worker_id: None,
            accepted_at,
            started_at: None,
            finished_at: None,
            failure: None,
            questions: Vec::new(),
            output: None,
        }
    }

    /// Its size in memory, about.
    pub fn bytes(&self) -> usize {
        let failure = self.failure.as_ref().map_or(0, |failure| failure.message.len());
        size_of::<JobView>() + 256 + failure + self.output.as_ref().map_or(0, |output| output.as_str().len())
    }
}

impl Store {
    /// Returns those of these jobs that the ledger knows, in the order asked for. All that was said is among it, so a
    /// caller that asks for many needs memory for their outputs.
    pub async fn jobs(&self, ids: &[JobId]) -> Result<Vec<JobView>, StoreError> {
        let mut views = self.look(ids, VIEWS).await?;
        Ok(ids.iter().filter_map(|id| views.remove(id)).collect())
    }

    /// The same without what was said and what was spent, for callers that ask about many jobs.
    pub async fn job_heads(&self, ids: &[JobId]) -> Result<HashMap<JobId, JobHead>, StoreError> {
        self.look(ids, HEADS).await
    }

    async fn look<T: From<JobView>>(
        &self,
        ids: &[JobId],
        looked: Looked<T>,
    ) -> Result<HashMap<JobId, T>, StoreError> {
        let missing = |found: &HashMap<JobId, T>| -> Vec<JobId> {
            ids.iter().filter(|id| !found.contains_key(id)).copied().collect()
        };
        let mut found = self.look_at_begun(ids, &looked).await?;
        let left = missing(&found);
        if left.is_empty() {
            return Ok(found);
        }
        let in_inbox = self.inbox_views(&left).await?;
        found.extend(in_inbox.into_iter().map(|view| (view.job_id, view.into())));
        // What has left the inbox in between is among the jobs now.
        let left = missing(&found);
        if !left.is_empty() {
            found.extend(self.look_at_begun(&left, &looked).await?);
        }
        Ok(found)
    }

    async fn look_at_begun<T>(
        &self,
        ids: &[JobId],
        looked: &Looked<T>,
    ) -> Result<HashMap<JobId, T>, StoreError> {
        let uuids = uuids(ids);
        let Looked { live, ended, read } = looked;
        // Live ones first: a job that ends in between is then found among the ended.
        let live = query(&self.pool, live.0, live.1, &[&uuids]).await?;
        let ended = query(&self.pool, ended.0, ended.1, &[&uuids]).await?;
        Ok(live.iter().chain(&ended).map(|row| (read_job_id(row, 0), read(row))).collect())
    }

    /// Returns those of these jobs that have ended, with their final states.
    pub async fn ended_among(&self, ids: &[JobId]) -> Result<Vec<(JobId, JobState)>, StoreError> {
        let rows = query(&self.pool, "ended_among", ENDED_AMONG, &[&uuids(ids)]).await?;
        Ok(rows.iter().map(|row| (read_job_id(row, 0), read_state(row, 1))).collect())
    }

    /// Counts live jobs by state and workers, and finds the age of the backlog: of one pool, or of all.
    pub async fn fleet_counts(&self, pool: Option<&Name>) -> Result<FleetCounts, StoreError> {
        let pool = pool.map(Name::as_str);
        let states = query(&self.pool, "count_states", COUNT_STATES, &[&pool]).await?;
        let fleet = query(&self.pool, "count_fleet", COUNT_FLEET, &[&pool]).await?;
        let mut counts = FleetCounts {
            jobs: states.iter().map(|row| (row.get(0), row.get(1))).collect(),
            ..FleetCounts::default()
        };
        if let Some(row) = fleet.first() {
            (counts.workers, counts.waiting, counts.oldest_waiting_s) = (row.get(0), row.get(1), row.get(2));
        }
        Ok(counts)
    }

    /// Returns how far these sessions of the tenant `default` are.
    pub async fn session_progress(&self, sessions: &[Name]) -> Result<Vec<SessionProgress>, StoreError> {
        let names: Vec<&str> = sessions.iter().map(Name::as_str).collect();
        let rows = query(&self.pool, "session_progress", SESSION_PROGRESS, &[&names]).await?;
        let progress = |row: &Row| SessionProgress {
            session_id: row.get(0),
            iterations: row.get(1),
            worker_id: row.get(2),
            ended: row.get(3),
            attempts: row.get(4),
        };
        Ok(rows.iter().map(progress).collect())
    }
}

impl From<JobView> for JobHead {
    fn from(view: JobView) -> JobHead {
        let JobView { job_id, tenant, session_id, state, accepted_at, .. } = view;
        JobHead { job_id, tenant, session_id, state, accepted_at }
    }
}

fn read_head(row: &Row) -> JobHead {
    let (tenant, session) = SessionKey::split(row.get(1));
    JobHead {
        job_id: read_job_id(row, 0),
        tenant,
        session_id: session.into(),
        state: read_state(row, 2),
        accepted_at: row.get(3),
    }
}

pub(super) fn read_view(row: &Row) -> JobView {
    let failure: Option<String> = row.get(14);
    let output: Option<String> = row.get(15);
    let (tenant, session) = SessionKey::split(row.get(1));
    let (job_id, trace) = (read_job_id(row, 0), row.get::<_, Option<Uuid>>(16));
    JobView {
        job_id,
        trace_id: trace.and_then(|trace| trace.try_into().ok()).unwrap_or(job_id.into()),
        tenant,
        session_id: session.into(),
        agent_id: row.get(2),
        pool: row.get(3),
        labels: read_labels(row, 17),
        state: read_state(row, 4),
        attempts: row.get(5),
        iterations: row.get(6),
        cost_usd: read_usd(row, 7),
        input_tokens: row.get(8),
        output_tokens: row.get(9),
        worker_id: row.get(10),
        accepted_at: row.get(11),
        started_at: row.get(12),
        finished_at: row.get(13),
        questions: read_questions(row, 18),
        failure: failure.and_then(|text| serde_json::from_str(&text).ok()),
        output: output.and_then(|text| Json::parse(&text).ok()),
    }
}
