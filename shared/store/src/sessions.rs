//! Sessions, as people view them.

use job::{JobId, Name, SessionKey, Tenant, Usd};
use serde::Serialize;

use crate::access::logged;
use crate::database::{Tx, query, read_job_id, read_usd, rfc3339};
use crate::{Page, Store, StoreError};

/// A session: its folded state, and what has been checkpointed since.
#[derive(Clone, Debug, Serialize)]
pub struct SessionView {
    /// Its tenant.
    #[serde(skip_serializing_if = "Tenant::is_default")]
    pub tenant: Tenant,
    /// Its name.
    pub session_id: String,
    /// The agent of its first job.
    pub agent_id: String,
    /// The user on whose behalf its first job came.
    pub user_id: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub last_updated: String,
    /// Jobs folded so far.
    pub version: i64,
    /// Iterations, including those since the last fold.
    pub iteration_count: i64,
    /// Spend, including that since the last fold.
    pub cost_usd: Usd,
    /// Tokens read, including those since the last fold.
    pub input_tokens: i64,
    /// Tokens written, including those since the last fold.
    pub output_tokens: i64,
    /// At the last fold.
    pub memory: serde_json::Value,
    /// At the last fold.
    pub context_window: serde_json::Value,
    /// At the last fold.
    pub feature_progress: serde_json::Value,
    /// What has been appended since.
    pub checkpoints: Vec<CheckpointView>,
}

/// One delta that is not folded yet.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointView {
    /// The job that wrote it.
    pub job_id: JobId,
    /// The run that wrote it.
    pub epoch: i64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// What it adds.
    pub delta: serde_json::Value,
}

const READ: &str = concat!(
    "SELECT s.session_id, s.agent_id, s.user_id, ",
    rfc3339!("s.created_at"),
    ", ",
    rfc3339!("s.last_updated"),
    ", s.version,
       s.iteration_count + c.iterations, s.cost_microusd + c.cost, s.input_tokens + c.tokens_in,
       s.output_tokens + c.tokens_out, s.memory, s.context_window, s.feature_progress
  FROM harness_sessions s
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(iterations), 0)::bigint AS iterations, coalesce(sum(cost_microusd), 0)::bigint AS cost,
              coalesce(sum(input_tokens), 0)::bigint AS tokens_in, coalesce(sum(output_tokens), 0)::bigint AS tokens_out
         FROM harness_checkpoints c WHERE c.session_id = s.session_id) c
 WHERE s.session_id = $1"
);

const READ_CHECKPOINTS: &str = concat!(
    "SELECT job_id, epoch, ",
    rfc3339!("created_at"),
    ", delta FROM harness_checkpoints WHERE session_id = $1 ORDER BY epoch, ordinal"
);

/// A session in a list.
#[derive(Clone, Debug)]
pub struct SessionLine {
    /// Its name.
    pub session_id: String,
    /// The agent of its first job.
    pub agent_id: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub last_updated: String,
    /// Jobs folded so far.
    pub jobs: i64,
}

const LIST: &str = concat!(
    "SELECT session_id, agent_id, ",
    rfc3339!("created_at"),
    ", ",
    rfc3339!("last_updated"),
    ", version FROM harness_sessions WHERE session_id > $1 AND session_id < $2 ORDER BY session_id LIMIT $3"
);

/// What emptying a session's state came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emptied {
    /// The state is empty; the row and its counters stay.
    Done,
    /// It has jobs that have not ended.
    Busy,
    /// There is no such session.
    Unknown,
}

/// Holds up claims and conclusions of the session's jobs.
const LOCK: &str = "SELECT FROM harness_sessions WHERE session_id = $1 FOR UPDATE";

