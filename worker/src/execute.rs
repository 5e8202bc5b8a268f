//! Execute: runs the harness on the session, and keeps its checkpoints in the ledger.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use harness::{Delta, Event, Harness, Journal, Run, RunError, Session, Stop, Task};
use job::{Failure, FailureCode, JobSpec, Outcome, WorkerId};
use serde::Deserialize;
use service::{RetryError, retry};
use store::{CheckpointRow, Claimed, Fenced, SessionState, Store, StoreError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::METRICS;

/// How long a harness gets to return after it was told to stop; the command harness needs its own grace within it.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// How a run ended.
pub struct Ended {
    /// What to record; `None` when the lease is lost and nothing may be recorded.
    pub outcome: Option<Outcome>,
    /// The session with everything that was checkpointed, when that is known for sure and is more than at the start.
    pub session: Option<Session>,
}

/// A claimed job on its way through the harness.
pub struct Execution<'a> {
    pub store: &'a Store,
    pub worker: WorkerId,
    pub spec: &'a JobSpec,
    pub claimed: &'a Claimed,
    pub stop: watch::Receiver<Option<Stop>>,
}

impl Execution<'_> {
    /// Runs the harness to its end, its time limit or its stop.
    pub async fn run(self, harness: &dyn Harness) -> Ended {
        let session = match read_session(&self.claimed.session) {
            Ok(session) => session,
            Err(error) => {
                let problem = format!("the session's state cannot be read: {error}");
                let failure = Failure::permanent(FailureCode::Unstorable, problem);
                return Ended { outcome: Some(Outcome::Failed(failure)), session: None };
            }
        };
        let resumed = self.claimed.session.deltas.is_some();
        let journal = Arc::new(Ledger::new(&self));
        let (stop, mut asked) = (self.limited_stop(), self.stop.clone());
        let mut run = Run::new(self.task(), session, journal.clone(), stop.subscribe());

        let result = {
            let running = AssertUnwindSafe(harness.run(&mut run)).catch_unwind();
            tokio::pin!(running);
            let limit = tokio::time::sleep(self.limit());
            tokio::pin!(limit);
            loop {
                tokio::select! {
                    result = &mut running => break Some(result),
                    () = &mut limit, if stop.borrow().is_none() => { stop.send_replace(Some(Stop::Timeout)); }
                    Ok(reason) = asked.wait_for(|asked| asked.is_some() && *asked != *stop.borrow()) => {
                        stop.send_replace(reason.clone());
                    }
                    () = grace(stop.subscribe()) => break None,
                }
            }
        };
        let stopped = stop.borrow().clone();
        let outcome = match result {
            Some(Ok(Ok(output))) => Some(Outcome::Succeeded(output)),
            Some(Ok(Err(RunError::Failed(failure)))) => Some(Outcome::Failed(failure)),
            Some(Ok(Err(RunError::Stopped(stop)))) => outcome_of_stop(stop, self.limit()),
            Some(Err(_panic)) => {
                Some(Outcome::Failed(Failure::permanent(FailureCode::Crashed, "the harness panicked")))
            }
            None => {
                warn!(job_id = %self.spec.job_id, "the harness did not stop in time and was dropped");
                stopped.and_then(|stop| outcome_of_stop(stop, self.limit()))
            }
        };
        let changed = resumed || journal.ordinal.load(Ordering::Relaxed) > 0;
        let certain = !journal.uncertain.load(Ordering::Relaxed);
        Ended { outcome, session: (changed && certain).then(|| run.into_session()) }
    }

    fn limit(&self) -> Duration {
        const WEEK_MS: u64 = 7 * 86_400_000;
        Duration::from_millis(self.spec.timeout_ms.unwrap_or(WEEK_MS))
    }

    /// The run's stop signal: what it is asked from outside, and its own time limit.
    fn limited_stop(&self) -> watch::Sender<Option<Stop>> {
        watch::Sender::new(self.stop.borrow().clone())
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
            traceparent: self.spec.traceparent.clone(),
        }
    }
}

