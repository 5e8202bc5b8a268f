//! Execute: runs the harness on the session, and keeps its checkpoints in the ledger.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::FutureExt;
use harness::{
    Appended, Delta, Event, Harness, Journal, Run, RunError, Session, Stop, StopSignal, Stopper, Task,
};
use job::{Failure, FailureCode, JobId, JobSpec, Outcome, WorkerId};
use serde::Deserialize;
use service::{Place, RetryError, retry};
use store::{CheckpointRow, Claimed, Fenced, SessionState, Store, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::attempt::{handed_on, note_iteration};
use crate::machine::Machine;
use crate::metrics::METRICS;

/// How long a harness gets to return after it was told to stop; the command harness needs its own grace within it.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// How a run ended.
pub struct Ended {
    /// What to record; `None` when the lease is lost and nothing may be recorded.
    pub outcome: Option<Outcome>,
    /// The session's new state, where it is to be written whole.
    pub session: Option<Session>,
}

/// A claimed job on its way through the harness.
pub struct Execution<'a> {
    pub store: &'a Store,
    pub machine: &'a Machine,
    pub worker: WorkerId,
    pub spec: &'a JobSpec,
    pub claimed: &'a Claimed,
    pub stop: Stopper,
    /// The most that its session may hold.
    pub max_session_bytes: usize,
    /// For how long a checkpoint that was too much for Postgres is tried again.
    pub patience: Duration,
    /// The run's place in its trace.
    pub place: Option<Place>,
}

