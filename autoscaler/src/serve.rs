//! The life of an autoscaler process: it boots, decides once a second, and stops.
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow};
use dispatch::Leader;
use migrations::SchemaError;
use queue::Broker;
use serde_json::json;
use service::{AdminAddress, Check, Lifecycle, Readiness, retry_or_stop};
use store::Store;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;
use workload::kubernetes::{Cluster, Kubernetes};
use workload::{Processes, Target};

use crate::config::{Pool, TargetName};
use crate::metrics::METRICS;
use crate::observe::{Observer, Watched};
use crate::reconcile::{Reconciler, Shared};
use crate::settings::Settings;

/// The most pools whose history is read back at the same time, at the beginning of a term.
const BEGINS: usize = 8;

/// Everything that an autoscaler uses.
pub struct Fleet {
    /// What the loops of all pools share.
    pub shared: Shared,
    /// One reconciler for each pool.
    pub reconcilers: Vec<Reconciler>,
    processes: Vec<Arc<Processes>>,
    broker: Broker,
}

impl Fleet {
    /// Connects and prepares. Waits until Postgres answers; `None` if it is asked to stop before that.
    pub async fn boot(
        settings: &Settings,
        stop: &CancellationToken,
        end: &CancellationToken,
    ) -> anyhow::Result<Option<Fleet>> {
        let (store, services) = (Store::new(&settings.services.store), &settings.services);
        let schema = || migrations::check(services.store.address());
        let what = "reading the schema from Postgres";
        if retry_or_stop(what, stop, SchemaError::is_retryable, schema).await?.is_none() {
            return Ok(None);
        }
        let broker = Broker::start(services.broker.clone(), end.clone());
        let watched = settings.pools.iter().map(|pool| Watched {
            pool: pool.name.clone(),
            due_horizon: Duration::from_secs(pool.policy.due_horizon_s),
        });
        let management = settings.management.clone();
        let observer = Arc::new(Observer::new(broker.clone(), store.clone(), watched.collect(), management));
        let leader = Arc::new(Leader::new(settings.lease_name.clone(), settings.lease, leads));
        let begins = Arc::new(Semaphore::new(BEGINS));
        let shared = Shared { store, observer, leader, begins };
        let (mut reconcilers, mut processes) = (Vec::new(), Vec::new());
        let in_cluster = |pool: &Pool| pool.target != TargetName::Process;
        let cluster = if settings.pools.iter().any(in_cluster) {
            Some(Cluster::find(settings.kube_context.as_deref()).await.context("KUBE_CONTEXT")?)
        } else {
            None
        };
        for pool in &settings.pools {
            let target: Arc<dyn Target> = match (&pool.target, &cluster) {
                (TargetName::Kubernetes { workload, namespace }, Some(cluster)) => {
                    let deletion_cost = settings.pod_deletion_cost;
                    let target =
                        Kubernetes::new(cluster, workload.clone(), namespace.as_deref(), deletion_cost);
                    Arc::new(target.with_context(|| format!("pool {}: namespace", pool.name))?)
                }
                (_, _) => {
                    let folder = &settings.process_dir;
                    let (name, program) = (pool.name.clone(), settings.worker_program.clone());
                    let secrets = || service::taken_secrets().collect();
                    let target = Processes::new(name, program, secrets, folder);
                    let target =
                        target.with_context(|| format!("making {} (PROCESS_DIR)", folder.display()))?;
                    processes.push(Arc::new(target));
                    processes[processes.len() - 1].clone()
                }
            };
            reconcilers.push(Reconciler::new(shared.clone(), pool.clone(), target));
        }
        Ok(Some(Fleet { shared, reconcilers, processes, broker }))
    }

    /// Stops the workers of `process` targets and waits for their end.
    pub async fn stop_processes(&self) -> anyhow::Result<()> {
        for processes in &self.processes {
            processes.stop_all().await.context("stopping the worker processes")?;
        }
        Ok(())
    }

    /// Closes the connections.
    pub async fn close(self) {
        self.broker.close().await;
        self.shared.store.close();
    }
}

/// Decides until asked to stop, then gives up the lease.
pub async fn serve(
    settings: Settings,
    admin: AdminAddress,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let mut lifecycle = Lifecycle::default();
    let booted = Arc::new(OnceLock::new());
    lifecycle.open(&admin, readiness(booted.clone())).await?;
    let Some(mut fleet) = Fleet::boot(&settings, &stop, &lifecycle.end()).await? else {
        info!("stopped before it was ready");
        return Ok(ExitCode::SUCCESS);
    };
    // It fails only if it is already set, and nothing else sets it.
    let _ = booted.set(fleet.shared.clone());
    let Shared { store, observer, leader, .. } = fleet.shared.clone();
    lifecycle.spawn("leader's lease", |end| async move { leader.keep(&store, &end).await });
    lifecycle.spawn("observer", |end| async move { observer.run(end).await });
    let broker = fleet.broker.clone();
    lifecycle.fail_by("connection to RabbitMQ", async move {
        anyhow!("ended for good: {}", broker.closed().await)
    });
    let mut pools = JoinSet::new();
    for reconciler in fleet.reconcilers.drain(..) {
        pools.spawn(reconciler.run(stop.clone()));
    }
    info!(pools = settings.pools.len(), lease = settings.lease_name, "watches the backlog");

    let result = tokio::select! {
        biased;
        result = lifecycle.until(&stop) => result,
        ended = pools.join_next() => Err(anyhow!("a pool's loop has ended: {ended:?}")),
    };
    // A tick in progress ends first; then the lease goes to another autoscaler, if there is one.
    stop.cancel();
    while pools.join_next().await.is_some() {}
    lifecycle.finish().await;
    if !settings.keep_workers {
        fleet.stop_processes().await?;
    }
    fleet.close().await;
    info!("stopped");
    result
}

/// The checks of `/ready`: the ledger and the queues could be read in the last round. Also shows whether this process
/// decides or stands by.
fn readiness(booted: Arc<OnceLock<Shared>>) -> Readiness {
    Arc::new(move || {
        let Some(shared) = booted.get() else {
            return BTreeMap::from([("database_connected", Check::Must(false, Some("starting".to_owned())))]);
        };
        let health = shared.observer.health();
        let sources = [("database_connected", health.ledger.error), ("queue_observed", health.queue.error)];
        let mut checks: BTreeMap<_, _> =
            sources.into_iter().map(|(name, error)| (name, Check::Must(error.is_none(), error))).collect();
        let role = if shared.leader.leadership().is_some() { "leader" } else { "standby" };
        checks.insert("role", Check::Info(json!(role)));
        checks
    })
}

/// Counts whether this autoscaler leads.
fn leads(heard: Option<bool>) {
    match heard {
        Some(leads) => METRICS.leader.set(i64::from(leads)),
        None => METRICS.failures.with_label_values(&["lead"]).inc(),
    }
}
