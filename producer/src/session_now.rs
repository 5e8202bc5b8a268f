//! A session as it is now: its last fold, with everything that was appended since.

use std::ops::Deref;

use anyhow::Context as _;
use harness::{Delta, Session};
use job::{JobId, Json, SessionKey};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use store::{SessionHead, SessionView, Store};

/// A session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionNow {
    /// What is known of it beside its state.
    #[serde(flatten)]
    pub head: SessionHead,
    /// As of the last checkpoint.
    pub memory: Value,
    /// As of the last checkpoint, to the letter.
    pub context_window: Vec<Json>,
    /// As of the last checkpoint.
    pub feature_progress: Value,
    /// The checkpoints since the last fold, of which the state already has everything.
    pub checkpoints: Vec<Appended>,
}

/// A checkpoint that is not folded yet.
#[derive(Clone, Debug, Serialize)]
pub struct Appended {
    /// The job that wrote it.
    pub job_id: JobId,
    /// The run that wrote it.
    pub epoch: i64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// What it adds.
    pub delta: Delta,
}

impl Deref for SessionNow {
    type Target = SessionHead;

    fn deref(&self) -> &SessionHead {
        &self.head
    }
}

impl SessionNow {
    /// Reads a session, or `None` if there is none of that key.
    pub async fn read(store: &Store, key: &SessionKey) -> anyhow::Result<Option<SessionNow>> {
        let Some(view) = store.session(key).await? else { return Ok(None) };
        let name = view.head.session_id.clone();
        SessionNow::of(view).map(Some).with_context(|| format!("reading the state of session {name}"))
    }

    /// Returns the entries of the context, for those who look inside. Numbers may lose digits.
    pub fn context(&self) -> serde_json::Result<Vec<Value>> {
        self.context_window.iter().map(Json::to_value).collect()
    }

    /// Folds what the ledger has of a session.
    pub fn of(view: SessionView) -> serde_json::Result<SessionNow> {
        let mut session = Session::of_kept(
            [&view.memory, &view.context_window, &view.feature_progress].map(String::as_str),
        )?;
        let mut checkpoints = Vec::with_capacity(view.checkpoints.len());
        for row in view.checkpoints {
            let delta = Delta::of_kept(row.delta.get(), row.entries.as_deref().map(RawValue::get))?;
            session.apply(&delta);
            checkpoints.push(Appended {
                job_id: row.job_id,
                epoch: row.epoch,
                created_at: row.created_at,
                delta,
            });
        }
        Ok(SessionNow {
            head: view.head,
            memory: Value::Object(session.memory),
            context_window: session.context_window,
            feature_progress: Value::Object(session.feature_progress),
            checkpoints,
        })
    }
}