impl Execution<'_> {
    /// Runs the harness to its end, its time limit or its stop.
    pub async fn run(self, harness: &dyn Harness) -> Ended {
        let (session, before) = match read_session(&self.claimed.session, |_| true) {
            Ok(read) => read,
            Err(error) => {
                let problem = format!("the session's state cannot be read: {error}");
                let failure = Failure::permanent(FailureCode::Unstorable, problem);
                return Ended { outcome: Some(Outcome::Failed(failure)), session: None };
            }
        };
        let journal = Arc::new(Ledger::new(&self));
        let mut run = Run::new(self.task(), session, journal.clone(), self.stop.signal())
            .within(self.max_session_bytes, before);

        let result = {
            let running = AssertUnwindSafe(async {
                self.answer_open_calls(&mut run).await?;
                harness.run(&mut run).await
            });
            tokio::select! {
                result = running.catch_unwind() => Some(result),
                never = self.mind_the_time() => match never {},
                () = grace(self.stop.signal()) => None,
            }
        };
        let stopped = self.stop.asked();
        let outcome = match result {
            Some(Ok(Ok(output))) => Some(Outcome::Succeeded(output)),
            Some(Ok(Err(RunError::Failed(failure)))) => Some(Outcome::Failed(failure)),
            Some(Ok(Err(RunError::Stopped(stop)))) => self.outcome_of_stop(stop),
            Some(Ok(Err(RunError::Short(shortage)))) => {
                self.machine.ran_short(&shortage);
                Some(Outcome::Interrupted)
            }
            Some(Err(_panic)) => {
                Some(Outcome::Failed(Failure::permanent(FailureCode::Crashed, "the harness panicked")))
            }
            None => {
                warn!("the harness did not stop in time and was dropped");
                stopped.clone().and_then(|stop| self.outcome_of_stop(stop))
            }
        };
        let lost = Ended { outcome: None, session: None };
        if outcome.is_none() {
            return lost;
        }
        // A harness that was dropped in the middle of a checkpoint does not know whether it stands.
        match journal.settle().await {
            Settled::Nothing => {}
            Settled::Stands(delta) => run.catch_up(&delta),
            Settled::LeaseLost => return lost,
        }
        let changed = journal.ordinal.load(Ordering::Relaxed) > 0;
        let session = match stopped {
            Some(Stop::RolledBack) if matches!(outcome, Some(Outcome::Cancelled(_))) => {
                (changed || before.rows > 0).then(|| self.rolled_back(run.into_session())).flatten()
            }
            _ => fold_is_due(&self.claimed.session, run.appended()).then(|| run.into_session()),
        };
        Ended { outcome, session }
    }

    /// Stops the run when its time is over. Never ends.
    async fn mind_the_time(&self) -> Infallible {
        let (limit, over) = self.limit();
        tokio::time::sleep(limit).await;
        self.stop.ask(over);
        std::future::pending().await
    }

    /// The attempt's longest time, and what is over then.
    fn limit(&self) -> (Duration, Stop) {
        const WEEK_MS: u64 = 7 * 86_400_000;
        let timeout = Duration::from_millis(self.spec.timeout_ms.unwrap_or(WEEK_MS));
        match self.claimed.remaining {
            Some(remaining) if remaining < timeout => (remaining, Stop::Deadline),
            _ => (timeout, Stop::Timeout),
        }
    }

    /// An earlier job of the session may have ended in the middle of a tool call, when nobody was there to close it.
    async fn answer_open_calls(&self, run: &mut Run) -> Result<(), Stop> {
        let begun = self.claimed.session.deltas.as_ref().is_some_and(|deltas| {
            // Its own calls it answers itself.
            deltas.contains(&self.spec.job_id.to_string())
        });
        if begun {
            return Ok(());
        }
        let context_window = run.session().answers_for_open_calls();
        run.checkpoint(Delta { context_window, ..Delta::default() }).await
    }

    /// The session as if this job had never been, but for what it used.
    fn rolled_back(&self, whole: Session) -> Option<Session> {
        // It could be read with this job's part in it.
        let (before, _) = read_session(&self.claimed.session, |job_id| job_id != self.spec.job_id).ok()?;
        Some(Session { iteration_count: whole.iteration_count, usage: whole.usage, ..before })
    }

    fn outcome_of_stop(&self, stop: Stop) -> Option<Outcome> {
        let failed = |failure| Some(Outcome::Failed(failure));
        let interrupted =
            |message| Some(Outcome::Cancelled(Failure::permanent(FailureCode::Interrupted, message)));
        match stop {
            Stop::Cancelled => {
                Some(Outcome::Cancelled(Failure::permanent(FailureCode::Cancelled, "cancelled while it ran")))
            }
            Stop::Drain => Some(Outcome::Interrupted),
            Stop::LeaseLost => None,
            Stop::Timeout => {
                let message =
                    format!("the attempt took longer than timeout_ms ({})", self.limit().0.as_millis());
                failed(Failure::retryable(FailureCode::Timeout, message))
            }
            Stop::Deadline => failed(overdue()),
            Stop::Interrupted => interrupted("a later job of the session took its place; what it did stays"),
            Stop::RolledBack => {
                interrupted("a later job of the session took its place; what it did is undone")
            }
            Stop::Stalled(_) | Stop::Unstorable(_) | Stop::OutputLimit(_) => match RunError::from(stop) {
                RunError::Failed(failure) => failed(failure),
                RunError::Stopped(_) | RunError::Short(_) => None,
            },
        }
    }

    fn task(&self) -> Task {
        Task {
            job_id: self.spec.job_id,
            session_id: self.spec.session_id.clone(),
            agent_id: self.spec.agent_id.clone(),
            user_id: self.spec.user_id.clone(),
            input: self.spec.input.clone(),
            attempt: self.claimed.attempts + 1,
            epoch: self.claimed.epoch,
            traceparent: Some(handed_on(self.place, self.spec)),
            max_stalled_iterations: self.spec.max_stalled_iterations,
        }
    }
}

/// What ends a job whose deadline has passed.
pub fn overdue() -> Failure {
    Failure::permanent(FailureCode::DeadlineExceeded, "its deadline_ms was over before it was done")
}

/// Resolves a while after the stop was asked for.
async fn grace(stop: StopSignal) {
    stop.stopped().await;
    tokio::time::sleep(STOP_GRACE).await;
}

/// A state of at most so many bytes is written whole at each end, for whoever looks.
const SMALL_STATE: usize = 64 * 1024;
/// More checkpoints than this are not left to the next claim.
const MOST_ROWS: usize = 500;

/// Whether a job's end writes the session's state whole: where that costs no more than what was added to it.
pub fn fold_is_due(state: &SessionState, appended: Appended) -> bool {
    let folded = state.folded.as_ref().map_or(0, |texts| texts.iter().map(String::len).sum());
    appended.rows > 0 && (folded <= SMALL_STATE || appended.bytes >= folded || appended.rows > MOST_ROWS)
}

