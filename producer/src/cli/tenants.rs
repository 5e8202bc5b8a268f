//! `producer tenants`: groups of callers that do not see each other's work.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use job::{Tenant, one_line};
use service::{note, out};
use store::{ChangedTenant, Store, TenantChange, TenantView};

use super::context::Context;
use super::operator::operator;
use super::status;
use crate::older::refuse_beside_older_workers;

#[derive(Debug, Args)]
pub struct TenantsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a tenant
    ///
    /// Its callers need keys: `producer keys create --tenant NAME`. The tenant `default` is always there: jobs that come
    /// over AMQP, and those that name no tenant, belong to it. While a worker of an older release runs, which knows no
    /// tenants, none is created.
    ///
    /// Exit codes: 0 created, 1 there is one of that name or a worker that knows no tenants, 2 wrong arguments.
    Create {
        /// Its name: 1 to 64 characters of A-Z a-z 0-9 . _ : @ -
        tenant: Tenant,
        #[command(flatten)]
        limits: Limits,
    },
    /// List tenants with their limits and how many of their keys are valid
    List {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Change a tenant's limits, or open it again
    ///
    /// Exit codes: 0 changed, 1 there is none of that name, 2 wrong arguments.
    Set {
        /// Its name
        tenant: Tenant,
        #[command(flatten)]
        limits: Limits,
        /// Accept its keys again after `producer tenants close`
        #[arg(long)]
        reopen: bool,
    },
    /// Refuse all keys of a tenant, within 5 s; its jobs go on, and nothing is deleted
    ///
    /// `producer tenants set NAME --reopen` takes it back. Exit codes: 0 it is closed, 1 there is none of that name, 2 wrong
    /// arguments.
    Close {
        /// Its name
        tenant: Tenant,
    },
}

/// `none` takes a limit away.
#[derive(Clone, Debug, Default, Args)]
struct Limits {
    /// Its share of the workers when there are not enough for all, relative to the shares of the others; in pools with a line
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    weight: Option<u32>,
    /// How many of its jobs may run at once, or none for no limit; in pools with a line
    #[arg(long, value_name = "N")]
    max_running: Option<Limit>,
    /// How many of its jobs may wait, or none for no limit
    #[arg(long, value_name = "N")]
    max_waiting: Option<Limit>,
    /// How many jobs it may submit per second in the long run, or none for no limit
    #[arg(long, value_name = "RATE")]
    rate_per_s: Option<Rate>,
    /// How many jobs it may submit at once, or none for no limit
    #[arg(long, value_name = "N", value_parser = parse_burst)]
    burst: Option<Limit>,
}

/// A count, or none.
#[derive(Clone, Copy, Debug)]
struct Limit(Option<u32>);

impl FromStr for Limit {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let most = i32::MAX as u32;
        match text.parse() {
            _ if text == "none" => Ok(Limit(None)),
            Ok(count) if count <= most => Ok(Limit(Some(count))),
            _ => Err(format!("expected a whole number up to {most}, or none")),
        }
    }
}

fn parse_burst(text: &str) -> Result<Limit, String> {
    match text.parse()? {
        Limit(Some(0)) => Err("expected at least 1, or none".to_owned()),
        burst => Ok(burst),
    }
}

/// A number of jobs per second, or none.
#[derive(Clone, Copy, Debug)]
struct Rate(Option<f64>);

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "none" => Ok(Rate(None)),
            Ok(rate) if store::Rate::PER_S.contains(&rate) => Ok(Rate(Some(rate))),
            _ => Err("expected a number from 0.001 to 1000000, or none".to_owned()),
        }
    }
}

impl Limits {
    fn change(&self) -> TenantChange {
        TenantChange {
            weight: self.weight,
            max_running: self.max_running.map(|limit| limit.0),
            max_waiting: self.max_waiting.map(|limit| limit.0),
            rate_per_s: self.rate_per_s.map(|rate| rate.0),
            burst: self.burst.map(|limit| limit.0),
        }
    }
}

