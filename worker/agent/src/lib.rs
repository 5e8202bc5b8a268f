//! The model loop: `harness = "agent"`. It calls a model, runs the tools that the model asks for, and goes on until the model
//! has ended.
//!
//! ```text
//! session's context ──▶ what comes next? ──▶ call ──▶ gateway of the worker ──▶ provider
//!        ▲                     │                            │ the answer is stored with its settlement
//!        │                     └──▶ tools ◀─────────────────┘ before its last event is passed on
//!        └────────────────────────── checkpoint: answer and results
//! ```
//!
//! - **The context alone says what comes next** (`transcript`). Any worker goes on from it, after any kill, and its next
//!   request extends the last to the letter. What was answered and not checkpointed is stored by the gateway, and given
//!   again for the same request; so nothing that the context does not have may be in a request.
//! - **A tool call is known before it starts**: its answer is stored. After a kill, a call without a result is made again if
//!   its tool is declared safe to repeat; else the model is told that it may have taken effect.
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
mod redact;
mod config;
mod head;
mod compact;
mod fault;
mod ask;
mod turns;

use std::sync::Arc;

use async_trait::async_trait;
use harness::{ConfigError, Harness, Run, RunError, Stop};
use job::{Failure, FailureCode, Json};
use rustls::ClientConfig;

pub use config::{AgentConfig, OfWorker, OpenAiApi, Options};
pub use toolkit::{AgentTools, OpenTools, Toolkit};

use ask::Gateway;
use config::Settings;
use transcript::{Digest, Next};
use turns::Turns;

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
        let timeout = self.settings.timeout;
        tokio::select! {
            biased;
            () = signal.lease_lost() => Err(RunError::Stopped(Stop::LeaseLost)),
            // Dropping the loop ends its tools. A call that is under way is read on by the gateway, and its answer is
            // there for the next attempt.
            stop = signal.stopped() => Err(RunError::from(stop)),
            ended = self.attempt(run) => ended,
            () = tokio::time::sleep(timeout) => {
                let problem = format!("ran longer than timeout_ms = {}", timeout.as_millis());
                Err(Failure::retryable(FailureCode::Timeout, problem).into())
            }
        }
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
        let tools = self.tools.open(run.task(), &*meter, is_resumed).await?;
        let ended = Turns::new(&self.settings, run, digest, tools.clone(), gateway).work().await;
        tools.close().await;
        // What its tools have reserved and not settled counts from now on.
        meter.close();
        ended
    }
}