/// The state at the last fold, with the deltas that these jobs have added since; and how much was added by all.
pub fn read_session(
    state: &SessionState,
    of: impl Fn(JobId) -> bool,
) -> serde_json::Result<(Session, Appended)> {
    #[derive(Deserialize)]
    struct Added {
        job_id: JobId,
        delta: Delta,
    }
    let mut session = Session::default();
    if let Some([memory, context_window, feature_progress]) = &state.folded {
        session.memory = serde_json::from_str(memory)?;
        session.context_window = serde_json::from_str(context_window)?;
        session.feature_progress = serde_json::from_str(feature_progress)?;
        session.iteration_count = state.iteration_count.unsigned_abs();
        session.usage.cost = state.cost;
        session.usage.input_tokens = state.input_tokens.unsigned_abs();
        session.usage.output_tokens = state.output_tokens.unsigned_abs();
    }
    let mut appended = Appended::default();
    if let Some(text) = &state.deltas {
        let deltas = serde_json::from_str::<Vec<Added>>(text)?;
        appended = Appended { rows: deltas.len(), bytes: text.len() };
        let deltas = deltas.into_iter().filter(|added| of(added.job_id));
        deltas.for_each(|added| session.apply(&added.delta));
    }
    Ok((session, appended))
}

/// The journal of one run, kept in the ledger.
struct Ledger {
    store: Store,
    worker: WorkerId,
    spec: (JobId, job::Name),
    epoch: i64,
    ordinal: AtomicI32,
    /// A checkpoint that was sent and whose answer has not come.
    unanswered: Mutex<Option<(CheckpointRow, Delta)>>,
    last: Mutex<(Instant, SystemTime)>,
    patience: Duration,
    place: Option<Place>,
}

impl Ledger {
    fn new(execution: &Execution<'_>) -> Ledger {
        Ledger {
            store: execution.store.clone(),
            worker: execution.worker,
            spec: (execution.spec.job_id, execution.spec.session_id.clone()),
            epoch: execution.claimed.epoch,
            ordinal: AtomicI32::new(0),
            unanswered: Mutex::new(None),
            last: Mutex::new((Instant::now(), SystemTime::now())),
            patience: execution.patience,
            place: execution.place,
        }
    }

    /// Repeats the same row until Postgres has answered: whether it landed before is told by its ordinal.
    async fn append(&self, row: &CheckpointRow) -> Result<Fenced<()>, RetryError<StoreError>> {
        let (never, too_much) = (CancellationToken::new(), OnceLock::new());
        let try_again = |error: &StoreError| match error {
            StoreError::TooMuch(_) => too_much.get_or_init(Instant::now).elapsed() < self.patience,
            _ => error.is_retryable(),
        };
        let append = || self.store.checkpoint(row.clone());
        retry("writing a checkpoint", &never, try_again, append).await
    }

    /// Asks again about a checkpoint whose answer nobody has waited for.
    async fn settle(&self) -> Settled {
        let unanswered = self.unanswered().take();
        let Some((row, delta)) = unanswered else { return Settled::Nothing };
        match self.append(&row).await {
            Ok(Fenced::Done(())) => {
                self.count(&delta, row.ordinal);
                Settled::Stands(Box::new(delta))
            }
            Ok(Fenced::Lost) => Settled::LeaseLost,
            // It was refused, then: the run ends for another reason.
            Err(_) => Settled::Nothing,
        }
    }

    fn unanswered(&self) -> MutexGuard<'_, Option<(CheckpointRow, Delta)>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, delta: &Delta, ordinal: i32) {
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

/// What is known of a checkpoint in the end.
enum Settled {
    /// There is none to ask about.
    Nothing,
    /// It is in the ledger.
    Stands(Box<Delta>),
    /// The job is no longer ours.
    LeaseLost,
}

#[async_trait]
impl Journal for Ledger {
    /// When the lease is lost meanwhile, the run's own stop signal ends the wait, because the run is dropped.
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop> {
        let row = CheckpointRow {
            worker: self.worker,
            job_id: self.spec.0,
            session_id: self.spec.1.clone(),
            epoch: self.epoch,
            ordinal: self.ordinal.fetch_add(1, Ordering::Relaxed),
            delta: serde_json::to_string(delta).map_err(|error| Stop::Unstorable(error.to_string()))?,
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

    fn event(&self, event: Event) {
        debug!(name = event.name, "event");
    }
}
