//! The command line. One file per command; each says what it prints and how it exits.

mod context;
mod operator;
mod api;
mod migrate;
mod doctor;
mod revive;
mod enqueue;
mod bulk;
mod lines;
mod progress;
mod age;
mod status;
mod jobs;
mod top;
mod wait;
mod why;
mod cancel;
mod answer;
mod sessions;
mod dead;
mod tenants;
mod pools;
mod limits;
mod roles;
mod keys;
mod webhooks;
mod schedules;
mod budget;
mod spend;
mod relay;
mod door;
mod serve;
mod audit;
mod log;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service::{Common, Health, Problems, Threads, unless_stopped};

/// Accepts jobs and shows what became of them.
///
/// Jobs go into Postgres and from there to RabbitMQ; workers run them. With HARNESS_URL and HARNESS_API_KEY (or a
/// profile) the commands enqueue, status, wait, why, jobs, cancel, answer and dead ask the HTTP API instead, and need neither.
///
/// Exit codes: 0 success, 1 something failed, 2 wrong arguments or settings, 3 not finished, incomplete, or an audit
/// check failed, 130 stopped by a signal.
#[derive(Debug, Parser)]
#[command(name = "producer", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create or update the schema in Postgres; run it before anything else, and with every release
    Migrate,
    Doctor(doctor::Doctor),
    /// Prepare a ledger that was restored from a backup for work; run it once, before any worker starts
    ///
    /// Jobs that were running or queued when the backup was taken become due again, and this costs them no attempt. New
    /// fencing tokens will be higher than all that were handed out since the backup. The command refuses to run while a
    /// worker is alive.
    Revive,
    /// Enqueue one job from flags, or many from JSON lines
    Enqueue(enqueue::Enqueue),
    /// Show the state of jobs
    Status(status::Status),
    /// Wait until jobs have ended, and show their results
    Wait(wait::Wait),
    Why(why::Why),
    Jobs(jobs::Jobs),
    Top(top::Top),
    /// Cancel jobs that are no longer wanted, whether or not they are running
    Cancel(cancel::Cancel),
    Answer(answer::AnswerArgs),
    /// Look at sessions
    Sessions(sessions::Sessions),
    /// Look at failed jobs and at messages that no worker could use; run them again, or drop them
    Dead(dead::DeadArgs),
    /// Create and change tenants: groups of callers that do not see each other's work
    Tenants(tenants::TenantsArgs),
    /// Give pools a line, in which jobs wait for their turn, and look at it
    Pools(pools::PoolsArgs),
    /// Bound how many jobs with a key are at work at a time
    Limits(limits::LimitsArgs),
    /// Let database roles enqueue jobs by SQL, within transactions of their own
    Roles(roles::RolesArgs),
    /// Create and revoke keys of the HTTP API
    Keys(keys::KeysArgs),
    /// Look at schedules, make and change them: jobs that are made by the clock
    Schedules(schedules::SchedulesArgs),
    /// Look at webhooks, make and change them: addresses to which the ends of a tenant's jobs are sent
    Webhooks(webhooks::WebhooksArgs),
    /// Set limits on what model calls may cost, while the fleet runs
    Budget(budget::BudgetArgs),
    Spend(spend::SpendArgs),
    /// Run a relay: send due jobs to the broker and rescue dead workers' jobs, until SIGTERM
    ///
    /// Every worker does this too. A separate relay keeps retries and schedules moving while no worker runs.
    Relay(relay::RelayArgs),
    Serve(Box<serve::Serve>),
    Health(Health),
    /// Check that no job was lost, duplicated or paid twice
    Audit(audit::Audit),
    Log(log::LogArgs),
}

impl AsMut<Common> for Args {
    fn as_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Args {
    /// Runs the command. Results go to stdout, everything else to stderr.
    pub fn run(self) -> ExitCode {
        let Args { command, common } = self;
        let mut problems = Problems::default();
        // A short command does not log that it connects and disconnects; a process that serves does.
        let connections = if matches!(command, Command::Relay(_) | Command::Serve(_)) {
            "queue=info"
        } else {
            "queue=warn"
        };
        let quiet = [queue::LOG_DIRECTIVE, migrations::LOG_DIRECTIVE, connections];
        let telemetry = common.telemetry("harness-producer", &quiet, &mut problems);
        service::run(telemetry, Threads::Cores, |stop| async move {
            let context = context::Context { common, problems, stop: stop.clone() };
            match command {
                // It can be interrupted, because each migration is one transaction.
                Command::Migrate => unless_stopped(&stop, migrate::run(context)).await,
                Command::Doctor(args) => args.run(context).await,
                Command::Revive => revive::run(context).await,
                Command::Enqueue(args) => args.run(context).await,
                Command::Status(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Wait(args) => args.run(context).await,
                Command::Why(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Jobs(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Top(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Cancel(args) => args.run(context).await,
                Command::Answer(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Sessions(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Dead(args) => args.run(context).await,
                Command::Tenants(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Pools(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Limits(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Roles(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Keys(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Schedules(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Webhooks(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Budget(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Spend(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Relay(args) => args.run(context).await,
                Command::Serve(args) => args.run(context).await,
                Command::Audit(args) => args.run(context).await,
                Command::Log(args) => unless_stopped(&stop, args.run(context)).await,
                Command::Health(health) => Ok(health.run()),
            }
        })
    }
}
