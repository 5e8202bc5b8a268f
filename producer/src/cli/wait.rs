//! `producer wait`: waits until jobs have ended.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use job::JobId;

use service::{note, unless_stopped};
use tokio_util::sync::CancellationToken;

use super::api::{self, ApiArgs};
use super::context::Context;
use super::lines::{Line, Lines};
use super::progress::Progress;
use super::status;
use crate::wait::{job_views, wait};

/// Lines per batch.
const LINES: usize = 5_000;
/// Longer than an id and the space around it.
const LONGEST_LINE: usize = 1_024;

/// Wait until jobs have ended, and show their results.
///
/// A job that the ledger does not know yet is waited for as well: its message may still be on its way.
///
/// Exit codes: 0 all succeeded, 1 one failed or was cancelled, 3 the time is over and one has not ended.
#[derive(Debug, Args)]
pub struct Wait {
    /// The jobs' ids; without any, they are read from stdin, one per line
    jobs: Vec<JobId>,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 600)]
    timeout_s: u64,
    /// Print one JSON object per line, with the outputs, instead of a table
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    api: ApiArgs,
}

impl Wait {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let client = self.api.client(&mut context)?;
        let ledger = if client.is_none() { Some(context.checked_ledger().await?) } else { None };
        let jobs = if self.jobs.is_empty() { read_ids(&context.stop).await? } else { self.jobs.clone() };
        let deadline = Instant::now() + Duration::from_secs(self.timeout_s);
        let Some(ledger) = ledger else {
            let client = client.context("an address of the HTTP API")?;
            return api::wait(&client, &jobs, deadline, &context.stop, (self.quiet, self.json)).await;
        };
        let progress = Progress::new(Some(jobs.len() as u64));
        let ended = |count| progress.advance(count);
        let open = wait(&ledger.store, &jobs, deadline, &context.stop, ended).await;
        progress.finish();
        let open = open?;
        let views = job_views(&ledger.store, &jobs).await?;
        if !self.quiet {
            status::print(&views, self.json)?;
        }
        if !open.is_empty() {
            note!("{} of {} jobs have not ended", open.len(), jobs.len());
            return Ok(ExitCode::from(3));
        }
        Ok(status::exit_code(&jobs, &views))
    }
}

/// Reads ids from stdin, one per line, until its end or the stop.
async fn read_ids(stop: &CancellationToken) -> anyhow::Result<Vec<JobId>> {
    let mut lines = Lines::read("-".into(), LINES, LONGEST_LINE);
    let mut ids = Vec::new();
    loop {
        let come = unless_stopped(stop, lines.next(LINES)).await?;
        if come.is_empty() {
            return Ok(ids);
        }
        for Line { number, text, .. } in come {
            let id = text.map_err(anyhow::Error::from).and_then(|text| Ok(text.parse::<JobId>()?));
            ids.push(id.with_context(|| format!("stdin, line {number}: job id"))?);
        }
    }
}
