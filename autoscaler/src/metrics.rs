//! What the autoscaler counts. The values of labels are the pools of its settings, and fixed sets.

use std::sync::LazyLock;

use prometheus::{
    GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, register_gauge_vec, register_int_counter_vec,
    register_int_gauge, register_int_gauge_vec,
};

use crate::decide::{Decision, Observation};

/// The metrics of this process.
pub struct Metrics {
    /// Messages ready in a pool's queue; absent while that is unknown.
    pub queue_depth: IntGaugeVec,
    /// Workers that the last decision wants.
    pub desired: IntGaugeVec,
    /// Workers that the workload's specification has.
    pub current: IntGaugeVec,
    /// Workers that are marked to drain.
    pub draining: IntGaugeVec,
    /// Surplus replicas that cannot be removed yet, by the kind of what they wait for.
    pub waits: IntGaugeVec,
    /// Decisions by reason, one a tick.
    pub decisions: IntCounterVec,
    /// Changes written to the workload, by direction: up, down.
    pub resizes: IntCounterVec,
    /// The age of each source's last reading; without a reading, how long this leader has tried to read it.
    pub observation_age: GaugeVec,
    /// Ticks that went wrong, by stage: recall, look, mark, lead, record, resize.
    pub errors: IntCounterVec,
    /// Failures that concern all pools, by stage: lead.
    pub failures: IntCounterVec,
    /// 1 while this process decides, 0 while it stands by.
    pub leader: IntGauge,
}

/// The metrics, registered at first use.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let metrics = register().expect("every metric has its own name, so registering cannot fail");
    metrics.failures.with_label_values(&["lead"]);
    metrics
});

impl Metrics {
    /// Shows this pool's counters at zero, because a counter that first appears at 1 has no rate.
    pub fn show_zeros(&self, pool: &str) {
        // Only the usual kind. There are many others, which are shown once they occur.
        self.waits.with_label_values(&[pool, "draining"]);
        for stage in ["recall", "look", "mark", "lead", "record", "resize"] {
            self.errors.with_label_values(&[pool, stage]);
        }
        for direction in ["up", "down"] {
            self.resizes.with_label_values(&[pool, direction]);
        }
    }

    /// Shows what a tick has observed and decided. `began_ms` is when the leadership began.
    pub fn show_tick(&self, pool: &str, observation: &Observation, decision: &Decision, began_ms: u64) {
        for (gauge, workers) in [(&self.desired, decision.desired), (&self.current, decision.current)] {
            if let Some(workers) = workers {
                gauge.with_label_values(&[pool]).set(workers.into());
            }
        }
        self.decisions.with_label_values(&[pool, decision.reason.as_str()]).inc();
        let mut ages = vec![
            ("queue", observation.ready.as_ref().map(|it| it.at_ms)),
            ("ledger", observation.demand.as_ref().map(|it| it.at_ms)),
            ("workload", observation.replicas.as_ref().map(|it| it.at_ms)),
        ];
        // The only source that is optional.
        ages.extend(observation.managed_ready.as_ref().map(|it| ("management", Some(it.at_ms))));
        for (source, at_ms) in ages {
            // A source without a reading could not be read since we lead.
            let age_ms = decision.at_ms.saturating_sub(at_ms.unwrap_or(began_ms));
            self.observation_age.with_label_values(&[pool, source]).set(age_ms as f64 / 1e3);
        }
        match &observation.ready {
            Some(ready) => self.queue_depth.with_label_values(&[pool]).set(ready.value as i64),
            None => drop(self.queue_depth.remove_label_values(&[pool])),
        }
    }
}

fn register() -> prometheus::Result<Metrics> {
    Ok(Metrics {
        queue_depth: register_int_gauge_vec!(
            "harness_queue_depth",
            "Messages ready in the pool's queue; absent while that is unknown",
            &["pool"]
        )?,
        desired: register_int_gauge_vec!(
            "harness_autoscaler_desired_replicas",
            "Workers that the last decision wants",
            &["pool"]
        )?,
        current: register_int_gauge_vec!(
            "harness_autoscaler_current_replicas",
            "Workers that the workload's specification has",
            &["pool"]
        )?,
        draining: register_int_gauge_vec!(
            "harness_autoscaler_draining_workers",
            "Workers that are marked to drain before a scale-in",
            &["pool"]
        )?,
        waits: register_int_gauge_vec!(
            "harness_scale_in_waits",
            "Surplus replicas that cannot be removed yet, by the kind of what they wait for",
            &["pool", "kind"]
        )?,
        decisions: register_int_counter_vec!(
            "harness_autoscaler_decisions_total",
            "Decisions, one a tick, by the reason that decided",
            &["pool", "reason"]
        )?,
        resizes: register_int_counter_vec!(
            "harness_autoscaler_resizes_total",
            "Changes written to the workload, by direction",
            &["pool", "direction"]
        )?,
        observation_age: register_gauge_vec!(
            "harness_autoscaler_observation_age_seconds",
            "Age of a source's last reading; without a reading, how long this leader has tried to read it",
            &["pool", "source"]
        )?,
        errors: register_int_counter_vec!(
            "harness_autoscaler_errors_total",
            "Ticks of a pool that went wrong, by stage",
            &["pool", "stage"]
        )?,
        failures: register_int_counter_vec!(
            "harness_autoscaler_failures_total",
            "Failures that concern all pools at once, by stage",
            &["stage"]
        )?,
        leader: register_int_gauge!(
            "harness_autoscaler_leader",
            "1 while this process decides, 0 while it stands by"
        )?,
    })
}