/// Resolves a while after the stop was asked for.
async fn grace(mut stop: watch::Receiver<Option<Stop>>) {
    if stop.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(STOP_GRACE).await;
}

fn outcome_of_stop(stop: Stop, limit: Duration) -> Option<Outcome> {
    match stop {
        Stop::Cancelled => Some(Outcome::Cancelled),
        Stop::Drain => Some(Outcome::Interrupted),
        Stop::LeaseLost => None,
        Stop::Timeout => {
            let message = format!("the attempt took longer than timeout_ms ({})", limit.as_millis());
            Some(Outcome::Failed(Failure::retryable(FailureCode::Timeout, message)))
        }
        Stop::Unstorable(problem) => {
            Some(Outcome::Failed(Failure::permanent(FailureCode::Unstorable, problem)))
        }
        Stop::OutputLimit(problem) => {
            Some(Outcome::Failed(Failure::permanent(FailureCode::OutputLimit, problem)))
        }
    }
}

/// The state at the last fold with all deltas since then.
fn read_session(state: &SessionState) -> serde_json::Result<Session> {
    #[derive(Deserialize)]
    struct Appended {
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
    if let Some(deltas) = &state.deltas {
        for appended in serde_json::from_str::<Vec<Appended>>(deltas)? {
            session.apply(&appended.delta);
        }
    }
    Ok(session)
}

/// The journal of one run, kept in the ledger.
struct Ledger {
    store: Store,
    worker: WorkerId,
    spec: (job::JobId, job::Name),
    epoch: i64,
    ordinal: AtomicI32,
    /// Whether a checkpoint was sent whose answer has not come.
    uncertain: AtomicBool,
    last: Mutex<Instant>,
}

impl Ledger {
    fn new(execution: &Execution<'_>) -> Ledger {
        Ledger {
            store: execution.store.clone(),
            worker: execution.worker,
            spec: (execution.spec.job_id, execution.spec.session_id.clone()),
            epoch: execution.claimed.epoch,
            ordinal: AtomicI32::new(0),
            uncertain: AtomicBool::new(false),
            last: Mutex::new(Instant::now()),
        }
    }

    fn count(&self, delta: &Delta) {
        let now = Instant::now();
        let last = std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), now);
        METRICS.step_latency.observe((now - last).as_secs_f64() * 1e3);
        METRICS.iterations.inc_by(delta.iterations);
        METRICS.cost_total.inc_by(delta.usage.cost.dollars());
        METRICS.cost.observe(delta.usage.cost.dollars());
        METRICS.tokens.with_label_values(&["input"]).inc_by(delta.usage.input_tokens);
        METRICS.tokens.with_label_values(&["output"]).inc_by(delta.usage.output_tokens);
    }
}

#[async_trait]
impl Journal for Ledger {
    /// Repeats the same row until Postgres has answered: whether it landed before is told by its ordinal. When the
    /// lease is lost meanwhile, the run's own stop signal ends the wait, because the run is dropped.
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
        self.uncertain.store(true, Ordering::Relaxed);
        let append = || self.store.checkpoint(row.clone());
        let never = CancellationToken::new();
        let result = retry("writing a checkpoint", &never, StoreError::is_retryable, append).await;
        self.uncertain.store(false, Ordering::Relaxed);
        match result {
            Ok(Fenced::Done(())) => {
                self.count(delta);
                Ok(())
            }
            Ok(Fenced::Lost) | Err(RetryError::Stopped) => Err(Stop::LeaseLost),
            Err(RetryError::Permanent(error)) => {
                Err(Stop::Unstorable(format!("the checkpoint was refused: {error}")))
            }
        }
    }

    fn event(&self, event: Event) {
        debug!(job_id = %self.spec.0, session_id = %self.spec.1, name = event.name, "event");
    }
}
