//! Execute: runs an attempt's harness on the session, up to its end or its stop.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use harness::{Ask, CallId, Delta, Harness, Meter, Run, RunError, Session, Stop, StopSignal, Task};
use job::{Failure, FailureCode, Json, MAX_INPUTS, Outcome};
use service::Span;
use tracing::warn;

use crate::attempt::{Attempt, Ended, Given, handed_on};
use crate::calls::Calls;
use crate::fold::{Beginning, Whole};
use crate::journal::{Journal, Settled};
use crate::refusal::{clear, overdue};

/// How long a harness may take to return after it was asked to stop. The command harness's own grace must fit into
/// this.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// Runs a claimed job.
pub async fn execute(attempt: &Attempt<'_>, given: Given) -> Ended {
    let worker = attempt.worker;
    worker.throughput.started();
    let ended = match worker.settings.agents.get(&attempt.spec.agent_id) {
        Ok(harness) => Execution { attempt, span: attempt.run() }.run(harness.as_ref(), given).await,
        Err(unknown) => Ended::Ran(Outcome::Failed(unknown), None),
    };
    worker.throughput.ended(attempt.begun.elapsed());
    ended
}

/// An attempt on its way through the harness.
struct Execution<'a> {
    attempt: &'a Attempt<'a>,
    /// The span of the run.
    span: Span,
}

impl Execution<'_> {
    async fn run(mut self, harness: &dyn Harness, given: Given) -> Ended {
        let Attempt { worker, spec, claimed, stop, .. } = self.attempt;
        let folded_within = given.session.folded_within;
        let beginning = match Beginning::read(&given.session, spec.job_id) {
            Ok(beginning) => beginning,
            Err(error) => {
                let problem = format!("the session's state cannot be read: {error}");
                let failure = Failure::permanent(FailureCode::Unstorable, problem);
                return self.ended(Outcome::Failed(failure), None);
            }
        };
        drop(given.session);
        let Beginning { session, before_job, parts: before, has_appended, stalled } = beginning;
        let before_job = Arc::new(before_job);
        let journal = Arc::new(Journal::new(self.attempt, before_job.clone(), self.span.place()));
        let calls = match Calls::open(self.attempt, &journal) {
            Ok(calls) => calls,
            Err(failure) => return self.ended(Outcome::Failed(failure), None),
        };
        let mut run = Run::new(self.task(given.input), session, journal.clone(), stop.signal())
            .within(worker.settings.max_session_bytes, before)
            .stalled_for(stalled)
            .answered(claimed.answers.iter().cloned())
            .metered_by(calls.clone().map(|calls| calls as Arc<dyn Meter>));
        let result = self.result(harness, &mut run, has_appended).await;
        // Its text comes before its end.
        worker.streaming.flush(self.attempt.spec.job_id);
        let stopped = stop.asked();
        let Some(mut outcome) = self.outcome(result, stopped.as_ref()) else { return Ended::Lost };
        // A harness that was dropped in the middle of a checkpoint does not know whether it became durable.
        match journal.settle().await {
            Settled::Nothing => {}
            Settled::Stands(delta) => run.catch_up(&delta),
            Settled::LeaseLost => return Ended::Lost,
        }
        if let (Outcome::Failed(failure), Some(calls)) = (&outcome, &calls) {
            match calls.without_room(self.attempt, failure).await {
                Some(Ok(delay)) => return Ended::Postponed(delay),
                Some(Err(failure)) => outcome = Outcome::Failed(failure),
                None => {}
            }
        }
        if self.is_end(&outcome)
            && let Err(Stop::LeaseLost) = run.checkpoint(Delta::default()).await
        {
            return Ended::Lost;
        }
        let session = match (stopped, &outcome) {
            (Some(Stop::RolledBack), Outcome::Cancelled(_)) => {
                let changed = journal.has_begun() || before.rows > 0 || folded_within;
                changed
                    .then(|| Whole { session: rolled_back(&before_job, &run.into_session()), undone: true })
            }
            _ => Whole::if_due(run.parts(), run.into_session()),
        };
        self.ended(outcome, session)
    }

    /// Returns what the harness returned; `None` if it was asked to stop and did not return in time.
    async fn result(
        &self,
        harness: &dyn Harness,
        run: &mut Run,
        has_appended: bool,
    ) -> Option<Result<Json, RunError>> {
        let running = AssertUnwindSafe(async {
            // A job answers its own calls itself.
            if !has_appended {
                answer_open_calls(run).await?;
            }
            harness.run(run).await
        });
        let panicked = |_| Err(Failure::permanent(FailureCode::Crashed, "the harness panicked").into());
        tokio::select! {
            result = running.catch_unwind() => Some(result.unwrap_or_else(panicked)),
            never = self.enforce_time_limit() => match never {},
            never = clear(self.attempt) => match never {},
            () = grace(self.attempt.stop.signal()) => None,
        }
    }

    /// Stops the run when its time is over. Never ends.
    async fn enforce_time_limit(&self) -> Infallible {
        let (limit, over) = self.limit();
        tokio::time::sleep(limit).await;
        self.attempt.stop.ask(over);
        std::future::pending().await
    }

    /// Returns how long the attempt may take, and why it is stopped after that.
    fn limit(&self) -> (Duration, Stop) {
        const WEEK_MS: u64 = 7 * 86_400_000;
        let timeout = Duration::from_millis(self.attempt.spec.timeout_ms.unwrap_or(WEEK_MS));
        match self.attempt.claimed.remaining {
            Some(remaining) if remaining < timeout => (remaining, Stop::Deadline),
            _ => (timeout, Stop::Timeout),
        }
    }

    /// Returns the outcome of the run; `None` when nothing may be recorded any more.
    fn outcome(&self, result: Option<Result<Json, RunError>>, stopped: Option<&Stop>) -> Option<Outcome> {
        match result {
            Some(Ok(output)) => Some(Outcome::Succeeded(output)),
            Some(Err(RunError::Failed(failure))) => Some(Outcome::Failed(failure)),
            Some(Err(RunError::Stopped(stop))) => self.outcome_of_stop(stop),
            Some(Err(RunError::Asks(asks))) => Some(self.asks(asks)),
            Some(Err(RunError::Short(shortage))) => {
                self.attempt.worker.machine.ran_short(&shortage);
                Some(Outcome::Interrupted)
            }
            None => {
                warn!("the harness did not stop in time and was dropped");
                self.outcome_of_stop(stopped?.clone())
            }
        }
    }

    /// Returns whether the job ends with this attempt. Then what was used since the last checkpoint is to be written. Where
    /// the job goes on, that would cover an answer which is still on its way, and it would be paid again.
    fn is_end(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Succeeded(_) | Outcome::Cancelled(_) => true,
            Outcome::Failed(failure) => {
                let spent = self.attempt.claimed.attempts + 1;
                !failure.retryable || self.attempt.spec.retry.next_delay(spent, 0.0).is_none()
            }
            Outcome::Asks(_) | Outcome::Interrupted => false,
        }
    }

    /// Returns what follows from a run's questions.
    fn asks(&self, asks: Vec<Ask>) -> Outcome {
        let given = &self.attempt.claimed.answers;
        let was_given = |call_id: &CallId| given.iter().any(|(other, _)| other == call_id);
        match cannot_be_asked(&asks, given.len(), was_given) {
            Some(problem) => Outcome::Failed(Failure::permanent(FailureCode::Protocol, problem)),
            None => Outcome::Asks(asks),
        }
    }

    fn outcome_of_stop(&self, stop: Stop) -> Option<Outcome> {
        let failed = |failure| Some(Outcome::Failed(failure));
        let interrupted =
            |message| Some(Outcome::Cancelled(Failure::permanent(FailureCode::Interrupted, message)));
        match stop {
            Stop::Cancelled => {
                Some(Outcome::Cancelled(Failure::permanent(FailureCode::Cancelled, "cancelled while it ran")))
            }
            Stop::Drain | Stop::HandBack => Some(Outcome::Interrupted),
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
                RunError::Stopped(_) | RunError::Short(_) | RunError::Asks(_) => None,
            },
        }
    }

    fn ended(&mut self, outcome: Outcome, session: Option<Whole>) -> Ended {
        if let Outcome::Failed(failure) = &outcome {
            self.span.fail(failure.code.as_str());
        }
        Ended::Ran(outcome, session)
    }

    fn task(&self, input: Json) -> Task {
        let Attempt { spec, claimed, .. } = self.attempt;
        Task {
            job_id: spec.job_id,
            tenant: spec.tenant.clone(),
            session_id: spec.session_id.clone(),
            agent_id: spec.agent_id.clone(),
            user_id: spec.user_id.clone(),
            labels: spec.labels.clone(),
            input,
            attempt: claimed.attempts + 1,
            epoch: claimed.claim.epoch(),
            traceparent: Some(handed_on(self.span.place(), spec)),
            max_stalled_iterations: spec.max_stalled_iterations,
            max_iterations: spec.max_iterations,
            max_tokens: spec.max_tokens,
        }
    }
}

