//! Journal: a run's checkpoints on their way into the ledger.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
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

const WRITING: &str = "writing a checkpoint";

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
    unanswered: Mutex<Unanswered>,
    last: Mutex<(Instant, SystemTime)>,
    /// How long a checkpoint that was too much for Postgres is retried.
    timeout: Duration,
    /// The run's place in its trace.
    place: Option<Place>,
    streaming: Arc<Streaming>,
}

#[derive(Default)]
struct Unanswered {
    /// The last checkpoint that was sent, until the run has it in its session.
    last: Option<Sent>,
    /// Whether the run has ended. Then the settlement of a call writes none any more.
    has_ended: bool,
}

struct Sent {
    row: CheckpointRow,
    delta: Delta,
    /// Whether it is in the ledger, and counted.
    is_durable: bool,
}

/// Why a checkpoint is not written.
pub enum NotWritten {
    /// The job is no longer ours.
    Lost,
    /// It was refused. After a try that was not answered, an earlier one may have been written.
    Refused { why: String, may_be_written: bool },
    /// The process ends, and whether it was written is not known.
    ProcessEnds,
}

impl From<NotWritten> for Stop {
    fn from(not_written: NotWritten) -> Stop {
        match not_written {
            NotWritten::Lost | NotWritten::ProcessEnds => Stop::LeaseLost,
            NotWritten::Refused { why, .. } => Stop::Unstorable(why),
        }
    }
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
            unanswered: Mutex::default(),
            last: Mutex::new((Instant::now(), SystemTime::now())),
            timeout: attempt.worker.lease.duration(),
            place,
            streaming: attempt.worker.streaming.clone(),
        }
    }

    /// Repeats a write until Postgres has answered, or this process ends.
    async fn patiently<W: Future<Output = Result<Fenced<()>, StoreError>>>(
        &self,
        what: &'static str,
        ends: &CancellationToken,
        write: impl Fn() -> W,
    ) -> Result<(), NotWritten> {
        let (too_much, was_unanswered) = (OnceLock::new(), AtomicBool::new(false));
        let try_again = |error: &StoreError| match error {
            StoreError::TooMuch(_) => too_much.get_or_init(Instant::now).elapsed() < self.timeout,
            StoreError::Unavailable(_) => {
                was_unanswered.store(true, Ordering::Relaxed);
                true
            }
            _ => error.is_retryable(),
        };
        match retry(what, ends, try_again, write).await {
            Ok(Fenced::Done(())) => Ok(()),
            Ok(Fenced::Lost) => Err(NotWritten::Lost),
            Err(RetryError::Stopped | RetryError::Permanent(StoreError::Closed)) => {
                Err(NotWritten::ProcessEnds)
            }
            Err(RetryError::Permanent(error)) => {
                let why = format!("the checkpoint was refused: {error}");
                Err(NotWritten::Refused { why, may_be_written: was_unanswered.load(Ordering::Relaxed) })
            }
        }
    }

    /// Asks again about a checkpoint that the run does not have, although it may be in the ledger. The run has ended.
    pub async fn settle(&self) -> Settled {
        let sent = {
            let mut unanswered = self.unanswered();
            unanswered.has_ended = true;
            unanswered.last.take()
        };
        let Some(Sent { row, delta, is_durable }) = sent else { return Settled::Nothing };
        if is_durable {
            return Settled::Stands(Box::new(delta));
        }
        let never = CancellationToken::new();
        match self.patiently(WRITING, &never, || self.store.checkpoint(row.clone())).await {
            Ok(()) => {
                self.count(&delta, row.ordinal);
                Settled::Stands(Box::new(delta))
            }
            Err(NotWritten::Lost) => Settled::LeaseLost,
            // The checkpoint was refused. The run already ends for another reason.
            Err(_) => Settled::Nothing,
        }
    }

    /// Makes the row of a checkpoint, and notes that it is on its way. The meter makes none for a run that has ended; for one
    /// that has lost its job, none is written.
    fn begin(&self, delta: &Delta, by_meter: bool) -> Result<CheckpointRow, NotWritten> {
        let (patches, entries) = delta.to_kept().map_err(|error| {
            let why = error.to_string();
            NotWritten::Refused { why, may_be_written: false }
        })?;
        let mut unanswered = self.unanswered();
        if by_meter && unanswered.has_ended {
            return Err(NotWritten::Lost);
        }
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
        unanswered.last = Some(Sent { row: row.clone(), delta: delta.clone(), is_durable: false });
        Ok(row)
    }

    /// Writes a checkpoint.
    async fn write<W: Future<Output = Result<Fenced<()>, StoreError>>>(
        &self,
        delta: &Delta,
        by_meter: Option<&CancellationToken>,
        write: impl Fn(CheckpointRow) -> W,
    ) -> Result<(), NotWritten> {
        let bytes = delta.context_window.iter().map(|entry| entry.as_str().len()).sum();
        let _room = self.memory.is_written(bytes).await;
        let (row, never) = (self.begin(delta, by_meter.is_some())?, CancellationToken::new());
        let result = self.patiently(WRITING, by_meter.unwrap_or(&never), || write(row.clone())).await;
        let is_uncounted = {
            let mut unanswered = self.unanswered();
            // If it is gone, the end of the run has asked as well, and has counted it.
            let sent = unanswered.last.take_if(|sent| sent.row.ordinal == row.ordinal);
            let is_uncounted = sent.is_some();
            unanswered.last = match sent {
                Some(sent) if result.is_ok() => Some(Sent { is_durable: true, ..sent }),
                _ => unanswered.last.take(),
            };
            is_uncounted
        };
        if result.is_ok() && is_uncounted {
            self.count(delta, row.ordinal);
        }
        result
    }

    /// Writes a checkpoint by a transaction that settles a call as well, and outlives the run. For a run that has ended nothing is
    /// written.
    pub async fn checkpoint_with<W: Future<Output = Result<Fenced<()>, StoreError>>>(
        &self,
        delta: &Delta,
        process_ends: &CancellationToken,
        write: impl Fn(CheckpointRow) -> W,
    ) -> Result<(), NotWritten> {
        self.write(delta, Some(process_ends), write).await
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

    fn unanswered(&self) -> MutexGuard<'_, Unanswered> {
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
        Ok(self.write(delta, None, |row| self.store.checkpoint(row)).await?)
    }

    fn applied(&self) {
        self.unanswered().last.take_if(|sent| sent.is_durable);
    }

    /// Without an answer from Postgres it waits, as a checkpoint does. What Postgres refuses stays in parts: the run goes on.
    async fn fold(&self, session: &Session, is_first: bool) -> Result<bool, Stop> {
        let ordinal = self.ordinal.load(Ordering::Relaxed) - 1;
        if ordinal < 0 || !self.store.folds_within_runs() {
            return Ok(false);
        }
        let Ok(before) = is_first.then(|| self.before_job.to_kept()).transpose() else { return Ok(false) };
        let call = RunFold { claim: self.claim.clone(), ordinal, fold: whole(session), before };
        let never = CancellationToken::new();
        match self.patiently("folding a session", &never, || self.store.fold(call.clone())).await {
            Ok(()) => {
                debug!(ordinal, "the session was folded within the run");
                Ok(true)
            }
            Err(NotWritten::Lost | NotWritten::ProcessEnds) => Err(Stop::LeaseLost),
            Err(NotWritten::Refused { why, .. }) => {
                warn!(cause = why, "a session's state was refused; it stays in parts");
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
