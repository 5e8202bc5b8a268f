//! `producer audit`: checks whether the ledger keeps its promises, now and while the fleet works.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use job::{one_line, shown};
use service::{note, out, printed, with_causes};
use store::{AuditScope, Checked, Kind, StoreError};

use super::age::parse_age;
use super::context::Context;

/// Check that no job was lost, duplicated or paid twice: a line per check, and below it the ids that break it.
///
/// The audit only reads, in one Postgres snapshot, so it can run while the fleet works. A conservation check fails when
/// the ledger contradicts itself. A liveness check warns when the ledger is in order but a job does not move.
///
/// Exit codes: 0 all is well, 3 a check has failed or, with --strict, has warned.
#[derive(Debug, Args)]
pub struct Audit {
    /// Repeat every so many seconds, until SIGTERM or until a check fails. A failed check does not heal, so the process
    /// ends and its supervisor notices. While Postgres is away, the watch waits for it
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
    /// Only results whose ids are not older than this and sessions that changed since, such as 90m, 36h or 7d; live
    /// jobs are always included
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    since: Option<Duration>,
    /// Warn about jobs that wait longer than this for their next step, such as 90s, 15m or 2h
    #[arg(long, value_name = "AGE", value_parser = parse_age, default_value = "15m")]
    stuck_after: Duration,
    /// Treat a warning as a failure
    #[arg(long)]
    strict: bool,
    /// Name at most this many ids per check
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print one JSON object per audit
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let ledger = context.checked_ledger().await?;
        let scope = AuditScope {
            since: self.since,
            limit: self.limit,
            stuck_after: self.stuck_after,
            retention: ledger.retention,
        };
        loop {
            let audit = tokio::select! {
                audit = ledger.store.audit(&scope) => audit,
                () = context.stop.cancelled() => return self.stopped(),
            };
            match audit {
                Ok(audit) => {
                    self.print(&audit)?;
                    if self.fails(&audit) {
                        return Ok(ExitCode::from(3));
                    }
                }
                Err(error) if self.watch.is_some() && error.is_retryable() => complain(&error),
                Err(error) => return Err(error).context("auditing the ledger"),
            }
            let Some(seconds) = self.watch else { return Ok(ExitCode::SUCCESS) };
            if !printed(&context.stop).await {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
                () = context.stop.cancelled() => return self.stopped(),
            }
        }
    }

    /// A stopped watch without a finding has done its work. An audit that was stopped before its end proves nothing.
    fn stopped(&self) -> anyhow::Result<ExitCode> {
        match self.watch {
            Some(_) => Ok(ExitCode::SUCCESS),
            None => anyhow::bail!("the audit was stopped before its end"),
        }
    }

    fn fails(&self, audit: &store::Audit) -> bool {
        let warned = self.strict && audit.findings(Kind::Liveness) > 0;
        warned || audit.findings(Kind::Conservation) > 0
    }

    fn print(&self, audit: &store::Audit) -> anyhow::Result<()> {
        if self.json {
            out!("{}", one_line(serde_json::to_string(audit)?));
            return Ok(());
        }
        let (failed, warned) = (audit.findings(Kind::Conservation), audit.findings(Kind::Liveness));
        // A watch without a finding prints only the summary.
        if self.watch.is_none() || failed + warned > 0 {
            audit.checks.iter().for_each(report);
        }
        out!(
            "{}: {} checks in {:.1} s, {failed} failed, {warned} warned",
            audit.at,
            audit.checks.len(),
            audit.took_ms as f64 / 1e3
        );
        Ok(())
    }
}

fn complain(error: &StoreError) {
    note!("this audit could not be made: {}", with_causes(error));
}

/// Prints a line for the check, and below it one for each offending row.
fn report(checked: &Checked) {
    let holds = match (checked.found, checked.kind) {
        (0, _) => "ok",
        (_, Kind::Conservation) => "FAILED",
        (_, Kind::Liveness) => "warns",
    };
    let count = if checked.found > 0 { format!(": {}", checked.found) } else { String::new() };
    out!("{holds:6}  {:11}  {}{count}", checked.check, checked.rule);
    for row in &checked.offenders {
        out!("          {}  {}", shown(&row.id), shown(&row.detail));
    }
    let others = checked.found - checked.offenders.len() as i64;
    if others > 0 {
        out!("          and {others} more; --limit raises how many are named");
    }
}
