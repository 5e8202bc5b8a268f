//! `producer limits`: how many jobs with a key may be at work at a time.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use job::{Name, Tenant, one_line};
use service::{note, out};
use store::{ChangedLimit, HIGHEST_LIMIT, MOST_LIMITS, Store};

use super::context::Context;
use super::operator::operator;
use super::status;

#[derive(Debug, Args)]
pub struct LimitsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bound how many jobs of a key are at work in each pool at a time
    ///
    /// A job names its keys in its field `limits` (`producer enqueue --limit-key`). It counts from its turn in the line to the end
    /// of its attempt. Limits hold in pools with a line (`producer pools line POOL on`). One that is set below what is at work stops
    /// nothing: no other job begins until there is room. 0 holds all back.
    ///
    /// Exit codes: 0 it is so now, 1 there is no such tenant, or it has 10,000 limits, 2 wrong arguments.
    Set {
        /// The key
        key: Name,
        /// How many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(HIGHEST_LIMIT)))]
        max: u32,
        /// Whose jobs
        #[arg(long, default_value_t)]
        tenant: Tenant,
    },
    /// List limits
    List {
        /// Only those of this tenant
        #[arg(long)]
        tenant: Option<Tenant>,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Take a limit away
    ///
    /// Exit codes: 0 it is gone, 1 there was none, 2 wrong arguments.
    Remove {
        /// The key
        key: Name,
        /// Whose jobs
        #[arg(long, default_value_t)]
        tenant: Tenant,
    },
}

impl LimitsArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let store = context.checked_ledger().await?.store;
        match self.command {
            Command::Set { key, max, tenant } => set(&store, &tenant, &key, max).await,
            Command::List { tenant, json } => list(&store, tenant.as_ref(), json).await,
            Command::Remove { key, tenant } => remove(&store, &tenant, &key).await,
        }
    }
}

async fn set(store: &Store, tenant: &Tenant, key: &Name, max: u32) -> anyhow::Result<ExitCode> {
    if store.tenant_limits(tenant).await.context("looking for the tenant")?.is_none() {
        note!("{tenant}: no such tenant; `producer tenants list` names them");
        return Ok(ExitCode::FAILURE);
    }
    let at_work =
        format!("at most {max} jobs of {tenant} with the key {key} are at work in a pool with a line");
    match store.set_limit(&operator(), tenant, key, max).await.context("setting a limit")? {
        ChangedLimit::Done => out!("{at_work}"),
        ChangedLimit::Before => out!("{at_work}, as before"),
        ChangedLimit::Full => {
            note!(
                "{tenant} has {MOST_LIMITS} limits, which is the most: `producer limits remove` makes room"
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    let pools = store.pools().await.context("reading pools")?;
    let without: Vec<&str> = pools.iter().filter(|pool| !pool.line).map(|pool| pool.pool.as_str()).collect();
    if let Some(first) = without.first() {
        note!(
            "it does not hold in pools without a line, such as {first} ({} of {}): `producer pools line POOL on`",
            without.len(),
            pools.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(store: &Store, tenant: Option<&Tenant>, json: bool) -> anyhow::Result<ExitCode> {
    let limits = store.limits(tenant).await.context("reading limits")?;
    if json {
        for limit in &limits {
            out!("{}", one_line(serde_json::to_string(limit)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header(["tenant", "key", "max", "changed"]);
    for limit in &limits {
        table.add_row([&limit.tenant, &limit.key, &limit.max.to_string(), &limit.changed_at]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

async fn remove(store: &Store, tenant: &Tenant, key: &Name) -> anyhow::Result<ExitCode> {
    if !store.remove_limit(&operator(), tenant, key).await.context("removing a limit")? {
        note!("{tenant} has no limit of the key {key}; `producer limits list` names those that there are");
        return Ok(ExitCode::FAILURE);
    }
    out!("jobs of {tenant} with the key {key} have no limit");
    Ok(ExitCode::SUCCESS)
}
