//! `producer enqueue`: one job from flags, or many from JSON lines (`bulk`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use dispatch::Dispatch;
use harness_fleet::{Answer, Batch, Client, Problem};
use job::{JobId, JobSpec, Json, Label, Labels, Lane, LimitKeys, Name, OnBusy, RunAt, Tenant, Usd};
use service::{note, out, unless_stopped};

use super::age::parse_age;
use super::api::{self, ApiArgs};
use super::bulk::{Bulk, Intake};
use super::context::Context;
use crate::intake_limits::IntakeLimits;
use crate::submit::submit;

/// Enqueue one job from flags, or many from JSON lines.
///
/// Prints the ids of the accepted jobs (with --file only a summary, unless --print-ids). A line is a JSON object
/// such as {"session_id":"s-1","agent_id":"echo","input":{"any":"thing"}}. Further fields: job_id, tenant,
/// user_id, pool, retry {max_attempts, base_delay_ms, max_delay_ms}, timeout_ms, run_at, delay_ms, deadline_ms,
/// max_stalled_iterations, max_iterations, max_tokens, max_cost_usd, on_busy, lane, limits, labels, reply_to,
/// correlation_id, traceparent. A job_id that was accepted before means the same job, which is not run again. Over the HTTP API
/// session_id may be left out: the job then has a session of its own.
///
/// Lines are sent as they arrive: a pipe may stay open, and SIGTERM ends the command. Lines read until then are sent;
/// the summary on stderr names the last of them. A line that is not a job (not JSON, not UTF-8, longer than
/// MAX_MESSAGE_BYTES) is refused by its number, and reading goes on. If the reader of the ids goes away (| head), the
/// command goes on; if it stalls, the next lines wait, and after SIGTERM the end waits up to two seconds.
///
/// Exit codes: 0 all jobs are accepted, 1 something failed (including: the ids could not be written), 2 wrong
/// arguments, 3 some lines were refused, 130 stopped by a signal.
#[derive(Debug, Args)]
pub struct Enqueue {
    /// The session to continue; it is created if it does not exist. Without one, the job has a session of its own
    #[arg(long)]
    session: Option<Name>,
    /// The agent, as named in the workers' agents.toml
    #[arg(long, required_unless_present = "file")]
    agent: Option<Name>,
    /// The tenant whose job it is
    #[arg(long, default_value_t)]
    tenant: Tenant,
    /// The agent's input, as JSON
    #[arg(long, default_value = "null")]
    input: String,
    /// The user on whose behalf the job runs
    #[arg(long)]
    user: Option<String>,
    /// The pool of workers
    #[arg(long, default_value = "default")]
    pool: Name,
    /// An id of your own, a UUID of version 7
    #[arg(long)]
    job_id: Option<JobId>,
    /// The number of attempts, including the first
    #[arg(long, default_value_t = 3)]
    max_attempts: u32,
    /// Wall-clock limit of one attempt, in milliseconds
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// The moment before which the job does not start, such as 2026-03-29T06:30:00+02:00; at most half the retention of
    /// results ahead. Until then the job holds up no other one of its session
    #[arg(long, value_name = "TIME", conflicts_with = "delay")]
    run_at: Option<RunAt>,
    /// The same as a time from now, such as 90s, 15m or 36h
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    delay: Option<Duration>,
    /// Milliseconds, from when it is due, within which the job must end, including all attempts and waits
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// How many iterations in a row may change neither memory nor progress
    #[arg(long)]
    max_stalled_iterations: Option<u32>,
    /// Answers that the job's model loop may have, in all attempts; lower limits stay
    #[arg(long)]
    max_iterations: Option<u32>,
    /// Tokens that the job's model loop may read and write, in all attempts; lower limits stay
    #[arg(long)]
    max_tokens: Option<u64>,
    /// Dollars that the job's model calls may cost, in all attempts; lower limits stay
    #[arg(long, value_name = "DOLLARS")]
    max_cost_usd: Option<Usd>,
    /// What to do when the session is busy: enqueue (wait), reject (fail), interrupt (stop the running job at its next
    /// checkpoint), rollback (stop it now and undo it)
    #[arg(long, default_value = "enqueue")]
    on_busy: OnBusy,
    /// How soon it is wanted, where its pool has a line: high, normal or low
    #[arg(long, default_value_t)]
    lane: Lane,
    /// A limit key, which bounds with the other jobs of the key how many are at work (`producer limits`); may be given up to 4
    /// times
    #[arg(long = "limit-key", value_name = "KEY")]
    limit_keys: Vec<Name>,
    /// A label, by which jobs can be listed; may be given up to 8 times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
    /// A file of JSON lines; - reads stdin
    #[arg(long, conflicts_with_all = ["session", "tenant", "agent", "input", "user", "pool", "job_id", "max_attempts", "timeout_ms",
          "run_at", "delay", "deadline_ms", "max_stalled_iterations", "max_iterations", "max_tokens", "max_cost_usd",
          "on_busy", "lane", "limit_keys", "labels"])]
    file: Option<PathBuf>,
    /// Stop at the first line that is refused; the lines before it stay accepted
    #[arg(long, requires = "file")]
    strict: bool,
    /// Print the id of every accepted job, one per line
    #[arg(long, requires = "file")]
    print_ids: bool,
    #[command(flatten)]
    api: ApiArgs,
}

