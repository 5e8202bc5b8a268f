//! `producer roles`: the database accounts that may enqueue jobs by SQL.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use job::{Tenant, one_line, shown};
use service::{note, out};
use store::{ChangedRole, Store};

use super::context::Context;
use super::operator::operator;
use super::status;

#[derive(Debug, Args)]
pub struct RolesArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let a database role enqueue jobs of a tenant, by `SELECT harness_enqueue('{"agent_id": …}')`
    ///
    /// The role must be there (`CREATE ROLE … LOGIN`). It gets the right to call the function and no other right: it can
    /// neither read nor change a table of the fleet. The role is the one that has logged in (session_user), so a pool of
    /// connections needs a role of its own for each tenant. Adding a role again changes its tenant.
    ///
    /// Exit codes: 0 added, 1 there is no such role or tenant, or DATABASE_URL's account may not grant the right, 2 wrong
    /// arguments.
    Add {
        /// Its name in Postgres
        role: String,
        /// Whose jobs it enqueues
        #[arg(long, default_value_t)]
        tenant: Tenant,
        /// Let its jobs name any queue for their replies (`reply_to`)
        #[arg(long)]
        allow_reply_to: bool,
    },
    /// List the roles that may enqueue
    List {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Take a role's right to enqueue; what it has committed goes on
    ///
    /// Exit codes: 0 removed, 1 it had no such right, 2 wrong arguments.
    Remove {
        /// Its name in Postgres
        role: String,
    },
}

impl RolesArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let store = context.checked_ledger().await?.store;
        match self.command {
            Command::Add { role, tenant, allow_reply_to } => {
                add(&store, &role, &tenant, allow_reply_to).await
            }
            Command::List { json } => list(&store, json).await,
            Command::Remove { role } => remove(&store, &role).await,
        }
    }
}

async fn add(store: &Store, role: &str, tenant: &Tenant, may_reply: bool) -> anyhow::Result<ExitCode> {
    let name = shown(role);
    match store.add_role(&operator(), role, tenant, may_reply).await.context("adding a role")? {
        ChangedRole::Done => {}
        ChangedRole::NoRole => {
            note!("{name}: Postgres has no such role; make it first: CREATE ROLE … LOGIN");
            return Ok(ExitCode::FAILURE);
        }
        ChangedRole::NoTenant => {
            note!("{tenant}: no such tenant; `producer tenants list` names them");
            return Ok(ExitCode::FAILURE);
        }
    }
    store.change_grant(role, true).await.with_context(|| {
        format!("granting {name} the right to call harness_enqueue; the owner of the schema can")
    })?;
    out!("{name} enqueues jobs of {tenant}");
    Ok(ExitCode::SUCCESS)
}

async fn list(store: &Store, json: bool) -> anyhow::Result<ExitCode> {
    let roles = store.roles().await.context("reading roles")?;
    if json {
        for role in &roles {
            out!("{}", one_line(serde_json::to_string(role)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header(["role", "tenant", "reply_to", "may call", "added"]);
    let yes = |is: bool| if is { "yes" } else { "no" };
    for role in &roles {
        let (reply, call) = (yes(role.may_reply), yes(role.may_call));
        table.add_row([&*shown(&role.role), &role.tenant, reply, call, &role.added_at]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

async fn remove(store: &Store, role: &str) -> anyhow::Result<ExitCode> {
    let name = shown(role);
    if !store.remove_role(&operator(), role).await.context("removing a role")? {
        note!("{name}: it may not enqueue; `producer roles list` names those that may");
        return Ok(ExitCode::FAILURE);
    }
    store.change_grant(role, false).await.with_context(|| format!("taking the right from {name}"))?;
    out!("{name} enqueues nothing more");
    Ok(ExitCode::SUCCESS)
}
