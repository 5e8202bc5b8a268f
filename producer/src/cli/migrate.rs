//! `producer migrate`: updates the schema and prints what was applied.

use std::process::ExitCode;

use anyhow::Context as _;

use super::context::Context;
use service::out;

pub async fn run(mut context: Context) -> anyhow::Result<ExitCode> {
    let ledger = context.ledger()?;
    let migrated = migrations::migrate(&ledger.address).await?;
    let partitions = ledger.store.maintain_partitions(ledger.retention).await.context("making partitions")?;
    match migrated.versions.as_slice() {
        [] => out!("the schema is up to date"),
        versions => out!("applied {} migrations, the schema is up to date", versions.len()),
    }
    if let Some((made, dropped)) = partitions {
        out!("harness_results: {made} partitions made, {dropped} dropped");
    }
    if migrated.older_sessions > 0 {
        out!(
            "busy sessions of this account that keep its older settings until they end: {}; if a pooler holds them, enter \
             RECONNECT in its console, or run `producer migrate` again later",
            migrated.older_sessions
        );
    }
    Ok(ExitCode::SUCCESS)
}
