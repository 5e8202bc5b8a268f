//! What the autoscaler counts. Labels: the pools of its settings, and fixed sets.

use std::sync::LazyLock;

use prometheus::{
    GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, register_gauge_vec, register_int_counter_vec,
    register_int_gauge, register_int_gauge_vec,
};

use crate::decide::{Decision, Observation};

/// The metrics of this process.
pub struct Metrics {
    /// Messages ready in a pool's queue; not set while that is unknown.
    pub queue_depth: IntGaugeVec,
    /// Workers that the last decision wants.
    pub desired: IntGaugeVec,
    /// Workers that the workload's specification has.
    pub current: IntGaugeVec,
    /// Workers that are marked to drain.
    pub draining: IntGaugeVec,
    /// Replicas that are too many and cannot go yet, by the kind of what they wait for.
    pub waits: IntGaugeVec,
    /// Decisions by reason, one a tick.
    pub decisions: IntCounterVec,
    /// Changes written to the workload, by direction: up, down.
    pub resizes: IntCounterVec,
    /// How old each source's last reading is; of one without a reading, how long this leader has sought it.
    pub observation_age: GaugeVec,
    /// Ticks that went wrong, by stage: recall, look, mark, lead, record, resize.
    pub errors: IntCounterVec,
    /// What went wrong for all pools, by stage: lead.
    pub failures: IntCounterVec,
    /// 1 while this process decides, 0 while it stands by.
    pub leader: IntGauge,
}

/// The one set of them, registered at first use.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let metrics = register().expect("every metric has a name of its own, so that registering cannot fail");
    metrics.failures.with_label_values(&["lead"]);
    metrics
});

impl Metrics {
    /// Shows what this pool counts before it counts anything: a counter that appears at 1 has no rate.
    pub fn show_zeros(&self, pool: &str) {
        // The usual kind. The others are shown once they are met, as there are many.
        self.waits.with_label_values(&[pool, "draining"]);
        for stage in ["recall", "look", "mark", "lead", "record", "resize"] {
            self.errors.with_label_values(&[pool, stage]);
        }
        for direction in ["up", "down"] {
            self.resizes.with_label_values(&[pool, direction]);
        }
    }

    /// What a tick has seen and decided, under a leadership that began then.
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
        // The only one that need not be watched at all.
        ages.extend(observation.managed_ready.as_ref().map(|it| ("management", Some(it.at_ms))));
        for (source, at_ms) in ages {
            // One without a reading has been sought in vain since we lead.
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
            "Replicas that are too many and cannot go yet, by the kind of what they wait for",
            &["pool", "kind"]
        )?,
        decisions: register_int_counter_vec!(
            "harness_autoscaler_decisions_total",
            "Decisions, one a tick, by the reason that bound",
            &["pool", "reason"]
        )?,
        resizes: register_int_counter_vec!(
            "harness_autoscaler_resizes_total",
            "Changes written to the workload, by direction",
            &["pool", "direction"]
        )?,
        observation_age: register_gauge_vec!(
            "harness_autoscaler_observation_age_seconds",
            "How old the last reading of a source is; where there is none, how long this leader has sought one",
            &["pool", "source"]
        )?,
        errors: register_int_counter_vec!(
            "harness_autoscaler_errors_total",
            "Ticks of a pool that went wrong, by stage",
            &["pool", "stage"]
        )?,
        failures: register_int_counter_vec!(
            "harness_autoscaler_failures_total",
            "What went wrong for all pools at once, by stage",
            &["stage"]
        )?,
        leader: register_int_gauge!(
            "harness_autoscaler_leader",
            "1 while this process decides, 0 while it stands by"
        )?,
    })
}
