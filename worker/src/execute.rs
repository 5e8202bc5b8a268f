//! Execute: runs the harness on the session, up to its end or its stop.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use harness::{Delta, Harness, Run, RunError, Session, Stop, StopSignal, Stopper, Task};
use job::{Failure, FailureCode, JobSpec, Outcome, WorkerId};
use service::Place;
use store::{Claimed, Store};
use tracing::warn;

use crate::attempt::handed_on;
use crate::fold::{fold_is_due, read_session};
use crate::journal::{Journal, Settled};
use crate::machine::Machine;

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
        let journal = Arc::new(Journal::new(&self));
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
        let session = match stopped {
            Some(Stop::RolledBack) if matches!(outcome, Some(Outcome::Cancelled(_))) => (journal.has_begun()
                || before.rows > 0)
                .then(|| self.rolled_back(run.into_session()))
                .flatten(),
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
