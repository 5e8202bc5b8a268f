//! `worker run`: one job of an agent on the terminal, without a queue, a database or a worker's registration.
//!
//! The harness is the one that a worker runs, and what it is given is the same: a run, a session, a journal, and
//! the gateway with an account. These live in memory here, and end with the process. Whatever ends the run, it
//! is said what it has cost; what is not known of that counts in full.

mod settings;
mod journal;
mod person;
mod report;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{Ask, CallId, ClosedInput, Meter, Parts, Run, RunError, Session, Stop, Stopper, Task};
use job::{Failure, FailureCode, Json, Labels, Tenant};
use model::{Attempt as Opening, Gateway};
use service::note;
use tokio_util::sync::CancellationToken;

pub use settings::{Once, RunArgs};

use crate::calls::{Accounts, AgentCalls, Metered, may_be_for_want_of_room};
use crate::execute::{cannot_be_asked, grace};
use journal::Shown;
use person::{Terminal, Unanswered};
use report::Report;

/// The most bytes of its session, as a worker has it by default.
const MAX_SESSION_BYTES: usize = 16 << 20;
/// How long an answer is read on that nobody waits for, because its end says what it costs. Somebody sits before
/// the terminal.
const USAGE_DRAIN: Duration = Duration::from_secs(10);

/// How the run has ended.
enum End {
    Succeeded(Json),
    Failed(Failure),
    Interrupted,
}

/// Runs the job to its end, and says what it has cost. The exit code is 0 if it succeeded, 1 if it failed, and
/// 130 if it was interrupted.
pub async fn run(once: Once, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let gateway = match once.gateway.clone() {
        Some(mut settings) => {
            settings.usage_drain = settings.usage_drain.min(USAGE_DRAIN);
            // A worker of this machine may have the port that GATEWAY_ADDR names.
            settings.addr.set_port(0);
            Some(Gateway::start(settings).await?)
        }
        None => None,
    };
    let by_loop = once.calls.as_ref().is_some_and(AgentCalls::is_made_by_loop);
    let accounts = Arc::new(Accounts::new(once.limit.clone(), by_loop));
    let shown = Arc::new(Shown::new(once.json));
    let attempts = Attempts { once: &once, gateway: gateway.as_ref(), accounts: &accounts, shown: &shown };
    let (end, session) = attempts.work(&stop).await?;
    if let Some(gateway) = &gateway {
        if !accounts.held().is_empty() {
            note!("an answer is read to its end, because that says what it costs; Ctrl-C ends this at once");
        }
        gateway.stop().await;
    }
    let end = match (end, accounts.spent()) {
        // A program may say anything about it.
        (End::Failed(failure), Some(spent)) if may_be_for_want_of_room(failure.code) => {
            End::Failed(Failure::permanent(FailureCode::BudgetExhausted, format!("{spent} is spent")))
        }
        (end, _) => end,
    };
    let costs = once.calls.is_some().then(|| accounts.total());
    Ok(Report { once: &once, end, session, costs, took: begun.elapsed() }.print(&shown))
}

/// The attempts of the run: each that asks a person is followed by another one.
struct Attempts<'a> {
    once: &'a Once,
    gateway: Option<&'a Gateway>,
    accounts: &'a Arc<Accounts>,
    shown: &'a Arc<Shown>,
}

impl Attempts<'_> {
    async fn work(&self, stop: &CancellationToken) -> anyhow::Result<(End, Session)> {
        let stopper = Stopper::default();
        let (mut session, mut answers) = (Session::default(), BTreeMap::new());
        let mut terminal = Terminal::default();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let task = self.task(attempt);
            let ended;
            (ended, session) = self.attempt(task, session, &answers, (stop, &stopper)).await?;
            let asks = match ended {
                Ok(output) => return Ok((End::Succeeded(output), session)),
                Err(RunError::Failed(failure)) => return Ok((End::Failed(failure), session)),
                Err(RunError::Stopped(_)) => return Ok((End::Interrupted, session)),
                Err(RunError::Short(shortage)) => {
                    let failure = Failure::retryable(FailureCode::StartFailed, shortage.to_string());
                    return Ok((End::Failed(failure), session));
                }
                Err(RunError::Asks(asks)) => asks,
            };
            match self.answered(&mut terminal, &asks, &answers, stop).await {
                Ok(given) => answers.extend(given),
                Err(end) => return Ok((end, session)),
            }
        }
    }

    fn task(&self, attempt: u32) -> Task {
        Task {
            job_id: self.once.job_id,
            tenant: Tenant::default(),
            session_id: self.once.session.clone(),
            agent_id: self.once.agent.clone(),
            user_id: None,
            labels: Labels::default(),
            input: self.once.input.clone(),
            attempt,
            epoch: attempt.into(),
            traceparent: None,
            max_stalled_iterations: None,
            max_iterations: self.once.max_iterations,
            max_tokens: self.once.max_tokens,
        }
    }

    /// Runs the harness once. Returns how it ended, and the session as it left it.
    async fn attempt(
        &self,
        task: Task,
        session: Session,
        answers: &BTreeMap<CallId, ClosedInput>,
        (stop, stopper): (&CancellationToken, &Stopper),
    ) -> anyhow::Result<(Result<Json, RunError>, Session)> {
        let meter = self.open()?.map(|meter| meter as Arc<dyn Meter>);
        let mut run = Run::new(task, session, self.shown.clone(), stopper.signal())
            .within(MAX_SESSION_BYTES, Parts::default())
            .answered(answers.clone())
            .metered_by(meter);
        let ended = tokio::select! {
            ended = self.once.harness.run(&mut run) => ended,
            never = pass_on(stop, stopper) => match never {},
            () = grace(stopper.signal()) => Err(RunError::Stopped(Stop::Cancelled)),
        };
        Ok((ended, run.into_session()))
    }

    /// Lets an attempt call models, if its agent names any.
    fn open(&self) -> anyhow::Result<Option<Arc<Metered>>> {
        let (Some(calls), Some(gateway)) = (&self.once.calls, self.gateway) else { return Ok(None) };
        let opened = gateway.open(Opening {
            ledger: self.accounts.clone(),
            models: calls.models.clone(),
            degrades: calls.gateway_degrades(),
            fit: calls.fit(),
            caps: calls.caps(),
        })?;
        Ok(Some(Arc::new(Metered(opened))))
    }

    /// Asks on the terminal. An error is how the run ends without answers.
    async fn answered(
        &self,
        terminal: &mut Terminal,
        asks: &[Ask],
        given: &BTreeMap<CallId, ClosedInput>,
        stop: &CancellationToken,
    ) -> Result<Vec<(CallId, ClosedInput)>, End> {
        if let Some(problem) = cannot_be_asked(asks, given.len(), |call_id| given.contains_key(call_id)) {
            return Err(End::Failed(Failure::permanent(FailureCode::Protocol, problem)));
        }
        self.shown.end_line();
        match stop.run_until_cancelled(terminal.answers(asks)).await {
            None => Err(End::Interrupted),
            Some(Ok(answers)) => Ok(answers),
            Some(Err(Unanswered(problem))) => {
                Err(End::Failed(Failure::permanent(FailureCode::HarnessError, problem)))
            }
        }
    }
}

/// Asks the run to stop when the process is asked to. Never ends.
async fn pass_on(stop: &CancellationToken, stopper: &Stopper) -> Infallible {
    stop.cancelled().await;
    stopper.ask(Stop::Cancelled);
    std::future::pending().await
}