impl TenantsArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let store = context.checked_ledger().await?.store;
        let actor = operator();
        match self.command {
            Command::Create { tenant, limits } => {
                if let Err(why) = fits(&limits.change(), None) {
                    note!("{why}");
                    return Ok(ExitCode::from(2));
                }
                refuse_beside_older_workers(&store).await?;
                if store
                    .create_tenant(&actor, &tenant, &limits.change())
                    .await
                    .context("creating a tenant")?
                {
                    out!("{tenant} is created");
                    note!("its callers need keys: producer keys create --tenant {tenant}");
                    return Ok(ExitCode::SUCCESS);
                }
                note!("{tenant}: there is a tenant of that name; `producer tenants set` changes it");
                Ok(ExitCode::FAILURE)
            }
            Command::List { json } => list(&store, json).await,
            Command::Set { tenant, limits, reopen } => {
                set(&store, &actor, &tenant, &limits.change(), reopen).await
            }
            Command::Close { tenant } if tenant == Tenant::default() => {
                note!(
                    "{tenant} cannot be closed: jobs that name no tenant belong to it; revoke its keys instead"
                );
                Ok(ExitCode::from(2))
            }
            Command::Close { tenant } => {
                let closed = store.close_tenant(&actor, &tenant).await.context("closing a tenant")?;
                Ok(report(&tenant, closed, "is closed: its keys are refused within 5 s", "was closed before"))
            }
        }
    }
}

/// Refuses a burst that the rate would not bring back in a reasonable time; what is not changed is as it was.
fn fits(change: &TenantChange, before: Option<&TenantView>) -> Result<(), String> {
    let rate = change.rate_per_s.unwrap_or(before.and_then(|before| before.rate_per_s));
    let burst = change.burst.map_or(before.and_then(|before| before.burst), |burst| burst.map(i64::from));
    let (Some(rate), Some(burst)) = (rate, burst) else { return Ok(()) };
    let most = store::Rate::most_burst(rate);
    if burst <= i64::from(most) {
        return Ok(());
    }
    let days = store::Rate::WHOLE_WITHIN_DAYS;
    Err(format!(
        "--burst: got {burst} beside {rate} jobs per second, expected at most {most}: what that rate gives in {days} days"
    ))
}

async fn set(
    store: &Store,
    actor: &str,
    tenant: &Tenant,
    change: &TenantChange,
    reopen: bool,
) -> anyhow::Result<ExitCode> {
    let changes = *change != TenantChange::default();
    if !changes && !reopen {
        note!("nothing to change: name a limit, such as --max-running 10, or --reopen");
        return Ok(ExitCode::from(2));
    }
    if changes {
        let tenants = store.tenants().await.context("reading tenants")?;
        if let Err(why) = fits(change, tenants.iter().find(|view| view.tenant == tenant.as_str())) {
            note!("{why}");
            return Ok(ExitCode::from(2));
        }
        let done = store.change_tenant(actor, tenant, change).await.context("changing a tenant")?;
        let answer = if done { ChangedTenant::Done } else { ChangedTenant::Unknown };
        let code = report(tenant, answer, "is changed", "");
        if !done {
            return Ok(code);
        }
    }
    if reopen {
        let opened = store.reopen_tenant(actor, tenant).await.context("opening a tenant again")?;
        return Ok(report(tenant, opened, "is open: its keys are accepted within 5 s", "was open before"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the answer to a change.
fn report(tenant: &Tenant, answer: ChangedTenant, done: impl fmt::Display, before: &str) -> ExitCode {
    match answer {
        ChangedTenant::Done => out!("{tenant} {done}"),
        ChangedTenant::Before => out!("{tenant} {before}"),
        ChangedTenant::Unknown => {
            note!("{tenant}: no such tenant; `producer tenants list` names them");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn list(store: &Store, json: bool) -> anyhow::Result<ExitCode> {
    let tenants = store.tenants().await.context("reading tenants")?;
    if json {
        for tenant in &tenants {
            out!("{}", one_line(serde_json::to_string(tenant)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header([
        "tenant",
        "weight",
        "max running",
        "max waiting",
        "rate/s",
        "burst",
        "live keys",
        "created",
        "closed",
    ]);
    tenants.iter().for_each(|tenant| _ = table.add_row(cells(tenant)));
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn cells(tenant: &TenantView) -> Vec<String> {
    fn or_dash<T: ToString>(limit: Option<T>) -> String {
        limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string())
    }
    vec![
        tenant.tenant.clone(),
        tenant.weight.to_string(),
        or_dash(tenant.max_running),
        or_dash(tenant.max_waiting),
        or_dash(tenant.rate_per_s),
        or_dash(tenant.burst),
        tenant.live_keys.to_string(),
        tenant.created_at.clone(),
        or_dash(tenant.closed_at.clone()),
    ]
}