/// Answers tool calls that an earlier job of the session left open. That job may have ended in the middle of a call, with
/// nothing left to answer it.
async fn answer_open_calls(run: &mut Run) -> Result<(), Stop> {
    let context_window = run.session().answers_for_open_calls();
    run.checkpoint(Delta { context_window, ..Delta::default() }).await
}

/// Returns the session as it would be without the job, except for what the job used. (If an earlier attempt has folded the
/// session, the ledger takes its own.)
fn rolled_back(before_job: &Session, whole: &Session) -> Session {
    Session { iteration_count: whole.iteration_count, usage: whole.usage, ..before_job.clone() }
}

/// Returns why a run cannot ask this, if so, after as many answers as it was given. One that was answered is not
/// asked again: the job would go on at once, with the same answer, for ever.
pub fn cannot_be_asked(asks: &[Ask], given: usize, was_given: impl Fn(&CallId) -> bool) -> Option<String> {
    let again = asks.iter().find(|ask| was_given(&ask.call_id));
    let problem = match (Ask::check(asks), again) {
        (Err(error), _) => error.to_string(),
        (Ok(()), Some(ask)) => format!(
            "call_id: got \"{}\", whose answer the run was given, expected a new id for a new question",
            ask.call_id
        ),
        (Ok(()), None) if given + asks.len() > MAX_INPUTS => {
            format!("questions: the job has asked {given}, expected at most {MAX_INPUTS}")
        }
        (Ok(()), None) => return None,
    };
    Some(format!("what it asks cannot be asked: {problem}"))
}

/// Resolves when [`STOP_GRACE`] has passed since a stop was asked for.
pub async fn grace(stop: StopSignal) {
    stop.stopped().await;
    tokio::time::sleep(STOP_GRACE).await;
}
