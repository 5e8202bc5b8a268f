//! Journal: a run's checkpoints on their way into the ledger.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use harness::{Delta, Event, Part, Session, Stop};
use service::{Place, RetryError, retry};
use store::{CheckpointRow, Claim, Fenced, RunFold, Store, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::attempt::{Attempt, note_iteration};
use crate::fold::whole;
use crate::memory::Memory;
use crate::metrics::METRICS;
use crate::parts;
use crate::streaming::Streaming;

/// The journal of one run, kept in the ledger.
pub struct Journal {
    store: Store,
    claim: Claim,
    /// The session as it was before the job.
    before_job: Arc<Session>,
    memory: Arc<Memory>,
    ordinal: AtomicI32,
    /// How many checkpoints were written with the last one that changed the session.
    covering: AtomicI32,
    /// A checkpoint that was sent and has not been answered.
    unanswered: Mutex<Option<(CheckpointRow, Delta)>>,
    last: Mutex<(Instant, SystemTime)>,
    /// How long a checkpoint that was too much for Postgres is retried.
    timeout: Duration,
    /// The run's place in its trace.
    place: Option<Place>,
    streaming: Arc<Streaming>,
}

impl Journal {
    /// Makes an empty journal. The time of its first step counts from now.
    pub fn new(attempt: &Attempt<'_>, before_job: Arc<Session>, place: Option<Place>) -> Journal {
        Journal {
            store: attempt.worker.store.clone(),
            claim: attempt.claimed.claim.clone(),
            before_job,
            memory: attempt.worker.memory.clone(),
            ordinal: AtomicI32::new(0),
            covering: AtomicI32::new(0),
            unanswered: Mutex::new(None),
            last: Mutex::new((Instant::now(), SystemTime::now())),
            timeout: attempt.worker.lease.duration(),
            place,
            streaming: attempt.worker.streaming.clone(),
        }
    }

    /// Repeats the same row until Postgres has answered. Its ordinal shows whether it was written before.
    async fn append(&self, row: &CheckpointRow) -> Result<Fenced<()>, RetryError<StoreError>> {
        self.patiently("writing a checkpoint", || self.store.checkpoint(row.clone())).await
    }

    /// Repeats a write until Postgres has answered.
    async fn patiently<W: Future<Output = Result<Fenced<()>, StoreError>>>(
        &self,
        what: &'static str,
        write: impl Fn() -> W,
    ) -> Result<Fenced<()>, RetryError<StoreError>> {
        let (never, too_much) = (CancellationToken::new(), OnceLock::new());
        let try_again = |error: &StoreError| match error {
            StoreError::TooMuch(_) => too_much.get_or_init(Instant::now).elapsed() < self.timeout,
            _ => error.is_retryable(),
        };
        retry(what, &never, try_again, write).await
    }

    /// Asks again about a checkpoint whose answer was not waited for.
    pub async fn settle(&self) -> Settled {
        let unanswered = self.unanswered().take();
        let Some((row, delta)) = unanswered else { return Settled::Nothing };
        match self.append(&row).await {
            Ok(Fenced::Done(())) => {
                self.count(&delta, row.ordinal);
                Settled::Stands(Box::new(delta))
            }
            Ok(Fenced::Lost) => Settled::LeaseLost,
            // The checkpoint was refused. The run already ends for another reason.
            Err(_) => Settled::Nothing,
        }
    }

    /// Returns whether the run has checkpointed anything, or tried to.
    pub fn has_begun(&self) -> bool {
        self.ordinal.load(Ordering::Relaxed) > 0
    }

    /// Returns how many checkpoints the run has written, or tried to.
    pub fn written(&self) -> u32 {
        self.ordinal.load(Ordering::Relaxed).unsigned_abs()
    }

    /// Returns how many checkpoints the run had written with the last one in the ledger that changed the session, or said that an
    /// iteration was done. It covers the answers before it, by the ledger's rule (`is_progress`).
    pub fn covering(&self) -> u32 {
        self.covering.load(Ordering::Relaxed).unsigned_abs()
    }

    fn unanswered(&self) -> MutexGuard<'_, Option<(CheckpointRow, Delta)>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, delta: &Delta, ordinal: i32) {
        if is_progress(delta) {
            self.covering.fetch_max(ordinal + 1, Ordering::Relaxed);
        }
        let now = (Instant::now(), SystemTime::now());
        let last = std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), now);
        METRICS.step_latency.observe((now.0 - last.0).as_secs_f64() * 1e3);
        note_iteration(self.place, (last.1, now.1), delta, ordinal);
        METRICS.iterations.inc_by(delta.iterations);
        METRICS.cost_total.inc_by(delta.usage.cost.dollars());
        METRICS.cost.observe(delta.usage.cost.dollars());
        METRICS.tokens.with_label_values(&["input"]).inc_by(delta.usage.input_tokens);
        METRICS.tokens.with_label_values(&["output"]).inc_by(delta.usage.output_tokens);
    }
}

