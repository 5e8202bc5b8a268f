//! Sessions, for people: their list, their state, which they can also empty, and their history.

mod history;
mod list;

use job::{JobId, SessionKey, Tenant, Usd};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::history::HistoryRow;
pub use self::list::{SessionFilter, SessionLine};
use crate::access::logged;
use crate::database::{Tx, query, read_usd, rfc3339};
use crate::jobs::{Contents, session_blobs};
use crate::{Store, StoreError};

/// What is known of a session beside its state.
#[derive(Clone, Debug, Serialize)]
pub struct SessionHead {
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
    /// Jobs that have ended.
    pub version: i64,
    /// Iterations, including those since the last fold.
    pub iteration_count: i64,
    /// Spend, including that since the last fold.
    pub cost_usd: Usd,
    /// Tokens read, including those since the last fold.
    pub input_tokens: i64,
    /// Tokens written, including those since the last fold.
    pub output_tokens: i64,
}

/// A session: its folded state, and what has been checkpointed since. What the two come to, only the harness's side knows.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// What is known of it beside its state.
    pub head: SessionHead,
    /// At the last fold, as JSON.
    pub memory: String,
    /// At the last fold, as JSON.
    pub context_window: String,
    /// At the last fold, as JSON.
    pub feature_progress: String,
    /// What has been appended since.
    pub checkpoints: Vec<CheckpointView>,
}

/// One delta that is not folded yet.
#[derive(Clone, Debug, Deserialize)]
pub struct CheckpointView {
    /// The job that wrote it.
    pub job_id: JobId,
    /// The run that wrote it.
    pub epoch: i64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// What it adds, as JSON.
    pub delta: Box<RawValue>,
    /// A JSON array of the entries of the context that it adds, where `delta` does not have them.
    pub entries: Option<Box<RawValue>>,
}

/// A session whose jobs no worker has claimed yet has no row: its first live job says what is known of it.
const READ: &str = concat!(
    "SELECT s.session_id, s.agent_id, s.user_id, ",
    rfc3339!("s.created_at"),
    ", ",
    rfc3339!("s.last_updated"),
    ", s.version,
       s.iteration_count + c.iterations, s.cost_microusd + c.cost, s.input_tokens + c.tokens_in,
       s.output_tokens + c.tokens_out, s.memory::text, coalesce(s.context_json::text, s.context_window::text, '[]'),
       s.feature_progress::text, c.checkpoints::text, ",
    session_blobs!("s.blobs IS NOT NULL OR c.refers", "s.session_id"),
    "
  FROM (SELECT session_id, agent_id, user_id, created_at, last_updated, version, iteration_count, cost_microusd,
               input_tokens, output_tokens, memory, context_json, context_window, feature_progress, blobs
          FROM harness_sessions WHERE session_id = $1
         UNION ALL
       (SELECT session_id, agent_id, user_id, accepted_at, accepted_at, 0, 0, 0, 0, 0, '{}', NULL, NULL, '{}', NULL
          FROM harness_jobs
         WHERE session_id = $1 AND NOT EXISTS (SELECT FROM harness_sessions WHERE session_id = $1)
         ORDER BY seq LIMIT 1)) s
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(iterations), 0)::bigint AS iterations, coalesce(sum(cost_microusd), 0)::bigint AS cost,
              coalesce(sum(input_tokens), 0)::bigint AS tokens_in, coalesce(sum(output_tokens), 0)::bigint AS tokens_out,
              json_agg(json_build_object('job_id', job_id, 'epoch', epoch, 'created_at', ",
    rfc3339!("created_at"),
    ", 'delta', delta, 'entries', context_json) ORDER BY epoch, ordinal) AS checkpoints,
              coalesce(bool_or(blobs IS NOT NULL), false) AS refers
         FROM harness_checkpoints c WHERE c.session_id = s.session_id) c"
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

/// Before the session has a row to lock, its live jobs alone say that it is there.
const IS_LIVE: &str = "SELECT FROM harness_jobs WHERE session_id = $1 LIMIT 1";

/// Holds up claims and conclusions of the session's jobs.
const LOCK: &str = "SELECT FROM harness_sessions WHERE session_id = $1 FOR UPDATE";

/// Decides whether the session is emptied: an acceptance needs no lock of the session, so a job may come at any time. What
/// was checkpointed since the last fold is counted, and then removed with the rest of the state.
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
            SET memory = DEFAULT, context_window = DEFAULT, context_json = NULL, blobs = NULL, feature_progress = DEFAULT,
                last_updated = now(),
                iteration_count = s.iteration_count + c.iterations, cost_microusd = s.cost_microusd + c.cost,
                input_tokens = s.input_tokens + c.tokens_in, output_tokens = s.output_tokens + c.tokens_out
           FROM sums c WHERE s.session_id = (SELECT session_id FROM free)
         RETURNING s.tenant)",
    logged!("session_emptied", "tenant", "jsonb_build_object('session_id', $3::text)", "made")
);

