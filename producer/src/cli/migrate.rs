//! `producer migrate`: updates the schema, builds indexes, and prints what was done.

use std::process::ExitCode;

use anyhow::Context as _;
use postgres::Address;

use migrations::{IndexError, SchemaError};
use service::{note, out, with_causes};

use super::context::Context;

pub async fn run(mut context: Context) -> anyhow::Result<ExitCode> {
    let ledger = context.ledger()?;
    let migrated = migrations::migrate(&ledger.address).await?;
    let partitions = ledger.store.maintain_partitions(ledger.retention).await.context("making partitions")?;
    match migrated.versions.as_slice() {
        [] => out!("the schema is up to date"),
        versions => out!("applied {} migrations, the schema is up to date", versions.len()),
    }
    if let Some((made, dropped)) = partitions {
        out!(
            "harness_results, harness_labels, harness_calls and harness_history: {made} weeks of partitions made, {dropped} dropped"
        );
    }
    if migrated.older_sessions > 0 {
        out!(
            "busy sessions of this account that keep its older settings until they end: {}; if a pooler holds them, enter \
             RECONNECT in its console, or run `producer migrate` again later",
            migrated.older_sessions
        );
    }
    build_indexes(&ledger.address).await?;
    Ok(ExitCode::SUCCESS)
}

/// Builds indexes that take their time, after the schema is there: programs of this release may start meanwhile.
async fn build_indexes(address: &Address) -> anyhow::Result<()> {
    let says = |table: &str, left: usize| {
        note!("building the index of {table}, {left} to build; the fleet works meanwhile");
    };
    match migrations::build_indexes(address, says).await {
        Ok(0) => {}
        Ok(built) => out!("harness_results: {built} indexes built"),
        Err(SchemaError::Index(error @ IndexError::UnderWay { .. })) => note!("{error}"),
        Err(SchemaError::Index(error)) => note!(
            "{}; the fleet works without it, and lists of a tenant are slower: run `producer migrate` again later",
            with_causes(&error)
        ),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
