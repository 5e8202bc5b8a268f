//! Runs a service of the user's: one HTTP request for each attempt at a job. This page is the contract `harness = "http"`.
//!
//! # The request
//!
//! `POST` to the agent's `url`. Its body is the JSON line of `harness.command.v1` that a program of the harness `command`
//! is given (see the crate `command`), without a `workspace`. Its headers are those of the agent's settings, and
//!
//! | header | value |
//! |---|---|
//! | `Harness-Job-Id` | the job's id |
//! | `Harness-Epoch` | the fencing token of this run: a service that keeps something refuses an older one |
//! | `Harness-Attempt` | 1 for the first |
//! | `traceparent` | W3C Trace Context: spans of the service belong below it |
//! | `Harness-Gateway-Url`, `Harness-Gateway-Token` | where the agent names `models`: the worker's gateway for model calls, for a service on the worker's own machine. The token dies with the attempt |
//!
//! # The answer
//!
//! A status from 200 to 299, and a body of the same lines that a program writes to its stdout, each sent as soon as it
//! is there: `checkpoint`, `cost`, `event`, `text`, and at last `result` or `error`; or one `ask` or several, which end with the
//! answer. A checkpoint is durable before the
//! worker reads the next line; while it commits, the connection fills and the service waits.
//!
//! # How the service is stopped
//!
//! When the worker drains, when the job is cancelled, and when a time limit is over, the worker sends `DELETE` to the
//! `url` with the job's id as one more segment of its path, and the same headers. The service has `stop_grace_ms` to write
//! a checkpoint and end its answer; then the connection is closed. Checkpoints are accepted until then. A `result` counts
//! only if the worker was draining. A service that has not answered yet may refuse its request then, or close the
//! connection: that is no failure. When the session's lease is lost, the connection is closed at once, and nothing that
//! the service still says changes anything. If the worker dies, its connections close: a service should stop then, since
//! another worker asks it anew, with a greater `Harness-Epoch`.
//!
//! # How it can fail
//!
//! | what happened | code | another attempt? |
//! |---|---|---|
//! | no connection; the status 408, 425, 429 or 5xx | `start_failed` | yes |
//! | another status; an answer that ends without a last word; a line that breaks the contract | `protocol` | no |
//! | an answer that is cut | `crashed` | yes, from the last checkpoint |
//! | no line for `idle_timeout_ms`, a run longer than `timeout_ms` | `idle_timeout`, `timeout` | yes |
//!
//! The rest is as for a program: `harness_error`, `unstorable`, `output_limit`, `no_progress`. Nothing is sent twice, and no
//! redirect is followed.

mod config;
mod attempt;

use async_trait::async_trait;
use harness::{Harness, Run, RunError};
use job::Json;

pub use config::RemoteConfig;

/// Asks one service for each attempt.
pub struct Remote {
    settings: config::Settings,
    client: reqwest::Client,
}

#[async_trait]
impl Harness for Remote {
    async fn run(&self, run: &mut Run) -> Result<Json, RunError> {
        if let Some(stop) = run.stop_requested() {
            return Err(stop.into());
        }
        let signal = run.stop_signal();
        // Dropping the attempt closes its connection and abandons a checkpoint that is under way.
        signal.unless_lease_lost(self.attempt(run)).await
    }
}
