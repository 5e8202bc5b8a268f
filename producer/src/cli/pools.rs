//! `producer pools`: which pools have a line, and what waits there.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use job::{Name, one_line};
use serde_json::json;
use service::{note, out};
use store::{ChangedPool, PoolSeen, PoolView, Store};

use super::context::Context;
use super::operator::operator;
use super::status;
use crate::older::{said, without_lines};
use crate::why::lasting;

#[derive(Debug, Args)]
pub struct PoolsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give a pool a line, or take it away
    ///
    /// In a line, jobs wait in Postgres for their turn, and only as many as the workers can take soon are at the broker. Turns go
    /// to jobs that have begun before; then to the lanes high, normal and low, as 12 to 3 to 1; in a lane to the tenant with the
    /// fewest jobs at work for its weight; and by the order in which they came due. The limits of keys (`producer limits`) and the
    /// max_running of tenants (`producer tenants`) hold in pools with a line alone. Messages that other AMQP clients publish pass
    /// by the line. Without a line, a pool is first in, first out.
    ///
    /// While a worker of an older release runs, which knows no lines, no pool gets one. When a line is taken away, what waits in
    /// it goes to the broker.
    ///
    /// Exit codes: 0 it is so now, 1 a worker knows no lines, 2 wrong arguments.
    Line {
        /// The pool
        pool: Name,
        /// Whether it has a line
        #[arg(value_parser = ["on", "off"])]
        line: String,
    },
    /// List pools that have or had a line, with what waits there and what holds it back
    ///
    /// Numbers are those of the admitter's last look, a second ago or less while it works, and stop at a bound of about 10,000.
    List {
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
}

impl PoolsArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let store = context.checked_ledger().await?.store;
        match self.command {
            Command::Line { pool, line } => set(&store, &pool, line == "on").await,
            Command::List { json } => list(&store, json).await,
        }
    }
}

async fn set(store: &Store, pool: &Name, line: bool) -> anyhow::Result<ExitCode> {
    if line && let Some(older) = without_lines(store).await? {
        note!("{}", said(&older, "knows no lines, and sends jobs past them"));
        return Ok(ExitCode::FAILURE);
    }
    let has = if line { "has a line" } else { "has no line" };
    match store.set_line(&operator(), pool, line).await.context("changing a pool")? {
        ChangedPool::Done => out!("{pool} {has} now"),
        ChangedPool::Before => out!("{pool} {has}, as before"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(store: &Store, json: bool) -> anyhow::Result<ExitCode> {
    let pools = store.pools().await.context("reading pools")?;
    if json {
        for PoolView { pool, line, seen, unseen } in &pools {
            let age_s = seen.as_ref().map(|_| unseen.as_secs_f64());
            let shown = json!({ "pool": pool, "line": line, "seen_s_ago": age_s, "seen": seen });
            out!("{}", one_line(serde_json::to_string(&shown)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header([
        "pool",
        "line",
        "begun",
        "high",
        "normal",
        "low",
        "could run",
        "by limits",
        "by tenants",
        "by sessions",
        "seen",
    ]);
    for PoolView { pool, line, seen, unseen } in &pools {
        let age = seen.as_ref().map_or_else(|| "-".to_owned(), |_| format!("{} ago", lasting(*unseen)));
        let seen = seen.clone().unwrap_or_default();
        let PoolSeen { begun, high, normal, low, could_run, .. } = seen;
        let numbers = [
            begun,
            high,
            normal,
            low,
            could_run,
            seen.held_by_limit,
            seen.held_by_tenant,
            seen.held_by_session,
        ];
        let mut row = vec![pool.to_string(), if *line { "on" } else { "off" }.to_owned()];
        row.extend(numbers.map(|number| number.to_string()));
        row.push(age);
        table.add_row(row);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}
