//! The model loop: `harness = "agent"`. It calls a model, runs the tools that the model asks for, and goes on until the model
//! has ended.
//!
//! ```text
//! session's context ──▶ what comes next? ──▶ call ──▶ gateway of the worker ──▶ provider
//!        ▲                     │                            │
//!        ├─────────────────────┼────────────────────────────┘ checkpoint of the answer, with its settlement
//!        │                     └──▶ tools
//!        └──────────────────────────┘ checkpoint of each result
//! ```
//!
//! - **The context alone says what comes next** (`transcript`). Any worker goes on from it, after any kill, and its next
//!   request extends the last to the letter. Nothing that the context does not have may be in a request.
//! - **A tool call is known before it starts**: its answer is in the context, by one transaction with the settlement of the
//!   call (`reading`). A run that has lost its job learns it there, and starts no tool. After a kill, a call without a
//!   result is made again if its tool is declared safe to repeat; else the model is told that it may have taken effect.
//! - **Other answers are stored by the gateway** and given again for the same request: summaries, and where there is no
//!   ledger that takes a checkpoint with a settlement.
//! - **Money, rates and keys are the gateway's**: the loop is one of its programs.
//!
//! This crate has never heard of RabbitMQ, SQL or leases.

mod raw;
mod answer;
mod toolkit;
mod person;
mod wire;
mod marks;
mod neutral;
mod record;
mod transcript;
mod schema;
mod config;
mod head;
mod compact;
mod fault;
mod ask;
mod reading;
mod turns;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use harness::{ConfigError, Harness, Run, RunError, Stop, StopSignal};
use job::{Failure, FailureCode, Json};
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};

pub use config::{AgentConfig, OfWorker, OpenAiApi, Options};
pub use toolkit::{AgentTools, OpenTools, Opening, Toolkit};

use ask::Gateway;
use config::Settings;
use toolkit::Calls;
use transcript::{Digest, Next};
use turns::Turns;

/// How long the calls of a run that is stopped have to end, and then its servers of tools. The worker drops a run that takes
/// longer than 15 s to return.
const CALLS_GRACE: Duration = Duration::from_secs(10);
const CLOSE_GRACE: Duration = Duration::from_secs(3);

/// Runs the model loop for each attempt.
pub struct Agent {
    settings: Settings,
    tools: Arc<dyn OpenTools>,
    client: reqwest::Client,
}

impl AgentConfig {
    /// Checks the settings. The error lists everything that is wrong.
    pub fn build(
        self,
        worker: OfWorker<'_>,
        tools: Arc<dyn OpenTools>,
        tls: &ClientConfig,
    ) -> Result<Agent, Vec<ConfigError>> {
        let settings = self.check(worker)?;
        let client =
            http_client::build(tls.clone()).map_err(|problem| vec![ConfigError::new("harness", problem)])?;
        Ok(Agent { settings, tools, client })
    }
}

#[async_trait]
impl Harness for Agent {
    async fn run(&self, run: &mut Run) -> Result<Json, RunError> {
        let signal = run.stop_signal();
        // Dropping the loop kills its tools.
        signal.unless_lease_lost(self.attempt(run)).await
    }
}

impl Agent {
    async fn attempt(&self, run: &mut Run) -> Result<Json, RunError> {
        if let Some(stop) = run.stop_requested() {
            return Err(stop.into());
        }
        let meter = run.meter().cloned().ok_or_else(|| {
            Failure::permanent(
                FailureCode::StartFailed,
                "there is no gateway, expected an agent with `models`",
            )
        })?;
        let gateway = Gateway::of(&*meter, self.client.clone(), self.settings.idle_timeout)?;
        // An attempt that is interrupted or asks a person is not counted, but the context has it.
        let context = &run.session().context_window;
        let digest = Digest::of(context);
        let is_resumed = digest.on([context, &[]]).next(run.task().job_id) != Next::Begin;
        if is_resumed {
            run.forget_input();
        }
        let (calls, signal) = (Calls::default(), run.stop_signal());
        let mut over = pin!(self.over(signal));
        let redaction = self.settings.redaction.clone();
        let opening =
            Opening { task: run.task(), meter: &*meter, is_resumed, stop: calls.signal(), redaction };
        let tools = tokio::select! {
            biased;
            why = &mut over => return Err(why),
            opened = self.tools.open(&opening) => opened?,
        };
        let turns = Turns::new(&self.settings, run, digest, tools.clone(), gateway, calls.clone());
        let ended = until(turns.work(), &mut over, &calls).await;
        let closing = async {
            if calls.check().is_ok() {
                over.await;
            }
            sleep(CLOSE_GRACE).await;
        };
        tokio::select! {
            () = tools.close() => {}
            () = closing => tracing::warn!("servers of tools did not end in time and are killed"),
        }
        // What its tools have reserved and not settled counts from now on.
        meter.close();
        ended
    }

    /// Resolves when the run must end, with the reason.
    async fn over(&self, signal: StopSignal) -> RunError {
        let limit = self.settings.timeout;
        tokio::select! {
            biased;
            stop = signal.must_end() => stop.into(),
            () = sleep(limit) => {
                let problem = format!("ran longer than timeout_ms = {}", limit.as_millis());
                Failure::retryable(FailureCode::Timeout, problem).into()
            }
        }
    }
}

/// Works until the loop has ended or is over. Then the calls that are under way have time to end, and their results are
/// checkpointed; nothing else is waited for. A model call that is under way is read on by the gateway, and its answer is
/// there for the next attempt.
async fn until(
    work: impl Future<Output = Result<Json, RunError>>,
    over: impl Future<Output = RunError>,
    calls: &Calls,
) -> Result<Json, RunError> {
    let mut work = pin!(work);
    let why = tokio::select! {
        biased;
        why = over => why,
        ended = &mut work => return ended,
    };
    calls.stop(Stop::Drain);
    let last = timeout(CALLS_GRACE, async {
        tokio::select! {
            biased;
            ended = &mut work => ended.err(),
            () = calls.ended() => None,
        }
    });
    match last.await {
        Ok(Some(RunError::Stopped(Stop::LeaseLost))) => Err(RunError::Stopped(Stop::LeaseLost)),
        Ok(_) => Err(why),
        Err(_) => {
            tracing::warn!("calls of tools did not end in time and are killed");
            Err(why)
        }
    }
}