/// What was checkpointed since the last fold is counted, and then removed with the rest of the state.
const EMPTY: &str = concat!(
    "WITH free AS (
         SELECT $2::text AS session_id WHERE NOT EXISTS (SELECT FROM harness_jobs WHERE session_id = $2)
     ), cleared AS (
         DELETE FROM harness_checkpoints WHERE session_id = (SELECT session_id FROM free)
         RETURNING iterations, cost_microusd, input_tokens, output_tokens
     ), sums AS (
         SELECT coalesce(sum(iterations), 0)::bigint AS iterations, coalesce(sum(cost_microusd), 0)::bigint AS cost,
                coalesce(sum(input_tokens), 0)::bigint AS tokens_in, coalesce(sum(output_tokens), 0)::bigint AS tokens_out
           FROM cleared
     ), made AS (
         UPDATE harness_sessions s
            SET memory = DEFAULT, context_window = DEFAULT, feature_progress = DEFAULT, last_updated = now(),
                iteration_count = s.iteration_count + c.iterations, cost_microusd = s.cost_microusd + c.cost,
                input_tokens = s.input_tokens + c.tokens_in, output_tokens = s.output_tokens + c.tokens_out
           FROM sums c WHERE s.session_id = (SELECT session_id FROM free)
         RETURNING s.tenant)",
    logged!("session_emptied", "tenant", "jsonb_build_object('session_id', $3::text)", "made")
);

impl Store {
    /// Empties a session's state: memory, context window, progress. An actor is noted in the operators' log.
    pub async fn empty_session(&self, actor: &str, key: &SessionKey) -> Result<Emptied, StoreError> {
        let (key, name) = (key.as_str(), SessionKey::split(key.as_str()).1);
        let tx = Tx::prepare(&self.pool, "empty_session", [LOCK, EMPTY]).await?;
        let [locked, emptied] = tx.run([&[&key], &[&actor, &key, &name.as_str()]]).await?;
        Ok(match (locked.is_empty(), emptied.is_empty()) {
            (true, _) => Emptied::Unknown,
            (false, true) => Emptied::Busy,
            (false, false) => Emptied::Done,
        })
    }

    /// Returns a tenant's sessions behind this one, by name.
    pub async fn list_sessions(
        &self,
        tenant: &Tenant,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Page<SessionLine, String>, StoreError> {
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let (first, end) = SessionKey::range(tenant);
        let after = after.map_or(first, |name| SessionKey::new(tenant, name).into());
        let rows = query(&self.pool, "list_sessions", LIST, &[&after, &end, &most]).await?;
        let line = |row: &tokio_postgres::Row| SessionLine {
            session_id: SessionKey::split(row.get(0)).1.into(),
            agent_id: row.get(1),
            created_at: row.get(2),
            last_updated: row.get(3),
            jobs: row.get(4),
        };
        let found: Vec<SessionLine> = rows.iter().map(line).collect();
        let next = found.last().filter(|_| found.len() == limit).map(|last| last.session_id.clone());
        Ok(Page { found, next })
    }

    /// Returns a session, or `None` if there is none of that key.
    pub async fn session(&self, key: &SessionKey) -> Result<Option<SessionView>, StoreError> {
        let rows = query(&self.pool, "session", READ, &[&key.as_str()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let checkpoints =
            query(&self.pool, "session_checkpoints", READ_CHECKPOINTS, &[&key.as_str()]).await?;
        let checkpoint = |row: &tokio_postgres::Row| CheckpointView {
            job_id: read_job_id(row, 0),
            epoch: row.get(1),
            created_at: row.get(2),
            delta: row.get(3),
        };
        let (tenant, session) = SessionKey::split(row.get(0));
        Ok(Some(SessionView {
            tenant,
            session_id: session.into(),
            agent_id: row.get(1),
            user_id: row.get(2),
            created_at: row.get(3),
            last_updated: row.get(4),
            version: row.get(5),
            iteration_count: row.get(6),
            cost_usd: read_usd(row, 7),
            input_tokens: row.get(8),
            output_tokens: row.get(9),
            memory: row.get(10),
            context_window: row.get(11),
            feature_progress: row.get(12),
            checkpoints: checkpoints.iter().map(checkpoint).collect(),
        }))
    }
}
