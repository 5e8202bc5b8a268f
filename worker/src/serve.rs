//! A worker's life: boot, serve, drain.

use std::collections::BTreeMap;
use std::future::Future;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::anyhow;
use dispatch::{Dispatch, Relay};
use harness::Stop;
use job::WorkerId;
use migrations::SchemaError;
use queue::{Broker, BrokerStatus, jobs_queue};
use service::{Check, Lifecycle, Readiness, RetryError, retry, retry_or_stop};
use store::{Store, StoreError, WorkerRegistration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::lease::Lease;
use crate::machine::{Lacks, Machine};
use crate::mark::Mark;
use crate::metrics::METRICS;
use crate::running::Running;
use crate::settings::Settings;
use crate::streaming::Streaming;
use crate::throughput::ThroughputWindow;
use crate::worker::Worker;
use crate::{calls, heartbeat, slot};

/// How long, after the drain's grace, stopped harnesses have to hand back their jobs and the broker to take the last
/// acks.
const HAND_BACK_GRACE: Duration = Duration::from_secs(20);

/// How long a call takes to be settled whose answer was read on to its end, or until nobody reads it any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// Returns how long answers that programs have given up are read on by a worker that stops.
fn settling_grace(usage_drain: Duration) -> Duration {
    HAND_BACK_GRACE.max(usage_drain + SETTLES_WITHIN)
}

/// Runs a worker until `drain` is cancelled and everything is handed over, or until the worker cannot go on.
pub async fn serve(settings: Settings, drain: CancellationToken) -> anyhow::Result<ExitCode> {
    let mut lifecycle = Lifecycle::default();
    let services = Services::start(&settings, lifecycle.end());
    lifecycle.open(&settings.admin, services.readiness(drain.clone())).await?;
    let Some(worker) = services.register(settings, &drain).await? else {
        info!("stopped before it was ready");
        return Ok(ExitCode::SUCCESS);
    };
    services.spawn_keepers(&mut lifecycle, &worker);
    let slots = services.open_slots(&worker);
    // It is set only here, so this cannot fail.
    let _ = services.serving.set(worker.clone());
    let worker_id = worker.lease.worker();
    info!(%worker_id, queue = jobs_queue(&worker.settings.pool), slots = worker.settings.slots, "takes jobs");

    let result = lifecycle.until(&drain).await;
    tokio::select! {
        () = mark_draining(&worker) => {}
        () = drain_slots(&worker, slots) => {}
    }
    if let Some(gateway) = &worker.gateway
        && !within(settling_grace(worker.settings.calls.usage_drain()), gateway.stop()).await
    {
        warn!("not all model calls could be settled; what they may have cost is counted in full");
    }
    // What does not end by itself ends with this process.
    within(HAND_BACK_GRACE, worker.settings.agents.close()).await;
    sign_off(&worker).await;
    lifecycle.finish().await;
    services.close().await;
    info!(%worker_id, "stopped");
    result
}

/// Handles on Postgres and RabbitMQ, which may not be there yet.
struct Services {
    store: Store,
    consuming: Broker,
    publishing: Broker,
    /// For `/ready`, which answers from the first moment on.
    serving: Arc<OnceLock<Arc<Worker>>>,
}

impl Services {
    /// Starts the connections, which last until `end`.
    fn start(settings: &Settings, end: CancellationToken) -> Services {
        METRICS.slots.set(i64::from(settings.slots));
        Services {
            store: Store::new(&settings.store),
            consuming: Broker::start(settings.consuming.clone(), end.clone()),
            publishing: Broker::start(settings.publishing.clone(), end),
            serving: Arc::default(),
        }
    }

    fn readiness(&self, drain: CancellationToken) -> Readiness {
        readiness(self.serving.clone(), self.consuming.clone(), self.publishing.clone(), drain)
    }

    /// Waits for Postgres, then registers this worker. Returns `None` if the process is asked to stop before that.
    async fn register(
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
                // Without partitions no job's end can be recorded.
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
            schema: migrations::newest(),
        };
        let (running, throughput) = (Running::default(), ThroughputWindow::new());
        let register =
            || Lease::register(self.store.clone(), running.clone(), throughput.clone(), registration.clone());
        let Some(lease) =
            retry_or_stop("registering the worker", drain, StoreError::is_retryable, register).await?
        else {
            return Ok(None);
        };
        let gateway = calls::start(&settings.calls, &settings.agents).await?;
        if let Some(gateway) = &gateway {
            self.agree_on_zone(settings.calls.zone(), drain).await?;
            info!(address = %gateway.addr(), "programs call models through the gateway");
        }
        let dispatch = Dispatch::new(
            self.store.clone(),
            self.publishing.clone(),
            &settings.replying,
            settings.replies.clone(),
        );
        let worker = Arc::new(Worker {
            store: self.store.clone(),
            streaming: Arc::new(Streaming::new(dispatch.clone(), settings.enable_streaming)),
            dispatch,
            gateway,
            look: Arc::default(),
            lease,
            mark: Mark::none(settings.slots),
            running,
            throughput,
            machine: Machine::new(&settings.workspace_dir),
            memory: Arc::default(),
            draining: drain.clone(),
            stop_waiting: CancellationToken::new(),
            settings,
        });
        Ok(Some(worker))
    }

    /// Sets the time zone of budgets, or fails if the ledger counts by another one.
    async fn agree_on_zone(&self, zone: &str, drain: &CancellationToken) -> anyhow::Result<()> {
        let set = || self.store.set_spend_zone(zone);
        let holds =
            retry_or_stop("setting the time zone of budgets", drain, StoreError::is_retryable, set).await?;
        match holds {
            Some(holds) if holds != zone => Err(anyhow!(
                "BUDGET_TIMEZONE: got {zone}, expected {holds}: budgets are counted by it, and what is spent would start anew"
            )),
            _ => Ok(()),
        }
    }

    /// Starts what runs beside the slots.
    fn spawn_keepers(&self, lifecycle: &mut Lifecycle, worker: &Arc<Worker>) {
        let beating = worker.clone();
        lifecycle.spawn("heartbeat", |end| async move { heartbeat::keep(&beating, end).await });
        let looking = worker.clone();
        lifecycle.spawn("look at the machine", |end| async move { looking.machine.keep(end).await });
        if worker.gateway.is_some() {
            let looking = worker.clone();
            lifecycle
                .spawn("look at model calls", |end| async move { calls::keep_looking(&looking, end).await });
        }
        let streaming = worker.streaming.clone();
        lifecycle.spawn("streaming", |end| async move { streaming.keep(end).await });
        let relay = Relay::new(worker.dispatch.clone(), worker.settings.inbox_rules());
        lifecycle.spawn("relay", |end| async move { relay.run(end).await });
        let (store, broker) = (self.store.clone(), self.consuming.clone());
        lifecycle.spawn("watch over the queue", |end| async move {
            dispatch::return_lost(&store, &broker, &end).await;
        });
        let broker = self.consuming.clone();
        lifecycle.fail_by("connection to RabbitMQ", async move {
            anyhow!("ended for good: {}", broker.closed().await)
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

    async fn close(&self) {
        tokio::join!(self.consuming.close(), self.publishing.close());
        self.store.close();
    }
}

/// Says in the ledger that this worker has ended, and sends the last replies.
async fn sign_off(worker: &Worker) {
    let stopped = worker.store.mark_stopped(worker.lease.worker()).await;
    // A message whose reply is still being sent is acked with it.
    worker.dispatch.close_replies(worker.settings.replying.close_timeout).await;
    if let Err(cause) = stopped {
        warn!(cause = cause.as_dyn(), "could not sign off; the lease runs out by itself");
    }
}

/// Lets running jobs end within the grace, then stops them and lets them be handed back. Those that call models hand
/// themselves back at once, at their next checkpoint: a call that is made now is likely to be cut, and paid twice.
async fn drain_slots(worker: &Worker, mut slots: JoinSet<()>) {
    let grace = worker.settings.drain_grace;
    let jobs = worker.running.epochs().len();
    info!(jobs, grace_s = grace.as_secs(), "draining: takes no more jobs");
    worker.running.stop_all(Stop::HandBack);
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

/// Records that this worker drains, so that its death before the end of the drain costs no job an attempt. Never ends.
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

/// Answers `/ready` from what the process knows, without asking another service.
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
            BrokerStatus::Ready { .. } if !broker.is_consuming() => {
                Some(broker.refused().unwrap_or_else(|| "subscribing".to_owned()))
            }
            BrokerStatus::Ready { .. } => None,
            BrokerStatus::Connecting { reason } => {
                let reason = broker.refused().or_else(|| reason.clone());
                Some(reason.unwrap_or_else(|| "connecting".to_owned()))
            }
            BrokerStatus::Closed { reason } => Some(reason.clone()),
        };
        let no_lease = (!database).then(|| "no heartbeat within the lease".to_owned());
        let Lacks { workspace, resources } = worker.map(|worker| worker.machine.lacks()).unwrap_or_default();
        let mut checks = BTreeMap::from([
            ("database_connected", Check::unless(no_lease)),
            ("queue_consuming", Check::unless(consuming)),
            ("queue_publishing", Check::unless(publishing.held_up())),
            ("workspace_accessible", Check::unless(workspace)),
            ("resources_available", Check::unless(resources)),
        ]);
        if let Some(worker) = worker
            && worker.gateway.is_some()
        {
            checks.extend(worker.look.checks());
        }
        checks
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_stops_reads_answers_on_for_as_long_as_is_set() {
        for seconds in [0, 60, 3_600] {
            let drain = Duration::from_secs(seconds);
            assert!(settling_grace(drain) > drain && settling_grace(drain) >= HAND_BACK_GRACE, "{drain:?}");
        }
    }
}
