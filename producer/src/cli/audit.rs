//! `producer audit`: whether the ledger keeps its promises, at this moment and on a fleet at work.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use job::{one_line, shown};
use service::{note, out, printed, with_causes};
use store::{AuditScope, Checked, Kind, StoreError};

use super::age::parse_age;
use super::context::Context;

/// Prove that nothing was lost, doubled or paid twice: a line per check, and below it the ids that break it.
///
/// It only reads, in one snapshot of Postgres's, so it may run beside a fleet at work. Conservation checks fail when the
/// ledger contradicts itself. Liveness checks warn when nobody moves what is in order. Exit codes: 0 all is well, 3 a
/// check has failed, or with --strict has warned.
#[derive(Debug, Args)]
pub struct Audit {
    /// Repeat every so many seconds, until SIGTERM or until a check has failed: what is wrong does not heal, and the end
    /// of the process tells whoever runs it. A Postgres that is away meanwhile is waited for
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
    /// Only results with ids not older than this and sessions that changed since, such as 90m, 36h or 7d; live jobs in
    /// any case
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    since: Option<Duration>,
    /// Warn of jobs that wait longer than this for their next step, such as 90s, 15m or 2h
    #[arg(long, value_name = "AGE", value_parser = parse_age, default_value = "15m")]
    stuck_after: Duration,
    /// Let a warning fail it
    #[arg(long)]
    strict: bool,
    /// Name at most so many ids per check
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// One JSON object per audit
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

    /// A watch that found nothing has done what it was asked; an audit that did not end proves nothing.
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
        // A watch with nothing to tell tells only that.
        if self.watch.is_none() || failed + warned > 0 {
            audit.checks.iter().for_each(tell);
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
    note!("no audit this time: {}", with_causes(error));
}

/// A line for the check, and one below it for each row that it names.
fn tell(checked: &Checked) {
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
        out!("          and {others} others; --limit names more");
    }
}
