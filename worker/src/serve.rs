//! A worker's life: boot, serve, drain.

use std::collections::BTreeMap;
use std::future::Future;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::anyhow;
use harness::Stop;
use job::WorkerId;
use migrations::SchemaError;
use queue::{Broker, BrokerStatus, jobs_queue};
use relay::{Relay, Replies};
use service::{Admin, Check, Essential, Readiness, RetryError, retry, retry_or_stop, with_causes};
use store::{Store, StoreError, WorkerRegistration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::lease::Lease;
use crate::machine::{Lacks, Machine};
use crate::mark::Mark;
use crate::metrics::METRICS;
use crate::pace::PaceWindow;
use crate::running::Running;
use crate::settings::Settings;
use crate::worker::Worker;
use crate::{heartbeat, slot};

/// After the drain's grace: how long stopped harnesses get to hand back, and the broker to take the last acks.
const HAND_BACK_GRACE: Duration = Duration::from_secs(20);

/// Runs a worker until `drain` is cancelled and all is handed over, or until it cannot go on.
pub async fn serve(settings: Settings, drain: CancellationToken) -> anyhow::Result<ExitCode> {
    let boot = Boot::start(&settings, &drain).await?;
    let Some(worker) = boot.worker(settings, &drain).await? else {
        info!("stopped before it was ready");
        return Ok(ExitCode::SUCCESS);
    };
    boot.run(worker, drain).await
}

/// What is there before the services are: the admin port and the handles on Postgres and RabbitMQ.
struct Boot {
    essential: Essential,
    store: Store,
    consuming: Broker,
    publishing: Broker,
    /// For `/ready`, which answers from the first moment on.
    serving: Arc<OnceLock<Arc<Worker>>>,
    /// Ends what must outlast the drain: heartbeat, admin port, connections.
    end: CancellationToken,
}

impl Boot {
    async fn start(settings: &Settings, drain: &CancellationToken) -> anyhow::Result<Boot> {
        let end = CancellationToken::new();
        let store = Store::new(&settings.store);
        let consuming = Broker::start(settings.consuming.clone(), end.clone());
        let publishing = Broker::start(settings.publishing.clone(), end.clone());
        let serving = Arc::new(OnceLock::new());
        METRICS.slots.set(i64::from(settings.slots));
        let readiness = readiness(serving.clone(), consuming.clone(), publishing.clone(), drain.clone());
        let admin = Admin::bind(settings.admin_addr, readiness).await?;
        if let Some(path) = &settings.admin_addr_to {
            admin.write_address(path)?;
        }
        let mut essential = Essential::default();
        essential.spawn("admin port", admin.serve(end.clone()));
        Ok(Boot { essential, store, consuming, publishing, serving, end })
    }

    /// Waits for Postgres, then registers. `None` when we are told to stop before.
    async fn worker(
        &self,
        settings: Settings,
        drain: &CancellationToken,
    ) -> anyhow::Result<Option<Arc<Worker>>> {
        let schema = || migrations::check(settings.store.address());
        if retry_or_stop("reading the schema from Postgres", drain, SchemaError::is_retryable, schema)
            .await?
            .is_none()
        {
            return Ok(None);
        }
        let partitions = || async {
            match self.store.maintain_partitions(settings.retention).await? {
                Some(_) => Ok(()),
                // Without them no end can be recorded.
                None => Err(StoreError::unavailable("another process makes the partitions")),
            }
        };
        if retry_or_stop("making partitions", drain, StoreError::is_retryable, partitions).await?.is_none() {
            return Ok(None);
        }
        let registration = WorkerRegistration {
            worker: WorkerId::random(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            pod_name: settings.pod_name.clone(),
            pool: settings.pool.clone(),
            slots: settings.slots,
            lease: settings.lease,
        };
        let (running, pace) = (Running::default(), PaceWindow::new());
        let register =
            || Lease::register(self.store.clone(), running.clone(), pace.clone(), registration.clone());
        let Some(lease) =
            retry_or_stop("registering the worker", drain, StoreError::is_retryable, register).await?
        else {
            return Ok(None);
        };
        let worker = Arc::new(Worker {
            store: self.store.clone(),
            publisher: self.publishing.publisher(),
            replies: Replies::new(self.store.clone(), &settings.replying, settings.replies.clone()),
            lease,
            mark: Mark::none(settings.slots),
            running,
            pace,
            machine: Machine::new(&settings.workspace_dir),
            draining: drain.clone(),
            stop_waiting: CancellationToken::new(),
            settings,
        });
        Ok(Some(worker))
    }

    /// Serves until told to drain, then drains.
    async fn run(mut self, worker: Arc<Worker>, drain: CancellationToken) -> anyhow::Result<ExitCode> {
        let worker_id = worker.lease.worker();
        self.spawn_keepers(&worker);
        let slots = self.open_slots(&worker);
        // Set once, here.
        let _ = self.serving.set(worker.clone());
        info!(%worker_id, queue = jobs_queue(&worker.settings.pool), slots = worker.settings.slots, "takes jobs");

        let result = tokio::select! {
            biased;
            () = drain.cancelled() => Ok(ExitCode::SUCCESS),
            error = self.essential.first_end() => Err(error),
            reason = self.consuming.closed() => Err(anyhow!("the broker connection ended for good: {reason}")),
        };
        drain.cancel();
        tokio::select! {
            () = mark_draining(&worker) => {}
            () = drain_slots(&worker, slots) => {}
        }
        self.sign_off(&worker).await;
        info!(%worker_id, "stopped");
        result
    }

    /// Begins what goes on beside the slots.
    fn spawn_keepers(&mut self, worker: &Arc<Worker>) {
        let (beating, end) = (worker.clone(), self.end.clone());
        self.essential.spawn("heartbeat", async move {
            heartbeat::keep(&beating, end).await;
            Ok(())
        });
        let (looking, end) = (worker.clone(), self.end.clone());
        self.essential.spawn("look at the machine", async move {
            looking.machine.keep(end).await;
            Ok(())
        });
        let relay = Relay {
            store: self.store.clone(),
            broker: self.publishing.clone(),
            publisher: worker.publisher.clone(),
            replies: worker.replies.clone(),
            retention: worker.settings.retention,
        };
        let end = self.end.clone();
        self.essential.spawn("relay", async move {
            relay.run(end).await;
            Ok(())
        });
        let (store, consuming, end) = (self.store.clone(), self.consuming.clone(), self.end.clone());
        self.essential.spawn("watch over the queue", async move {
            relay::return_lost(&store, &consuming, &end).await;
            Ok(())
        });
    }

    fn open_slots(&self, worker: &Arc<Worker>) -> JoinSet<()> {
        let mut slots = JoinSet::new();
        let (worker_id, queue) = (worker.lease.worker(), jobs_queue(&worker.settings.pool));
        for number in 0..worker.settings.slots {
            let (worker, slot) =
                (worker.clone(), self.consuming.slot(&queue, &format!("{worker_id}.{number}")));
            slots.spawn(async move { slot::run(&worker, slot).await });
        }
        slots
    }

    /// Ends what has outlasted the drain.
    async fn sign_off(&mut self, worker: &Worker) {
        let stopped = worker.store.mark_stopped(worker.lease.worker()).await;
        // What they hold is acked with them.
        worker.replies.close(worker.settings.replying.close_timeout).await;
        self.end.cancel();
        tokio::join!(self.consuming.close(), self.publishing.close());
        self.store.close();
        if let Err(cause) = stopped {
            warn!(cause = cause.as_dyn(), "could not sign off; the lease runs out by itself");
        }
        if let Err(error) = self.essential.all_ended().await {
            warn!("while stopping: {}", with_causes(error.as_ref()));
        }
    }
}

/// Lets running jobs end within the grace, then stops them and lets them be handed back.
async fn drain_slots(worker: &Worker, mut slots: JoinSet<()>) {
    let grace = worker.settings.drain_grace;
    let jobs = worker.running.epochs().len();
    info!(jobs, grace_s = grace.as_secs(), "draining: takes no more jobs");
    if within(grace, all_joined(&mut slots)).await {
        return;
    }
    info!(
        jobs = worker.running.epochs().len(),
        "the grace is over: what still runs is stopped and handed back"
    );
    worker.running.stop_all(Stop::Drain);
    if within(HAND_BACK_GRACE, all_joined(&mut slots)).await {
        return;
    }
    warn!(
        jobs = worker.running.epochs().len(),
        "not all jobs could be handed back; they are rescued when the lease runs out"
    );
    worker.stop_waiting.cancel();
    slots.shutdown().await;
}

/// So that its death counts for nothing, should it come before the end of the drain. Never ends.
async fn mark_draining(worker: &Worker) {
    let mark = || worker.store.mark_draining(worker.lease.worker());
    let stop = &worker.stop_waiting;
    let marked = retry("marking this worker as draining", stop, StoreError::is_retryable, mark).await;
    if let Err(RetryError::Permanent(cause)) = marked {
        warn!(cause = cause.as_dyn(), "the ledger does not know that this worker drains");
    }
    std::future::pending().await
}

async fn all_joined(slots: &mut JoinSet<()>) {
    while slots.join_next().await.is_some() {}
}

async fn within(bound: Duration, future: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(bound, future).await.is_ok()
}

/// `/ready`: what the process knows, without asking anybody.
fn readiness(
    serving: Arc<OnceLock<Arc<Worker>>>,
    consuming: Broker,
    publishing: Broker,
    draining: CancellationToken,
) -> Readiness {
    let broker = consuming;
    Arc::new(move || {
        let worker = serving.get();
        let database = worker.is_some_and(|worker| worker.lease.is_fresh());
        let consuming = match &*broker.status().borrow() {
            _ if draining.is_cancelled() => Some("draining".to_owned()),
            _ if worker.is_some_and(|worker| worker.mark.is_drained()) => {
                Some("drained for scale-in".to_owned())
            }
            BrokerStatus::Ready { .. } if worker.is_none() => Some("starting".to_owned()),
            BrokerStatus::Ready { .. } if !broker.is_consuming() => Some("subscribing".to_owned()),
            BrokerStatus::Ready { .. } => None,
            BrokerStatus::Connecting { reason } => Some(reason.clone().unwrap_or("connecting".to_owned())),
            BrokerStatus::Closed { reason } => Some(reason.clone()),
        };
        let no_lease = (!database).then(|| "no heartbeat within the lease".to_owned());
        let Lacks { workspace, resources } = worker.map(|worker| worker.machine.lacks()).unwrap_or_default();
        BTreeMap::from([
            ("database_connected", Check::unless(no_lease)),
            ("queue_consuming", Check::unless(consuming)),
            ("queue_publishing", Check::unless(publishing.held_up())),
            ("workspace_accessible", Check::unless(workspace)),
            ("resources_available", Check::unless(resources)),
        ])
    })
}
