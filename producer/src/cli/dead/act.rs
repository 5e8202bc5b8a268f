//! `producer dead redrive` and `drop`.

use std::process::ExitCode;

use clap::Args;
use dispatch::Dispatch;
use harness_fleet::Client;
use job::Name;
use service::note;
use tokio_util::sync::CancellationToken;

use super::filter::Flags;
use super::report::Report;
use crate::cli::api;
use crate::cli::operator::operator;
use crate::cli::progress::Progress;
use crate::dead::{Act, Filter, Order, Selection, count, settle};
use crate::intake_limits::IntakeLimits;

#[derive(Debug, Args)]
pub struct Redrive {
    #[command(flatten)]
    pub which: Which,
    /// Send them to this pool instead of the one that each came from
    #[arg(long)]
    pub to_pool: Option<Name>,
}

/// The letters to settle.
#[derive(Debug, Args)]
pub struct Which {
    /// Ids of jobs, or of messages as the list shows them
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All letters that pass the filters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    flags: Flags,
    /// Confirm that --all without a filter means every dead letter
    #[arg(long)]
    yes: bool,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per line for each letter: kind, id, fate, and the new job, the queue or the reason
    #[arg(long)]
    json: bool,
}

impl Redrive {
    /// Runs failed jobs again over the HTTP API.
    pub async fn over(self, client: &Client, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
        let Redrive { which, to_pool } = self;
        if to_pool.is_some() {
            note!(
                "--to-pool: the HTTP API runs a job again in its own pool: use DATABASE_URL and AMQP_URL instead"
            );
            return Ok(ExitCode::from(2));
        }
        which.over(client, api::Act::Redrive, stop).await
    }
}

impl Which {
    /// Settles failed jobs over the HTTP API.
    pub async fn over(
        self,
        client: &Client,
        act: api::Act,
        stop: &CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let filter = match self.filter() {
            Some(filter) if self.flags.fit_the_api() => filter,
            _ => return Ok(ExitCode::from(2)),
        };
        let selection = if self.all { Ok(&filter) } else { Err(&self.ids[..]) };
        let mut report = Report::new(Progress::new(None), stop.clone(), self.json, self.dry_run, !self.all);
        let done = api::settle(client, act, selection, self.dry_run, &mut report).await;
        let code = report.finish();
        done?;
        Ok(code)
    }

    /// The filter, if it fits the other arguments.
    fn filter(&self) -> Option<Filter> {
        let filter = self.flags.filter();
        if !self.all && !filter.is_empty() {
            note!(
                "filters apply only to --all: got ids and filters, expected ids alone, or --all with filters"
            );
            return None;
        }
        if self.all && filter.is_empty() && !self.yes && !self.dry_run {
            note!("--all without a filter means every dead letter: add --yes, or --dry-run to see them");
            return None;
        }
        Some(filter)
    }

    /// Settles all selected letters.
    pub async fn run(
        self,
        act: Act,
        intake_limits: &IntakeLimits,
        dispatch: &Dispatch,
        stop: &CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let Some(filter) = self.filter() else { return Ok(ExitCode::from(2)) };
        let selection = if self.all { Selection::All(filter) } else { Selection::Ids(self.ids) };
        let order = Order { act, selection, actor: operator(), dry_run: self.dry_run };
        let progress = Progress::new(count(dispatch, &order.selection).await?);
        let mut report = Report::new(progress, stop.clone(), self.json, self.dry_run, !self.all);
        let done = settle(dispatch, intake_limits, &order, stop, &mut report).await;
        let code = report.finish();
        done.map(|()| code)
    }
}
