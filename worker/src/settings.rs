//! The settings that a worker is started with.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dispatch::InboxRules;
use job::{Name, ReplyRule};
use postgres::Address;
use queue::BrokerConfig;
use rustls::ClientConfig;
use secrecy::ExposeSecret;
use service::{
    AdminAddress, AdminArgs, Authorities, Common, Health, OpenFiles, Problems, Setting, SettingsError,
    Telemetry,
};
use store::StoreConfig;
use tokio_util::sync::CancellationToken;

use crate::agents::{AgentArgs, Agents, AgentsCheck, CheckArgs};
use crate::calls::{CallArgs, CallSettings};
use crate::once::{Once, RunArgs};

/// Takes jobs from RabbitMQ, runs their harnesses, and keeps sessions and results in Postgres.
///
/// Any number of workers may run, and each can continue any session. On SIGTERM a worker drains: it takes no more jobs,
/// gives running ones `--drain-grace-s` to end, and hands back the rest without spending an attempt.
#[derive(Clone, Debug, Parser)]
#[command(name = "worker", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    agents: AgentArgs,
    /// The pool to serve: jobs come from the queue harness.jobs.<pool>
    #[arg(long, env = "POOL", default_value = "default")]
    pool: Setting<Name>,
    /// How many jobs to run at a time
    #[arg(long, env = "WORKER_SLOTS", default_value = "16")]
    slots: Setting<u32>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Seconds that jobs may go on after SIGTERM, before they are stopped and handed back
    #[arg(long, env = "DRAIN_GRACE_S", default_value = "25")]
    drain_grace_s: Setting<u64>,
    /// Seconds after the last heartbeat until other workers take this one's jobs
    #[arg(long, env = "LEASE_S", default_value = "10")]
    lease_s: Setting<u64>,
    /// Seconds after which a running job's message is acked; the job is safe in Postgres by then. Keep it a minute
    /// below RabbitMQ's consumer_timeout
    #[arg(long, env = "ACK_AFTER_S", default_value = "60")]
    ack_after_s: Setting<u64>,
    /// The most bytes that a session's state may hold (memory, context and progress as JSON); a checkpoint beyond it
    /// fails its job as output_limit
    #[arg(long, env = "MAX_SESSION_BYTES", default_value = "16777216")]
    max_session_bytes: Setting<usize>,
    /// Stream the text that running jobs write to those who follow them over the HTTP API
    #[arg(long, env = "ENABLE_STREAMING", default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    enable_streaming: Setting<bool>,
    /// The pod's name, in Kubernetes
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    #[command(flatten)]
    calls: CallArgs,
    #[command(flatten)]
    common: Common,
}

/// What the binary can do besides running a worker.
#[derive(Clone, Debug, Subcommand)]
enum Command {
    Health(Health),
    Run(Box<RunArgs>),
    /// Work with a file of agents
    #[command(subcommand)]
    Agents(AgentsCommand),
}

#[derive(Clone, Debug, Subcommand)]
enum AgentsCommand {
    Check(CheckArgs),
}

/// What the process was started for, checked.
#[derive(Debug)]
pub enum Checked {
    /// A worker.
    Worker(Box<Settings>),
    /// One job on the terminal.
    Once(Box<Once>),
    /// A look at a file of agents.
    Agents(Box<AgentsCheck>),
}

impl Checked {
    /// Does it, until it has ended or `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<ExitCode> {
        match self {
            Checked::Worker(settings) => crate::serve(*settings, stop).await,
            Checked::Once(once) => crate::once::run(*once, stop).await,
            Checked::Agents(check) => check.run(stop).await,
        }
    }
}

