//! What `producer relay` exports about the whole fleet: figures of the ledger and the broker, read every few seconds.
//!
//! Workers count what they do. These figures show what is not being done, such as a backlog that grows old. Several
//! relays export the same figures, so a query takes the maximum. A figure that cannot be read is absent, never zero.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use dispatch::Dispatch;
use job::Name;
use prometheus::{
    GaugeVec, IntCounterVec, IntGaugeVec, register_gauge_vec, register_int_counter_vec,
    register_int_gauge_vec,
};
use queue::{Broker, DEAD_QUEUE, jobs_queue};
use service::with_causes;
use store::{PoolGauges, PoolView, Store};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::spend_gauges::ExportedBudgets;

/// The interval between readings. Prometheus scrapes less often.
const EVERY: Duration = Duration::from_secs(5);

/// Families without a label are vectors too, because only a member of a vector can be removed.
struct Metrics {
    relay_lag: GaugeVec,
    partitions_missing: IntGaugeVec,
    partitions_ahead: GaugeVec,
    dead_letters: IntGaugeVec,
    oldest: GaugeVec,
    workers: IntGaugeVec,
    queue_depth: IntGaugeVec,
    inbox_jobs: IntGaugeVec,
    inbox_lag: GaugeVec,
    schedules: IntGaugeVec,
    schedules_late: GaugeVec,
    webhook_backlog: IntGaugeVec,
    webhook_lag: GaugeVec,
    awaiting_input: IntGaugeVec,
    awaiting_input_age: GaugeVec,
    waiting: IntGaugeVec,
    held_back: IntGaugeVec,
    line_unseen: GaugeVec,
    keys_shut: IntGaugeVec,
    failures: IntCounterVec,
}

static METRICS: LazyLock<Metrics> =
    LazyLock::new(|| register().expect("the metrics' names are unique, so registering cannot fail"));

fn register() -> prometheus::Result<Metrics> {
    Ok(Metrics {
        relay_lag: register_gauge_vec!(
            "harness_relay_lag_seconds",
            "How long the job that waits the longest for a relay has waited",
            &[]
        )?,
        partitions_missing: register_int_gauge_vec!(
            "harness_partitions_missing",
            "Weeks that an accepted job can fall into and for which results, labels or model calls have no partition",
            &[]
        )?,
        partitions_ahead: register_gauge_vec!(
            "harness_partitions_ahead_seconds",
            "Time from now until the first moment for which results, labels or model calls have no partition",
            &[]
        )?,
        dead_letters: register_int_gauge_vec!(
            "harness_dead_letters",
            "Messages in harness.dead that wait for an operator",
            &[]
        )?,
        oldest: register_gauge_vec!(
            "harness_backlog_age_seconds",
            "How long the first job has waited that only waits for a slot: in the pool's queue, or in its line",
            &["pool"]
        )?,
        workers: register_int_gauge_vec!(
            "harness_workers",
            "Workers in the ledger, by state: alive, draining",
            &["pool", "state"]
        )?,
        queue_depth: register_int_gauge_vec!(
            "harness_queue_depth",
            "Messages ready in the pool's queue; absent while that is unknown",
            &["pool"]
        )?,
        inbox_jobs: register_int_gauge_vec!(
            "harness_inbox_jobs",
            "Jobs enqueued by SQL that have not been taken in yet; counting stops at 10000",
            &[]
        )?,
        inbox_lag: register_gauge_vec!(
            "harness_inbox_lag_seconds",
            "How long the job that was enqueued by SQL first has waited to be taken in",
            &[]
        )?,
        schedules: register_int_gauge_vec!(
            "harness_schedules",
            "Schedules, by state: active (an instant is left), paused",
            &["state"]
        )?,
        schedules_late: register_gauge_vec!(
            "harness_schedules_late_seconds",
            "For how long the schedule that waits the longest to be fired has been due",
            &[]
        )?,
        webhook_backlog: register_int_gauge_vec!(
            "harness_webhook_backlog",
            "Ends that wait to be sent to enabled webhooks, for the first time or again; counting stops at 10000",
            &[]
        )?,
        webhook_lag: register_gauge_vec!(
            "harness_webhook_lag_seconds",
            "How long the delivery to an enabled webhook that is due the longest has been due",
            &[]
        )?,
        awaiting_input: register_int_gauge_vec!(
            "harness_jobs_awaiting_input",
            "Jobs that wait for a person's answer; counting stops at 10000",
            &[]
        )?,
        awaiting_input_age: register_gauge_vec!(
            "harness_awaiting_input_age_seconds",
            "How long the job that waits the longest for a person has waited",
            &[]
        )?,
        waiting: register_int_gauge_vec!(
            "harness_waiting_jobs",
            "Jobs in the pool's line, by lane: begun (before), high, normal, low; counting stops at about 10000",
            &["pool", "lane"]
        )?,
        held_back: register_int_gauge_vec!(
            "harness_held_back_jobs",
            "Jobs in the pool's line that could not run if there were a slot, by reason: limit, tenant, session",
            &["pool", "reason"]
        )?,
        line_unseen: register_gauge_vec!(
            "harness_line_unseen_seconds",
            "For how long no admitter has looked at the pool's line",
            &["pool"]
        )?,
        keys_shut: register_int_gauge_vec!(
            "harness_model_keys_shut",
            "Keys of model providers with which no call is granted now, because the provider refuses calls",
            &[]
        )?,
        failures: register_int_counter_vec!(
            "harness_readings_failed_total",
            "Readings of the fleet that failed, by source: broker, budgets, ledger",
            &["source"]
        )?,
    })
}

