//! The autoscaler's settings, read and checked at its start.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use job::Name;
use postgres::Address;
use queue::BrokerConfig;
use secrecy::{ExposeSecret, SecretString};
use service::{Authorities, Common, Problems, Setting};
use store::StoreConfig;

use crate::config::{self, Pool, TargetName};
use crate::decide::{Mode, Policy};
use crate::observe::Management;

/// Which pools are scaled, and how: from a file, or one pool by flags.
#[derive(Args, Clone, Debug)]
pub struct PoolArgs {
    /// A TOML file of pools (see --help); without one, the flags below describe one pool
    #[arg(long, env = "AUTOSCALER_POOLS", help_heading = "Pools")]
    pools: Option<PathBuf>,
    /// The pool: its backlog is the queue harness.jobs.<pool>
    #[arg(long, env = "POOL", default_value = "default", help_heading = "Pools")]
    pool: Setting<Name>,
    /// What is resized: Deployment/NAME, StatefulSet/NAME, GROUP/VERSION/KIND/NAME, or `process` for workers on this
    /// machine
    #[arg(long, env = "AUTOSCALER_TARGET", help_heading = "Pools")]
    target: Option<String>,
    /// The workload's namespace; by default the one this runs in, or that of the kubeconfig's context
    #[arg(long, env = "AUTOSCALER_NAMESPACE", help_heading = "Pools")]
    namespace: Option<String>,
    /// The fewest workers; 0 lets the pool shrink to zero
    #[arg(long, env = "MIN_REPLICAS", default_value = "2", help_heading = "Pools")]
    min_replicas: Setting<u32>,
    /// The most workers
    #[arg(long, env = "MAX_REPLICAS", default_value = "20", help_heading = "Pools")]
    max_replicas: Setting<u32>,
    /// Ready and running jobs for each worker (mode backlog)
    #[arg(long, env = "JOBS_PER_WORKER", default_value = "1", help_heading = "Pools")]
    jobs_per_worker: Setting<f64>,
    /// Seconds within which the oldest job should start: selects the mode target_wait instead of backlog
    #[arg(long, env = "TARGET_WAIT_S", help_heading = "Pools")]
    target_wait_s: Option<Setting<f64>>,
}

impl PoolArgs {
    /// Returns the pools. Adds everything that is wrong to `problems`.
    pub fn check(self, problems: &mut Problems) -> Option<Vec<Pool>> {
        if let Some(path) = &self.pools {
            return problems.check("AUTOSCALER_POOLS", config::read(path));
        }
        let target = problems.required(
            "AUTOSCALER_TARGET",
            self.target,
            "Deployment/NAME, StatefulSet/NAME, GROUP/VERSION/KIND/NAME or process (or AUTOSCALER_POOLS, a file of pools)",
        );
        let target = target
            .and_then(|text| problems.check("AUTOSCALER_TARGET", TargetName::new(&text, self.namespace)));
        let name = problems.take("POOL", self.pool);
        let min_replicas = problems.take("MIN_REPLICAS", self.min_replicas);
        let max_replicas = problems.take("MAX_REPLICAS", self.max_replicas);
        let jobs_per_worker = problems.take("JOBS_PER_WORKER", self.jobs_per_worker);
        let target_wait_s = match self.target_wait_s {
            Some(setting) => Some(problems.take("TARGET_WAIT_S", setting)?),
            None => None,
        };
        let (Some(min_replicas), Some(max_replicas), Some(jobs_per_worker)) =
            (min_replicas, max_replicas, jobs_per_worker)
        else {
            return None;
        };
        let mode = match target_wait_s {
            Some(target_s) => Mode::target_wait(target_s),
            None => Mode::Backlog { jobs_per_worker },
        };
        let policy = Policy { mode, min_replicas, max_replicas, ..Policy::default() };
        for problem in policy.check() {
            // The check names a policy's fields as in the file; for flags, the environment's names are shown.
            let (field, said) = problem.split_once(": ").unwrap_or(("policy", &problem));
            let name = match field {
                "mode.target_s" => "TARGET_WAIT_S".to_owned(),
                field => field.trim_start_matches("mode.").to_uppercase(),
            };
            problems.add(&name, said);
        }
        Some(vec![Pool { name: name?, target: target?, policy }])
    }
}