/// A condition for the statements after [`EMPTY`], which look for no jobs of their own: whether it has emptied the session. It
/// is that this transaction has written the session's row; the lock before it writes none.
macro_rules! emptied {
    () => {
        "EXISTS (SELECT FROM harness_sessions WHERE session_id = $1 AND xmin = pg_current_xact_id()::xid)"
    };
}

/// In a statement of its own, like the next one, because a trigger of [`EMPTY`] may have removed the same rows.
const FORGET_HISTORY: &str = concat!("DELETE FROM harness_history WHERE session_id = $1 AND ", emptied!());

const FORGET_BLOBS: &str = concat!("DELETE FROM harness_blobs WHERE session_id = $1 AND ", emptied!());

impl Store {
    /// Empties a session's state: memory, context window, progress; and its history. An actor is noted in the operators' log.
    pub async fn empty_session(&self, actor: &str, key: &SessionKey) -> Result<Emptied, StoreError> {
        let (key, name) = (key.as_str(), SessionKey::split(key.as_str()).1);
        let statements = [IS_LIVE, LOCK, EMPTY, FORGET_HISTORY, FORGET_BLOBS];
        let tx = Tx::prepare(&self.pool, "empty_session", statements).await?;
        let [live, locked, emptied, _, _] =
            tx.run([&[&key], &[&key], &[&actor, &key, &name.as_str()], &[&key], &[&key]]).await?;
        Ok(match (locked.is_empty(), emptied.is_empty()) {
            (true, _) if live.is_empty() => Emptied::Unknown,
            (true, _) | (false, true) => Emptied::Busy,
            (false, false) => Emptied::Done,
        })
    }

    /// Returns a session, or `None` if there is neither one of that key nor a live job that will make one.
    pub async fn session(&self, key: &SessionKey) -> Result<Option<SessionView>, StoreError> {
        let rows = query(&self.pool, "session", READ, &[&key.as_str()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let blobs: Option<&str> = row.get(14);
        let blobs = blobs.map(Contents::of);
        let whole = |text: &str| match &blobs {
            Some(blobs) => blobs.join(text, &mut None),
            None => text.to_owned(),
        };
        let checkpoints = row.get::<_, Option<&str>>(13).unwrap_or("[]");
        // SQLSTATE: invalid_json_text.
        let mut checkpoints: Vec<CheckpointView> =
            serde_json::from_str(checkpoints).map_err(|error| StoreError::Refused {
                sqlstate: "22032".to_owned(),
                message: format!("a session's checkpoints cannot be read: {error}"),
            })?;
        for entries in checkpoints.iter_mut().filter_map(|checkpoint| checkpoint.entries.as_mut()) {
            *entries = RawValue::from_string(whole(entries.get())).expect("strings for strings");
        }
        let (tenant, session) = SessionKey::split(row.get(0));
        Ok(Some(SessionView {
            head: SessionHead {
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
            },
            memory: row.get(10),
            context_window: whole(row.get(11)),
            feature_progress: row.get(12),
            checkpoints,
        }))
    }
}