/// The figures, and the sources that could not be read. Clones share the latter.
#[derive(Clone)]
pub struct FleetGauges {
    /// The pools whose figures are exported.
    pools: BTreeSet<Name>,
    /// The limits whose figures are exported.
    budgets: ExportedBudgets,
    /// The sources that failed at the last reading, and why.
    failing: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

/// The problem of a source that has not been read yet.
const NOT_YET: &str = "starting";

impl FleetGauges {
    /// Starts with both sources not read yet.
    pub fn new() -> FleetGauges {
        let failing = ["ledger", "broker"].map(|source| (source, NOT_YET.to_owned()));
        FleetGauges {
            pools: BTreeSet::new(),
            budgets: ExportedBudgets::default(),
            failing: Arc::new(Mutex::new(failing.into())),
        }
    }

    /// Returns why a source could not be read last time.
    pub fn trouble(&self, source: &str) -> Option<String> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).get(source).cloned()
    }

    /// Reads at an interval until `stop`.
    pub async fn keep(mut self, dispatch: &Dispatch, retention: Duration, stop: &CancellationToken) {
        let mut clock = interval(EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reading = async {
            loop {
                clock.tick().await;
                self.read(dispatch, retention).await;
            }
        };
        // The stop also ends a reading that waits for an answer.
        stop.run_until_cancelled(reading).await.unwrap_or(())
    }

    async fn read(&mut self, dispatch: &Dispatch, retention: Duration) {
        let ledger = self.ledger(&dispatch.store, retention).await;
        if ledger.is_err() {
            forget([
                &METRICS.relay_lag,
                &METRICS.partitions_ahead,
                &METRICS.oldest,
                &METRICS.webhook_lag,
                &METRICS.awaiting_input_age,
                &METRICS.inbox_lag,
                &METRICS.schedules_late,
                &METRICS.line_unseen,
            ]);
            forget([
                &METRICS.partitions_missing,
                &METRICS.workers,
                &METRICS.webhook_backlog,
                &METRICS.awaiting_input,
                &METRICS.inbox_jobs,
                &METRICS.schedules,
                &METRICS.waiting,
                &METRICS.held_back,
                &METRICS.keys_shut,
            ]);
        }
        self.report("ledger", ledger);
        let budgets = self.budgets(&dispatch.store).await;
        if budgets.is_err() {
            self.budgets.forget();
        }
        self.report("budgets", budgets);
        let broker = self.broker(&dispatch.broker).await;
        if broker.is_err() {
            forget([&METRICS.dead_letters, &METRICS.queue_depth]);
        }
        self.report("broker", broker);
    }

    async fn ledger(&mut self, store: &Store, retention: Duration) -> anyhow::Result<()> {
        let partitions = store.partitions_ahead(retention).await.context("looking at partitions")?;
        let lag = store.relay_lag().await.context("reading the relays' lag")?;
        let pools = store.pool_gauges().await.context("reading the pools")?;
        let webhooks = store.webhook_backlog().await.context("reading what waits for webhooks")?;
        let (awaiting, age) = store.awaiting_input().await.context("reading what waits for persons")?;
        let inbox = store.inbox_backlog().await.context("counting the inbox")?;
        let schedules = store.schedule_backlog().await.context("counting schedules")?;
        let lines = store.pools().await.context("reading the pools' lines")?;
        let shut = store.shut_keys().await.context("reading which keys are shut")?;
        METRICS.relay_lag.with_label_values::<&str>(&[]).set(lag.as_secs_f64());
        METRICS.partitions_missing.with_label_values::<&str>(&[]).set(partitions.missing as i64);
        METRICS.partitions_ahead.with_label_values::<&str>(&[]).set(partitions.ahead.as_secs_f64());
        METRICS.webhook_backlog.with_label_values::<&str>(&[]).set(webhooks.pending);
        METRICS.webhook_lag.with_label_values::<&str>(&[]).set(webhooks.lag.as_secs_f64());
        METRICS.awaiting_input.with_label_values::<&str>(&[]).set(awaiting);
        METRICS.awaiting_input_age.with_label_values::<&str>(&[]).set(age.as_secs_f64());
        METRICS.inbox_jobs.with_label_values::<&str>(&[]).set(inbox.jobs as i64);
        METRICS.inbox_lag.with_label_values::<&str>(&[]).set(inbox.oldest.as_secs_f64());
        METRICS.schedules.with_label_values(&["active"]).set(schedules.active as i64);
        METRICS.schedules.with_label_values(&["paused"]).set(schedules.paused as i64);
        METRICS.schedules_late.with_label_values::<&str>(&[]).set(schedules.late.as_secs_f64());
        METRICS.keys_shut.with_label_values::<&str>(&[]).set(shut.len() as i64);
        show_lines(&lines);
        self.keep_only(&pools);
        for PoolGauges { pool, oldest_queued, oldest_in_line, alive, draining } in pools {
            let oldest = oldest_queued.max(oldest_in_line);
            METRICS.oldest.with_label_values(&[pool.as_str()]).set(oldest.as_secs_f64());
            METRICS.workers.with_label_values(&[pool.as_str(), "alive"]).set(alive);
            METRICS.workers.with_label_values(&[pool.as_str(), "draining"]).set(draining);
        }
        Ok(())
    }

    /// A reading of its own: what is wrong with an amount hides no other figure.
    async fn budgets(&mut self, store: &Store) -> anyhow::Result<()> {
        let spend = store.spend_gauges().await.context("reading how budgets fare")?;
        self.budgets.show(&spend);
        Ok(())
    }

    async fn broker(&mut self, broker: &Broker) -> anyhow::Result<()> {
        let dead_letters = broker.depth(DEAD_QUEUE).await?;
        METRICS
            .dead_letters
            .with_label_values::<&str>(&[])
            .set(dead_letters.map_or(0, |depth| depth.ready as i64));
        for pool in &self.pools {
            match broker.depth(&jobs_queue(pool)).await? {
                Some(depth) => {
                    METRICS.queue_depth.with_label_values(&[pool.as_str()]).set(depth.ready as i64)
                }
                None => forget_queue(pool),
            }
        }
        Ok(())
    }

    /// Removes the figures of pools that no longer exist.
    fn keep_only(&mut self, pools: &[PoolGauges]) {
        let present: BTreeSet<Name> = pools.iter().map(|reading| reading.pool.clone()).collect();
        for gone in self.pools.difference(&present) {
            // An error means that the member does not exist, which is fine.
            let _ = METRICS.oldest.remove_label_values(&[gone.as_str()]);
            for state in ["alive", "draining"] {
                let _ = METRICS.workers.remove_label_values(&[gone.as_str(), state]);
            }
            forget_queue(gone);
        }
        self.pools = present;
    }

    /// Notes the result of a reading. Logs a failure when it begins, not at every try.
    fn report(&self, source: &'static str, result: anyhow::Result<()>) {
        let failures = METRICS.failures.with_label_values(&[source]);
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => drop(failing.remove(source)),
            Err(error) => {
                failures.inc();
                let error = with_causes(error.as_ref());
                let before = failing.insert(source, error.clone());
                if before.is_none_or(|before| before == NOT_YET) {
                    warn!(source, "the fleet's figures cannot be read, still trying: {error}");
                }
            }
        }
    }
}