/// The settings of the commands that decide: `run` and `once`.
#[derive(Args, Clone, Debug)]
pub struct ControlArgs {
    #[command(flatten)]
    pools: PoolArgs,
    /// Of all autoscalers with the same lease name, one decides and the others stand by
    #[arg(long, env = "AUTOSCALER_LEASE", default_value = "autoscaler")]
    lease_name: String,
    /// Seconds after which another autoscaler may take the lease of a silent one
    #[arg(long, env = "AUTOSCALER_LEASE_S", default_value = "15")]
    lease_s: Setting<u64>,
    /// RabbitMQ's management API, such as http://user:password@host:15672: its queue depths are compared with the
    /// broker's own, and nothing is scaled in while they disagree
    #[arg(long, env = "MANAGEMENT_URL", hide_env_values = true)]
    management_url: Option<SecretString>,
    /// The kubeconfig's context; in a pod, its service account is used instead
    #[arg(long, env = "KUBE_CONTEXT")]
    kube_context: Option<String>,
    /// Also keep controller.kubernetes.io/pod-deletion-cost of drained pods low (needs the right to patch pods)
    #[arg(long, env = "POD_DELETION_COST")]
    pod_deletion_cost: bool,
    /// The worker program of `process` targets; by default the one beside this program
    #[arg(long, env = "WORKER_PROGRAM")]
    worker_program: Option<PathBuf>,
    /// The folder in which `process` targets keep their workers' pids and logs
    #[arg(long, env = "PROCESS_DIR", default_value = "./workers")]
    process_dir: PathBuf,
    /// Leave the workers of `process` targets running when this process ends; the next one finds them
    #[arg(long, env = "KEEP_WORKERS")]
    keep_workers: bool,
}

/// Settings that have been checked.
#[derive(Debug)]
pub struct Settings {
    pub(crate) pools: Vec<Pool>,
    pub(crate) lease_name: String,
    pub(crate) lease: Duration,
    pub(crate) management: Option<Management>,
    pub(crate) kube_context: Option<String>,
    pub(crate) pod_deletion_cost: bool,
    pub(crate) worker_program: PathBuf,
    pub(crate) process_dir: PathBuf,
    pub(crate) keep_workers: bool,
    pub(crate) services: Services,
}

/// The addresses of RabbitMQ and Postgres.
#[derive(Debug)]
pub struct Services {
    pub(crate) store: StoreConfig,
    pub(crate) broker: BrokerConfig,
    authorities: Authorities,
}

impl Services {
    /// Reads their settings. Adds everything that is wrong to `problems`.
    pub fn check(common: Common, connections: usize, who: &str, problems: &mut Problems) -> Option<Services> {
        let authorities = common.authorities(problems);
        let own = authorities.as_ref().and_then(Authorities::own_pem);
        let store = ledger(&common, connections, problems);
        let broker = common.amqp_url(problems).and_then(|url| {
            // Only the owners of queues declare them.
            let config = BrokerConfig::new(url.expose_secret(), who).only_looking().trusting(own);
            problems.check("AMQP_URL", config.check().map(|()| config))
        });
        Some(Services { store: store?, broker: broker?, authorities: authorities? })
    }

    /// Returns the management API at this address, for the vhost of the broker.
    pub fn management(&self, url: &SecretString, problems: &mut Problems) -> Option<Management> {
        let vhost = self.broker.vhost().ok()?;
        problems.check("MANAGEMENT_URL", Management::new(url.expose_secret(), &vhost, &self.authorities))
    }
}

/// Checks this address alone, because another one is wrong, too: both problems are then reported together.
pub fn check_management(url: &SecretString, problems: &mut Problems) -> Option<Management> {
    problems.check("MANAGEMENT_URL", Management::new(url.expose_secret(), "/", &Authorities::default()))
}

/// Returns the address of Postgres. Adds what is wrong to `problems`.
pub fn ledger(common: &Common, connections: usize, problems: &mut Problems) -> Option<StoreConfig> {
    let set_by = problems.check("DATABASE_SETTINGS", common.database_settings.parse());
    let url = common.database_url(problems)?;
    let authorities = common.authorities(problems)?;
    let address = Address::trusting(url.expose_secret(), set_by.unwrap_or_default(), authorities.own_pem());
    let address = problems.check("DATABASE_URL", address)?;
    problems.check("DATABASE_POOL_SIZE", StoreConfig::new(address, connections))
}

/// Connections to Postgres, however many pools there are: decisions are rare, and one query observes all pools. The
/// lease uses one of them.
const CONNECTIONS: usize = 3;

impl ControlArgs {
    /// Checks all settings. Adds what is wrong to `problems`.
    pub fn check(self, common: Common, problems: &mut Problems) -> Option<Settings> {
        let pools = self.pools.check(problems);
        let lease_s = problems.within("AUTOSCALER_LEASE_S", self.lease_s, 8..=3_600);
        let services = Services::check(common, CONNECTIONS, "autoscaler", problems);
        let management = match (self.management_url, &services) {
            (Some(url), Some(services)) => services.management(&url, problems),
            (Some(url), None) => check_management(&url, problems),
            (None, _) => None,
        };
        let beside = || std::env::current_exe().map(|path| path.with_file_name("worker")).unwrap_or_default();
        let worker_program = self.worker_program.unwrap_or_else(beside);
        let processes = pools.iter().flatten().any(|pool| pool.target == TargetName::Process);
        if processes && !worker_program.is_file() {
            let path = worker_program.display();
            problems.add("WORKER_PROGRAM", format!("got {path}, expected the path of the program `worker`"));
        }
        Some(Settings {
            pools: pools?,
            lease_name: self.lease_name,
            lease: Duration::from_secs(lease_s?),
            management,
            kube_context: self.kube_context,
            pod_deletion_cost: self.pod_deletion_cost,
            worker_program,
            process_dir: self.process_dir,
            keep_workers: self.keep_workers,
            services: services?,
        })
    }
}
