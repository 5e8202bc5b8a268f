//! The command line.

mod observe;
mod simulate;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use job::{Name, one_line};
use service::{AdminArgs, Common, Health, Problems, Threads, note, out, unless_stopped};
use store::{DecisionView, Store};

use crate::explain::DecisionRow;
use crate::settings::{self, ControlArgs};
use crate::{explain, once, serve};
use workload::kubernetes;

/// Resizes pools of workers by their backlog, and never removes a busy worker.
///
/// Once a second it reads each pool's queue (RabbitMQ) and its jobs and workers (Postgres). It decides how many workers
/// the pool should have, records that with its reasons in Postgres, and sets the size of the pool's workload: a
/// Deployment, a StatefulSet, any other resource with a scale subresource, or worker processes on this machine. Before
/// it shrinks a pool, it marks idle workers, waits until they hold nothing, and removes exactly those.
#[derive(Debug, Parser)]
#[command(name = "autoscaler", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Scale pools, once a second, until SIGTERM
    ///
    /// Several can run at once: one decides, the others stand by and take over when its lease ends.
    #[command(after_long_help = POOLS_HELP)]
    Run {
        #[command(flatten)]
        control: Box<ControlArgs>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Observe, decide and act once for each pool, and print why
    ///
    /// Exit codes: 0 done, 1 something failed, 2 wrong settings, 3 another autoscaler leads or something is unknown,
    /// 130 stopped by a signal.
    #[command(after_long_help = POOLS_HELP)]
    Once {
        #[command(flatten)]
        control: Box<ControlArgs>,
        /// Only print what would be done
        #[arg(long)]
        dry_run: bool,
        /// Print JSON, one object per pool
        #[arg(long)]
        json: bool,
    },
    /// Explain a pool's last decisions in plain sentences
    Explain {
        /// The pool
        #[arg(default_value = "default")]
        pool: Name,
        /// Show at most this many decisions
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Print JSON, one decision per line, with everything that was observed
        #[arg(long)]
        json: bool,
    },
    Observe(observe::Observe),
    Simulate(Box<simulate::Simulate>),
    Health(Health),
}

const POOLS_HELP: &str = "\
A file of pools (--pools, TOML):

  [policy]                       # what all pools have in common
  max_replicas = 50

  [pools.default]                # one table per pool, named after it
  target = \"Deployment/worker\"
  namespace = \"agents\"
  policy.mode = { type = \"target_wait\", target_s = 30 }

  [pools.batch]
  target = \"apps/v1/StatefulSet/batch-worker\"
  [pools.batch.policy]
  min_replicas = 0               # to zero after cooldown_s (300) with nothing to do
  mode = { type = \"backlog\", jobs_per_worker = 8 }
  scale_up = { stabilization_window_s = 0, policies = [{ type = \"Pods\", value = 10, period_s = 15 }] }
  schedule = [{ start = \"0 8 * * 1-5\", end = \"0 18 * * 1-5\", timezone = \"Europe/Berlin\", min_replicas = 4 }]

scale_up and scale_down work like `behavior` of a HorizontalPodAutoscaler (v2). By default a pool grows at once, by up
to 100 % or 5 workers in 15 s, whichever is more. It shrinks to the highest recommendation of the last 300 s, by up to
50 % in 15 s.";

impl AsMut<Common> for Args {
    fn as_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let mut problems = Problems::default();
        let quiet: &[&str] = match self.command {
            Command::Run { .. } => {
                &[queue::LOG_DIRECTIVE, migrations::LOG_DIRECTIVE, kubernetes::LOG_DIRECTIVE]
            }
            _ => &[
                queue::LOG_DIRECTIVE,
                migrations::LOG_DIRECTIVE,
                kubernetes::LOG_DIRECTIVE,
                "queue=warn",
                "autoscaler=warn",
            ],
        };
        let telemetry = self.common.telemetry("harness-autoscaler", quiet, &mut problems);
        service::run(telemetry, Threads::One, |stop| async move {
            match self.command {
                Command::Run { control, admin } => {
                    let admin = admin.check(&mut problems);
                    let settings = control.check(self.common, &mut problems);
                    let (Some(settings), Some(admin), 0) = (settings, admin, problems.count()) else {
                        return Err(problems.into_error().into());
                    };
                    serve::serve(settings, admin, stop).await
                }
                Command::Once { control, dry_run, json } => {
                    let settings = control.check(self.common, &mut problems);
                    let (Some(settings), 0) = (settings, problems.count()) else {
                        return Err(problems.into_error().into());
                    };
                    once::once(settings, dry_run, json, stop).await
                }
                Command::Explain { pool, limit, json } => {
                    let explaining = run_explain(&pool, limit, json, self.common, problems);
                    unless_stopped(&stop, explaining).await
                }
                Command::Observe(observe) => observe.run(self.common, problems, &stop).await,
                Command::Simulate(simulate) => simulate.run(problems, &stop),
                Command::Health(health) => Ok(health.run()),
            }
        })
    }
}

async fn run_explain(
    pool: &Name,
    limit: u32,
    json: bool,
    common: Common,
    mut problems: Problems,
) -> anyhow::Result<ExitCode> {
    let ledger = settings::ledger(&common, 2, &mut problems);
    let (Some(store), 0) = (ledger, problems.count()) else {
        return Err(problems.into_error().into());
    };
    migrations::check(store.address()).await?;
    let store = Store::new(&store);
    let now_ms = store.clock().await?.now_unix_ms();
    let decisions = store.last_decisions(pool, limit).await?;
    if decisions.is_empty() {
        note!("no autoscaler has decided for the pool {pool} yet");
        return Ok(ExitCode::from(3));
    }
    let mut rows = Vec::with_capacity(decisions.len());
    for DecisionView { epoch, made, outcome, id } in decisions {
        let (outcome, detail) = outcome.map_or((None, None), |it| (Some(it.outcome), it.detail));
        let read = DecisionRow::read(made.at_ms, epoch, &made.inputs, &made.decision, outcome, detail);
        rows.push(read.with_context(|| format!("decision {id} was written by another version"))?);
    }
    if !json {
        out!("{}", explain::explain(&rows).trim_end());
        if let Some(silence) = rows.last().and_then(|last| explain::silence(last, now_ms)) {
            out!("{}", silence.trim_end());
        }
        return Ok(ExitCode::SUCCESS);
    }
    for row in &rows {
        out!("{}", one_line(serde_json::to_string(row)?));
    }
    Ok(ExitCode::SUCCESS)
}