/// Exports the lines of pools that have one, and no others.
fn show_lines(pools: &[PoolView]) {
    forget([&METRICS.waiting, &METRICS.held_back]);
    forget([&METRICS.line_unseen]);
    for PoolView { pool, line: _, seen, unseen } in pools.iter().filter(|pool| pool.line) {
        METRICS.line_unseen.with_label_values(&[pool.as_str()]).set(unseen.as_secs_f64());
        let Some(seen) = seen else { continue };
        let lanes = [("begun", seen.begun), ("high", seen.high), ("normal", seen.normal), ("low", seen.low)];
        for (lane, jobs) in lanes {
            METRICS.waiting.with_label_values(&[pool.as_str(), lane]).set(jobs as i64);
        }
        let held = [
            ("limit", seen.held_by_limit),
            ("tenant", seen.held_by_tenant),
            ("session", seen.held_by_session),
        ];
        for (reason, jobs) in held {
            METRICS.held_back.with_label_values(&[pool.as_str(), reason]).set(jobs as i64);
        }
    }
}

fn forget_queue(pool: &Name) {
    let _ = METRICS.queue_depth.remove_label_values(&[pool.as_str()]);
}

/// Exports none of these until they are read again.
fn forget<T: prometheus::core::MetricVecBuilder, const N: usize>(
    families: [&prometheus::core::MetricVec<T>; N],
) {
    families.into_iter().for_each(prometheus::core::MetricVec::reset);
}
