//! `producer top`: what waits and what runs, drawn anew every few seconds.

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use job::{one_line, shown};
use service::out;
use store::{COUNTED_TO, FleetNow, PoolNow, PoolSeen, Store};
use tokio::time::sleep;

use super::age::parse_age;
use super::context::Context;
use super::status;
use crate::why::lasting;

/// To the first column of the first line, and nothing behind it.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Show pools, tenants and the jobs that are longest where they are, live, until Ctrl-C
///
/// Where stdout is no terminal it looks once and ends, unless it prints JSON. Jobs are counted up to 10,000 of a kind.
///
/// Exit codes: 0 shown, 1 Postgres did not answer, 2 wrong arguments, 130 stopped by a signal.
#[derive(Debug, Args)]
pub struct Top {
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_interval)]
    every: Duration,
    /// Look once and end
    #[arg(long)]
    once: bool,
    /// How many of the jobs that are longest where they are
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=500))]
    oldest: u32,
    /// Print one JSON object per look; with --once a single one
    #[arg(long)]
    json: bool,
}

/// A look asks Postgres three questions; more often than this nobody reads the answer.
fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_age(text)? {
        every if every < Duration::from_millis(500) => Err("expected 500ms or more".to_owned()),
        every => Ok(every),
    }
}

impl Top {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let ledger = context.checked_ledger().await?;
        let is_live = !self.once && stdout().is_terminal();
        loop {
            let shown = self.look(&ledger.store).await?;
            let clear = if is_live && !self.json { CLEAR } else { "" };
            out!("{clear}{shown}");
            if self.once || !(is_live || self.json) {
                return Ok(ExitCode::SUCCESS);
            }
            sleep(self.every).await;
        }
    }

    async fn look(&self, store: &Store) -> anyhow::Result<String> {
        let now = store.fleet_now(self.oldest).await.context("reading what waits and runs")?;
        if self.json {
            return Ok(one_line(serde_json::to_string(&now)?));
        }
        Ok(drawn(&now))
    }
}

fn drawn(now: &FleetNow) -> String {
    let mut parts = vec![pools(now)];
    parts.extend(held_keys(now));
    // A fleet with one tenant needs no list of them.
    if now.tenants.iter().any(|tenant| tenant.tenant != "default" || tenant.max_waiting.is_some()) {
        parts.push(tenants(now));
    }
    if !now.oldest.is_empty() {
        parts.push(oldest(now));
    }
    parts.join("\n\n")
}

fn pools(now: &FleetNow) -> String {
    let mut table = status::table();
    table.set_header([
        "pool",
        "in line",
        "held back",
        "workers",
        "draining",
        "running",
        "slots",
        "queued",
        "oldest",
        "due",
        "later",
        "blocked",
        "awaiting input",
        "starts/s",
    ]);
    for pool in &now.pools {
        table.add_row([
            shown(&pool.pool).into_owned(),
            pool.line.as_ref().map_or_else(|| "-".to_owned(), in_line),
            pool.line
                .as_ref()
                .map_or_else(|| "-".to_owned(), |seen| (seen.waiting() - seen.could_run).to_string()),
            pool.workers.to_string(),
            pool.draining.to_string(),
            pool.running.to_string(),
            pool.slots.to_string(),
            counted(pool.queued),
            oldest_of(pool).map_or_else(|| "-".to_owned(), age),
            counted(pool.due),
            counted(pool.later),
            counted(pool.blocked),
            counted(pool.awaiting_input),
            format!("{:.1}", pool.starts_per_s),
        ]);
    }
    table.to_string()
}

/// Where limits hold most jobs back, if anywhere.
fn held_keys(now: &FleetNow) -> Option<String> {
    let mut table = status::table();
    table.set_header(["held back by a limit: pool", "tenant", "keys", "jobs"]);
    for pool in &now.pools {
        for held in pool.line.iter().flat_map(|seen| &seen.held_keys) {
            table.add_row([
                shown(&pool.pool).into_owned(),
                shown(&held.tenant).into_owned(),
                shown(&held.keys).into_owned(),
                held.jobs.to_string(),
            ]);
        }
    }
    (table.row_count() > 0).then(|| table.to_string())
}

/// How long the first job has waited that only waits for a slot, in seconds.
fn oldest_of(pool: &PoolNow) -> Option<f64> {
    let in_line =
        pool.line.as_ref().filter(|seen| seen.could_run > 0).map(|seen| seen.oldest_ms as f64 / 1_000.0);
    pool.oldest_queued_s.into_iter().chain(in_line).reduce(f64::max)
}

/// Such as "12 (2 high, 3 low)".
fn in_line(seen: &PoolSeen) -> String {
    let PoolSeen { begun, high, low, .. } = *seen;
    let parts = [(begun, "begun"), (high, "high"), (low, "low")];
    let parts: Vec<String> =
        parts.iter().filter(|(jobs, _)| *jobs > 0).map(|(jobs, name)| format!("{jobs} {name}")).collect();
    match parts.is_empty() {
        true => seen.waiting().to_string(),
        false => format!("{} ({})", seen.waiting(), parts.join(", ")),
    }
}

fn tenants(now: &FleetNow) -> String {
    let mut table = status::table();
    table.set_header(["tenant", "running", "waiting", "may wait"]);
    for tenant in &now.tenants {
        table.add_row([
            shown(&tenant.tenant).into_owned(),
            counted(tenant.running),
            counted(tenant.waiting),
            tenant.max_waiting.map_or_else(|| "-".to_owned(), |most| most.to_string()),
        ]);
    }
    table.to_string()
}

fn oldest(now: &FleetNow) -> String {
    let mut table = status::table();
    table.set_header([
        "longest where they are",
        "for",
        "state",
        "pool",
        "tenant",
        "session",
        "agent",
        "attempts",
    ]);
    for job in &now.oldest {
        table.add_row([
            job.job_id.to_string(),
            age(job.since_s),
            job.state.clone(),
            shown(&job.pool).into_owned(),
            job.tenant.clone(),
            shown(&job.session_id).into_owned(),
            shown(&job.agent_id).into_owned(),
            job.attempts.to_string(),
        ]);
    }
    table.to_string()
}

fn counted(jobs: i64) -> String {
    if jobs < COUNTED_TO { jobs.to_string() } else { format!("{COUNTED_TO}+") }
}

fn age(seconds: f64) -> String {
    lasting(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}