fn is_progress(delta: &Delta) -> bool {
    let Delta { memory, context_window, replace_context, feature_progress, iterations, usage: _ } = delta;
    *iterations > 0
        || *replace_context
        || !context_window.is_empty()
        || memory.is_some()
        || feature_progress.is_some()
}

/// What became of an unanswered checkpoint.
pub enum Settled {
    /// There was none, or it was refused.
    Nothing,
    /// It is in the ledger.
    Stands(Box<Delta>),
    /// The job is no longer ours.
    LeaseLost,
}

#[async_trait]
impl harness::Journal for Journal {
    /// If the lease is lost meanwhile, the run's own stop signal ends the wait, because the run is dropped.
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop> {
        let bytes = delta.context_window.iter().map(|entry| entry.as_str().len()).sum();
        let _room = self.memory.is_written(bytes).await;
        let (patches, entries) = delta.to_kept().map_err(|error| Stop::Unstorable(error.to_string()))?;
        let row = CheckpointRow {
            claim: self.claim.clone(),
            ordinal: self.ordinal.fetch_add(1, Ordering::Relaxed),
            delta: patches,
            entries: entries.map(Arc::from),
            iterations: delta.iterations,
            cost: delta.usage.cost,
            input_tokens: delta.usage.input_tokens,
            output_tokens: delta.usage.output_tokens,
        };
        *self.unanswered() = Some((row.clone(), delta.clone()));
        let result = self.append(&row).await;
        *self.unanswered() = None;
        match result {
            Ok(Fenced::Done(())) => {
                self.count(delta, row.ordinal);
                Ok(())
            }
            Ok(Fenced::Lost) | Err(RetryError::Stopped) => Err(Stop::LeaseLost),
            Err(RetryError::Permanent(error)) => {
                Err(Stop::Unstorable(format!("the checkpoint was refused: {error}")))
            }
        }
    }

    /// Without an answer from Postgres it waits, as a checkpoint does. What Postgres refuses stays in parts: the run goes on.
    async fn fold(&self, session: &Session, is_first: bool) -> Result<bool, Stop> {
        let ordinal = self.ordinal.load(Ordering::Relaxed) - 1;
        if ordinal < 0 || !self.store.folds_within_runs() {
            return Ok(false);
        }
        let Ok(before) = is_first.then(|| self.before_job.to_kept()).transpose() else { return Ok(false) };
        let call = RunFold { claim: self.claim.clone(), ordinal, fold: whole(session), before };
        match self.patiently("folding a session", || self.store.fold(call.clone())).await {
            Ok(Fenced::Done(())) => {
                debug!(ordinal, "the session was folded within the run");
                Ok(true)
            }
            Ok(Fenced::Lost) | Err(RetryError::Stopped) => Err(Stop::LeaseLost),
            Err(RetryError::Permanent(cause)) => {
                warn!(cause = cause.as_dyn(), "a session's state was refused; it stays in parts");
                Ok(false)
            }
        }
    }

    fn event(&self, event: Event) {
        self.streaming.note(self.claim.job_id(), self.claim.session_key(), event);
    }

    fn text(&self, text: &str) {
        self.streaming.add(self.claim.job_id(), self.claim.session_key(), text);
    }

    fn part(&self, part: &Part) {
        parts::note(self.place, part);
    }
}