/// Settings that have been checked.
#[derive(Debug)]
pub struct Settings {
    pub(crate) agents: Agents,
    pub(crate) pool: Name,
    pub(crate) slots: u32,
    pub(crate) workspace_dir: PathBuf,
    pub(crate) admin: AdminAddress,
    pub(crate) drain_grace: Duration,
    pub(crate) lease: Duration,
    pub(crate) ack_after: Duration,
    pub(crate) max_session_bytes: usize,
    pub(crate) enable_streaming: bool,
    pub(crate) pod_name: Option<String>,
    pub(crate) calls: CallSettings,
    pub(crate) retention: Duration,
    pub(crate) max_message_bytes: usize,
    pub(crate) replies: ReplyRule,
    pub(crate) store: StoreConfig,
    pub(crate) consuming: BrokerConfig,
    pub(crate) publishing: BrokerConfig,
    pub(crate) replying: BrokerConfig,
}

impl Settings {
    /// What jobs that come by SQL must keep.
    pub(crate) fn inbox_rules(&self) -> InboxRules {
        let (retention, replies) = (self.retention, self.replies.clone());
        InboxRules { max_bytes: self.max_message_bytes, retention, replies }
    }
}

impl AsMut<Common> for Args {
    fn as_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Args {
    /// Returns the health check to make instead of starting a worker, if one was asked for.
    pub fn health(&self) -> Option<Health> {
        match &self.command {
            Some(Command::Health(health)) => Some(health.clone()),
            Some(Command::Run(_) | Command::Agents(_)) | None => None,
        }
    }

    /// Checks all settings; the error lists everything that is wrong.
    pub fn check(mut self) -> (Telemetry, Result<Checked, SettingsError>) {
        let mut problems = Problems::default();
        let command = self.command.take();
        if command.is_some() && self.common.log_level == DEFAULT_LOG_LEVEL {
            ON_TERMINAL.clone_into(&mut self.common.log_level);
        }
        // The library for MCP logs what servers say.
        let quiet = [queue::LOG_DIRECTIVE, migrations::LOG_DIRECTIVE, "rmcp=off"];
        let telemetry = self.common.telemetry("harness-worker", &quiet, &mut problems);
        let (telemetry, checked) = match command {
            Some(Command::Run(args)) => {
                let tls = tls(self.common.authorities(&mut problems).as_ref(), &mut problems);
                let once = tls.and_then(|tls| args.check(tls, &mut problems));
                (telemetry, once.map(|once| Checked::Once(Box::new(once))))
            }
            Some(Command::Agents(AgentsCommand::Check(args))) => {
                let tls = tls(self.common.authorities(&mut problems).as_ref(), &mut problems);
                let check = tls.and_then(|tls| args.check(tls, &mut problems));
                (telemetry, check.map(|check| Checked::Agents(Box::new(check))))
            }
            Some(Command::Health(_)) | None => match self.settings(&mut problems) {
                Some(settings) => {
                    (telemetry.in_pool(settings.pool.as_str()), Some(Checked::Worker(Box::new(settings))))
                }
                None => (telemetry, None),
            },
        };
        (telemetry, checked.ok_or_else(|| problems.into_error()))
    }

    fn settings(self, problems: &mut Problems) -> Option<Settings> {
        let authorities = self.common.authorities(problems);
        let tls = tls(authorities.as_ref(), problems)?;
        let agents = self.agents.load(&tls, problems);
        let calls = self.calls.check(
            agents.iter().flat_map(Agents::all_calls).map(|(_, calls)| calls),
            tls,
            problems,
        );
        let pool = problems.take("POOL", self.pool);
        let slots = problems.within("WORKER_SLOTS", self.slots, 1..=1024);
        let admin = self.admin.check(problems);
        let drain_grace = problems.within("DRAIN_GRACE_S", self.drain_grace_s, 0..=7 * 86_400);
        let own_authorities = authorities.as_ref().and_then(Authorities::own_pem);
        let lease = problems.within("LEASE_S", self.lease_s, 2..=3_600);
        let ack_after = problems.within("ACK_AFTER_S", self.ack_after_s, 1..=7 * 86_400);
        let max_session_bytes =
            problems.within("MAX_SESSION_BYTES", self.max_session_bytes, 65_536..=64 << 20);
        let enable_streaming = problems.take("ENABLE_STREAMING", self.enable_streaming);
        let retention = self.common.retention(problems);
        let max_message_bytes = self.common.max_message_bytes(problems);
        let replies = problems.check("REPLY_TO_ALLOW", self.common.reply_to_allow.parse());
        let pool_size = self.common.database_pool_size(problems);

        let store = store_config(&self.common, own_authorities, pool_size, problems);
        let consuming = broker_config(&self.common, pool.clone(), own_authorities, problems);
        if let (Some(slots), Some(pool_size)) = (slots, pool_size) {
            fit_files(slots, pool_size, service::open_files(), problems);
        }
        self.agents.make_workspaces(problems);
        if problems.count() > 0 {
            return None;
        }
        let consuming = consuming?;
        Some(Settings {
            agents: agents?,
            pool: pool?,
            slots: slots?,
            workspace_dir: self.agents.workspace_dir,
            admin: admin?,
            drain_grace: Duration::from_secs(drain_grace?),
            lease: Duration::from_secs(lease?),
            ack_after: Duration::from_secs(ack_after?),
            max_session_bytes: max_session_bytes?,
            enable_streaming: enable_streaming?,
            pod_name: self.pod_name,
            calls: calls?,
            retention: retention?,
            max_message_bytes: max_message_bytes?,
            replies: replies?,
            store: store?,
            publishing: BrokerConfig { name: "worker, publishing".to_owned(), ..consuming.clone() },
            replying: BrokerConfig { name: "worker".to_owned(), ..consuming.clone() },
            consuming,
        })
    }
}

/// The level that stands for none.
const DEFAULT_LOG_LEVEL: &str = "info";
/// What a command logs beside what it prints, unless another level is set: what is wrong, and what programs say.
const ON_TERMINAL: &str = "warn,harness::command::stderr=info";

fn tls(authorities: Option<&Authorities>, problems: &mut Problems) -> Option<ClientConfig> {
    let tls = authorities.unwrap_or(&Authorities::default()).rustls();
    problems.check("TLS_CA_FILE", tls.map_err(|error| error.to_string()))
}

fn store_config(
    common: &Common,
    authorities: Option<&str>,
    pool_size: Option<usize>,
    problems: &mut Problems,
) -> Option<StoreConfig> {
    let url = common.database_url(problems);
    let set_by = problems.check("DATABASE_SETTINGS", common.database_settings.parse());
    let address = Address::trusting(url?.expose_secret(), set_by.unwrap_or_default(), authorities);
    let address = problems.check("DATABASE_URL", address)?;
    problems.check("DATABASE_POOL_SIZE", StoreConfig::new(address, pool_size.unwrap_or(10)))
}

fn broker_config(
    common: &Common,
    pool: Option<Name>,
    authorities: Option<&str>,
    problems: &mut Problems,
) -> Option<BrokerConfig> {
    let url = common.amqp_url(problems)?;
    let config = BrokerConfig::new(url.expose_secret(), "worker, consuming").with_pools(pool);
    let config = config.trusting(authorities);
    problems.check("AMQP_URL", config.check().map(|()| config))
}

/// Files that a slot needs while a program runs in it: three pipes, its process, and as many again while it is started.
const FILES_OF_A_SLOT: u64 = 8;
/// Files of the process itself, including its connections to the broker and the clients of its admin port.
const OWN_FILES: u64 = 128;

/// Refuses more slots than can each have a program within the limit of open files. Without this check the lack would
/// show only once that many programs run.
fn fit_files(slots: u32, pool_size: usize, files: OpenFiles, problems: &mut Problems) {
    let left = files.now.saturating_sub(OWN_FILES + pool_size as u64);
    let most = left / FILES_OF_A_SLOT;
    if u64::from(slots) > most {
        let limit = files.now;
        let expected = format!("expected at most {most}: this process may open {limit} files (ulimit -n)");
        problems.add("WORKER_SLOTS", format!("got {slots}, {expected}"));
    }
}
