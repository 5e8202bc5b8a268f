//! A job as a claim hands it to a worker, with what the worker needs to know of its past and its session.

use std::sync::Arc;
use std::time::Duration;

use job::{
    CallId, Change, ClosedInput, JobId, JobState, Name, POISON_DEATHS, SessionKey, Tenant, Usd, WorkerId,
};
use tokio_postgres::Row;

use super::blobs::Contents;
use super::inputs::read_answers;
use crate::database::{read_job_id, read_millis, read_usd};

/// A worker's right to write for a job, for one run. Only the ledger grants it, so a job that was not claimed
/// can be neither checkpointed nor concluded. The right may be lost by the time it is used; the write itself
/// finds that out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    worker: WorkerId,
    job_id: JobId,
    session_key: String,
    epoch: i64,
}

impl Claim {
    /// Returns the id under which the worker has claimed.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Returns the job's id.
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// Returns the key of its session in the ledger.
    pub fn session_key(&self) -> &str {
        &self.session_key
    }

    /// Returns its tenant and the name of its session.
    pub fn session(&self) -> (Tenant, Name) {
        SessionKey::split(&self.session_key)
    }

    /// Says that its job is in this state now.
    pub(crate) fn change(&self, state: JobState) -> Change {
        Change::new(self.job_id, SessionKey::of_ledger(self.session_key.as_str()), state)
    }

    /// Returns the fencing token of this run. It is greater than that of every earlier run of the session.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }
}

/// A job that a worker has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The right to run it.
    pub claim: Claim,
    /// Attempts spent before this one.
    pub attempts: u32,
    /// Workers that died while they ran it.
    pub deaths: u32,
    /// Why it is suspected. Set if one more death would prove it to be the cause.
    pub suspicion: Option<Suspicion>,
    /// How long until its deadline, by Postgres's clock.
    pub remaining: Option<Duration>,
    /// The envelope, if the worker does not have it, or has it from a message that proves nothing: when it continues with
    /// a blocked job, and when the job is another tenant's than `default`.
    pub message: Option<String>,
    /// The calls that it has asked persons to answer, and what became of them.
    pub answers: Vec<(CallId, ClosedInput)>,
    /// The state of its session.
    pub session: Arc<SessionState>,
}

/// A session as the ledger keeps it: the state at the last fold, and what was appended since.
#[derive(Clone, Debug, Default)]
pub struct SessionState {
    /// The JSON texts of memory, context window and feature progress; `None` for a session that was never folded.
    pub folded: Option<[String; 3]>,
    /// Whether it was folded within the run of the claimed job. Then the ledger keeps the state before that job.
    pub folded_within: bool,
    /// Iterations at the last fold.
    pub iteration_count: i64,
    /// Spend at the last fold.
    pub cost: Usd,
    /// Tokens read at the last fold.
    pub input_tokens: i64,
    /// Tokens written at the last fold.
    pub output_tokens: i64,
    /// A JSON array of `{job_id, delta, entries}` in order, `None` when there is none. `entries` are those of the context,
    /// where `delta` does not have them.
    pub deltas: Option<String>,
    /// The hash of a blob that these texts refer to and that is not there, in hexadecimal. It has to be; see the audit.
    pub missing: Option<String>,
}

/// Why a job is suspected of killing its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// How long it has been suspected.
    pub waited: Duration,
    /// The longest time that it ran before a worker died; `None` if that was not measured.
    pub killed_after: Option<Duration>,
    /// Whether a worker has died while it ran beside another suspect.
    pub shared: bool,
}

/// The columns of a claimed job; `c` is the claimed row, `s` its session.
macro_rules! claimed_columns {
    () => {
        concat!("c.job_id, c.session_id, c.epoch, c.attempts,
         CASE WHEN s.version > 0 OR c.folded_epoch IS NOT NULL THEN s.memory::text END,
         CASE WHEN s.version > 0 OR c.folded_epoch IS NOT NULL
              THEN coalesce(s.context_json::text, s.context_window::text, '[]') END,
         CASE WHEN s.version > 0 OR c.folded_epoch IS NOT NULL THEN s.feature_progress::text END,
         s.iteration_count, s.cost_microusd, s.input_tokens, s.output_tokens,
         (SELECT json_agg(json_build_object('job_id', p.job_id, 'delta', p.delta, 'entries', p.context_json)
                          ORDER BY p.epoch, p.ordinal)::text
            FROM harness_checkpoints p WHERE p.session_id = c.session_id),
         c.deaths, (extract(epoch FROM c.deadline_at - now()) * 1000)::bigint,
         c.killed_after_ms, (extract(epoch FROM now() - c.suspected_at) * 1000)::bigint, c.shared_deaths > 0, ",
            $crate::jobs::answers_of!("c.job_id"),
            ", c.folded_epoch IS NOT NULL, ",
            $crate::jobs::session_blobs!(
                "s.blobs IS NOT NULL OR EXISTS (SELECT FROM harness_checkpoints p
                                                 WHERE p.session_id = c.session_id AND p.blobs IS NOT NULL)",
                "c.session_id"
            )
        )
    };
}
pub(crate) use claimed_columns;

/// Reads a job, its session and its epoch from the first columns of a row that says that this worker runs it.
pub(crate) fn read_claim(row: &Row, worker: WorkerId) -> Claim {
    Claim { worker, job_id: read_job_id(row, 0), session_key: row.get(1), epoch: row.get(2) }
}

/// Reads [`claimed_columns`].
pub(crate) fn read_claimed(row: &Row, worker: WorkerId) -> Claimed {
    let memory: Option<String> = row.get(4);
    let deaths = row.get::<_, i32>(12) as u32;
    let blobs: Option<&str> = row.get(19);
    let blobs = blobs.map(Contents::of);
    let mut missing = None;
    let mut context = |text: &str| match &blobs {
        Some(blobs) => blobs.join(text, &mut missing),
        None => text.to_owned(),
    };
    let folded = memory.map(|memory| [memory, context(row.get(5)), row.get(6)]);
    let deltas = match &blobs {
        Some(blobs) => row.get::<_, Option<&str>>(11).map(|text| blobs.join_appended(text, &mut missing)),
        None => row.get(11),
    };
    Claimed {
        claim: read_claim(row, worker),
        attempts: row.get::<_, i32>(3) as u32,
        deaths,
        suspicion: read_suspicion(row, deaths),
        remaining: read_millis(row, 13),
        message: None,
        answers: read_answers(row.get(17)),
        session: Arc::new(SessionState {
            folded,
            folded_within: row.get(18),
            iteration_count: row.get(7),
            cost: read_usd(row, 8),
            input_tokens: row.get(9),
            output_tokens: row.get(10),
            deltas,
            missing,
        }),
    }
}

/// Reads [`claimed_columns`] and the envelope behind them.
pub(crate) fn read_claimed_with_message(row: &Row, worker: WorkerId) -> Claimed {
    Claimed { message: row.get(20), ..read_claimed(row, worker) }
}

fn read_suspicion(row: &Row, deaths: u32) -> Option<Suspicion> {
    (deaths + 1 >= POISON_DEATHS).then(|| Suspicion {
        killed_after: read_millis(row, 14),
        waited: read_millis(row, 15).unwrap_or_default(),
        shared: row.get(16),
    })
}
