//! `producer log`: what operators did.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use job::{Tenant, one_line, shown};
use service::out;

use super::context::Context;
use super::status;

/// Show the operators' log, newest first: who changed tenants and keys, who cancelled, redrove and dropped jobs and answered
/// what they ask, and how often each key was used in a minute
///
/// Its rows cannot be changed or removed; each holds the hash of the one before it, and `producer audit` checks the chain.
/// Keep the newest hash somewhere else from time to time: it shows whether rows were cut off the end.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Only what concerns this tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Option<Tenant>,
    /// At most so many rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

impl LogArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let store = context.checked_ledger().await?.store;
        let rows = store.operators_log(self.limit.into(), self.tenant.as_ref()).await;
        let rows = rows.context("reading the operators' log")?;
        if self.json {
            for row in &rows {
                out!("{}", one_line(serde_json::to_string(row)?));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = status::table();
        table.set_header(["row", "at", "by", "act", "tenant", "detail", "hash"]);
        for row in &rows {
            table.add_row([
                row.id.to_string(),
                row.at.clone(),
                shown(&row.actor).into_owned(),
                row.act.clone(),
                row.tenant.clone().unwrap_or_else(|| "-".to_owned()),
                one_line(row.detail.to_string()),
                row.hash.chars().take(16).collect(),
            ]);
        }
        out!("{table}");
        Ok(ExitCode::SUCCESS)
    }
}
