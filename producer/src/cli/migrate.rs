//! `producer migrate`: prints what it applied.

use std::process::ExitCode;

use anyhow::Context as _;

use super::context::Context;
use service::out;

pub async fn run(mut context: Context) -> anyhow::Result<ExitCode> {
    let ledger = context.ledger()?;
    let applied = migrations::migrate(&ledger.address).await?;
    let partitions = ledger.store.maintain_partitions(ledger.retention).await.context("making partitions")?;
    match applied.as_slice() {
        [] => out!("the schema is up to date"),
        versions => out!("applied {} migrations, the schema is up to date", versions.len()),
    }
    if let Some((made, dropped)) = partitions {
        out!("harness_results: {made} partitions made, {dropped} dropped");
    }
    Ok(ExitCode::SUCCESS)
}
