//! `producer enqueue`: one job from flags, or many from JSON lines (`bulk`).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use dispatch::Dispatch;
use job::{JobId, JobSpec, Json, Name, OnBusy};
use service::{note, out};

use super::bulk::Bulk;
use super::context::Context;
use crate::intake_limits::IntakeLimits;
use crate::submit::submit;

/// Enqueue one job from flags, or many from JSON lines.
///
/// Prints the ids of the accepted jobs (with --file: only a summary, unless --print-ids). A line is a JSON object such
/// as {"session_id":"s-1","agent_id":"echo","input":{"any":"thing"}}; further fields: job_id, user_id, pool, retry
/// {max_attempts, base_delay_ms, max_delay_ms}, timeout_ms, deadline_ms, max_stalled_iterations, on_busy, reply_to,
/// correlation_id, traceparent. A job_id that was accepted before is the same job and is not run again.
///
/// Lines are sent as they come: a pipe may stay open, and SIGTERM ends it. What was read until then is sent; the summary on
/// stderr says after which line it ended. A line that is no job (no JSON, not UTF-8, longer than MAX_MESSAGE_BYTES) is refused by its
/// number, and the next one is read. A reader of the ids that goes away (| head) ends nothing; one that stalls holds up
/// the next lines, and after SIGTERM the end for two seconds.
///
/// Exit codes: 0 all jobs are accepted, 1 something failed (also: the ids could not be written), 2 wrong arguments, 3 some
/// lines were refused, 130 a signal ended it.
#[derive(Debug, Args)]
pub struct Enqueue {
    /// The session to continue; it is made when it does not exist
    #[arg(long, required_unless_present = "file")]
    session: Option<Name>,
    /// The agent, as named in the workers' agents.toml
    #[arg(long, required_unless_present = "file")]
    agent: Option<Name>,
    /// What the agent is given, as JSON
    #[arg(long, default_value = "null")]
    input: String,
    /// On whose behalf
    #[arg(long)]
    user: Option<String>,
    /// The pool of workers
    #[arg(long, default_value = "default")]
    pool: Name,
    /// An id of your own, a UUID of version 7
    #[arg(long)]
    job_id: Option<JobId>,
    /// Attempts in all, the first included
    #[arg(long, default_value_t = 3)]
    max_attempts: u32,
    /// Wall-clock limit of an attempt
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Milliseconds within which the job must have ended, all attempts and waits included
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// Iterations in a row that may change neither memory nor progress
    #[arg(long)]
    max_stalled_iterations: Option<u32>,
    /// What to do when the session is busy: enqueue (wait), reject (fail), interrupt (stop the running job at its next
    /// checkpoint), rollback (stop it now and undo it)
    #[arg(long, default_value = "enqueue")]
    on_busy: OnBusy,
    /// A file of JSON lines, - for stdin
    #[arg(long, conflicts_with_all = ["session", "agent", "input", "user", "pool", "job_id", "max_attempts", "timeout_ms",
          "deadline_ms", "max_stalled_iterations", "on_busy"])]
    file: Option<PathBuf>,
    /// Stop at the first line that is refused; the lines before it stay accepted
    #[arg(long, requires = "file")]
    strict: bool,
    /// Print the id of every accepted job, one a line
    #[arg(long, requires = "file")]
    print_ids: bool,
}

impl Enqueue {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (intake_limits, dispatch) = context.dispatch("producer enqueue").await?;
        let result = match &self.file {
            Some(file) => {
                let (strict, print_ids) = (self.strict, self.print_ids);
                let bulk = Bulk { intake_limits: &intake_limits, dispatch: &dispatch, strict, print_ids };
                bulk.run(file.clone(), &context.stop).await
            }
            None => self.one(&intake_limits, &dispatch).await,
        };
        dispatch.broker.close().await;
        result
    }

    async fn one(&self, intake_limits: &IntakeLimits, dispatch: &Dispatch) -> anyhow::Result<ExitCode> {
        let (Some(session_id), Some(agent_id)) = (self.session.clone(), self.agent.clone()) else {
            bail!("--session and --agent are needed");
        };
        let input = match Json::parse(&self.input) {
            Ok(input) => input,
            Err(error) => return Ok(refuse(&format!("--input: {error}"))),
        };
        let mut spec = JobSpec::new(session_id, agent_id, input);
        spec.job_id = self.job_id.unwrap_or(spec.job_id);
        spec.user_id = self.user.clone();
        spec.pool = self.pool.clone();
        spec.retry.max_attempts = self.max_attempts;
        spec.timeout_ms = self.timeout_ms;
        spec.deadline_ms = self.deadline_ms;
        spec.max_stalled_iterations = self.max_stalled_iterations;
        spec.on_busy = self.on_busy;
        // The same measure as at the other end of the queue, the size included.
        if let Err(error) = job::decode(job::encode(&spec).as_bytes(), None, &intake_limits.current()) {
            return Ok(refuse(&error.to_string()));
        }
        let job_id = spec.job_id;
        let submitted = submit(dispatch, vec![spec], &intake_limits.current()).await?;
        if let Some((_, reason)) = submitted.refused.first() {
            return Ok(refuse(reason));
        }
        if submitted.new.is_empty() {
            note!("{job_id} was accepted before");
        } else if submitted.publish().await? == 0 {
            note!("{job_id} is accepted; its message follows when the broker takes it");
        }
        out!("{job_id}");
        Ok(ExitCode::SUCCESS)
    }
}

fn refuse(problem: &str) -> ExitCode {
    note!("not accepted: {problem}");
    ExitCode::from(2)
}