impl Enqueue {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (strict, print_ids) = (self.strict, self.print_ids);
        if let Some(client) = self.api.client(&mut context)? {
            let max_bytes = context.common.max_message_bytes(&mut context.problems);
            let max_bytes = context.finish(max_bytes)?;
            return match &self.file {
                Some(file) => {
                    let intake = Intake::Api { client: &client, max_bytes };
                    Bulk { intake, strict, print_ids }.run(file.clone(), &context.stop).await
                }
                None => unless_stopped(&context.stop, self.one_over(&client)).await,
            };
        }
        let (intake_limits, dispatch) = context.dispatch("producer enqueue").await?;
        let result = match &self.file {
            Some(file) => {
                let intake = Intake::Ledger { limits: &intake_limits, dispatch: &dispatch };
                Bulk { intake, strict, print_ids }.run(file.clone(), &context.stop).await
            }
            None => self.one(&intake_limits, &dispatch).await,
        };
        dispatch.broker.close().await;
        result
    }

    /// The job of the flags, or why there is none.
    fn spec(&self) -> anyhow::Result<Result<JobSpec, String>> {
        let Some(agent_id) = self.agent.clone() else { bail!("--agent is needed") };
        let job_id = self.job_id.unwrap_or_else(JobId::now);
        let session_id = match &self.session {
            Some(session) => session.clone(),
            None => job_id.to_string().parse()?,
        };
        let input = match Json::parse(&self.input) {
            Ok(input) => input,
            Err(error) => return Ok(Err(format!("--input: {error}"))),
        };
        let mut spec = JobSpec::new(session_id, agent_id, input);
        spec.job_id = job_id;
        spec.tenant = self.tenant.clone();
        spec.user_id = self.user.clone();
        spec.pool = self.pool.clone();
        spec.retry.max_attempts = self.max_attempts;
        spec.timeout_ms = self.timeout_ms;
        spec.run_at = self.run_at;
        spec.delay_ms = self.delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        spec.deadline_ms = self.deadline_ms;
        spec.max_stalled_iterations = self.max_stalled_iterations;
        spec.max_iterations = self.max_iterations;
        spec.max_tokens = self.max_tokens;
        spec.max_cost_usd = self.max_cost_usd;
        spec.on_busy = self.on_busy;
        spec.lane = self.lane;
        spec.limits = match LimitKeys::of(self.limit_keys.iter().cloned()) {
            Ok(keys) => keys,
            Err(error) => return Ok(Err(error.to_string())),
        };
        spec.labels = match Labels::of(self.labels.iter().cloned()) {
            Ok(labels) => labels,
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(Ok(spec))
    }

    async fn one_over(&self, client: &Client) -> anyhow::Result<ExitCode> {
        if !api::is_of_key(&self.tenant) {
            return Ok(ExitCode::from(2));
        }
        let spec = match self.spec()? {
            Ok(spec) => spec,
            Err(problem) => return Ok(refuse(&problem)),
        };
        let job_id = spec.job_id;
        let Batch { answers, error } = client.submit_all(&[spec]).await;
        let answer = answers.into_iter().next();
        let Some(Answer { status, problem, .. }) = answer else {
            return Err(error.context("no answer came")?.into());
        };
        match problem {
            Some(problem) => return Ok(refuse(&in_words(problem))),
            None if status == 200 => note!("{job_id} was accepted before"),
            None => {}
        }
        out!("{job_id}");
        Ok(ExitCode::SUCCESS)
    }

    async fn one(&self, intake_limits: &IntakeLimits, dispatch: &Dispatch) -> anyhow::Result<ExitCode> {
        let spec = match self.spec()? {
            Ok(spec) => spec,
            Err(problem) => return Ok(refuse(&problem)),
        };
        // The same checks as in a worker, including the size.
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
            note!("{job_id} is accepted; its message follows when the broker accepts it");
        }
        out!("{job_id}");
        Ok(ExitCode::SUCCESS)
    }
}

/// Why a job was refused, as the field and what is wrong with it.
pub fn in_words(problem: Problem) -> String {
    match problem.field {
        // It means nothing for flags and lines.
        Some(field) if field != "body" => format!("{field}: {}", problem.detail),
        _ => problem.detail,
    }
}

fn refuse(problem: &str) -> ExitCode {
    note!("not accepted: {problem}");
    ExitCode::from(2)
}
