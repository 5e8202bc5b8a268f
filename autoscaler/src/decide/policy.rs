//! What the operator wants for a pool. `behavior` has the names and units of HPA v2, and defaults of the same shape.

use serde::{Deserialize, Serialize};

use super::Window;

/// How a pool is scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// How demand becomes workers.
    pub mode: Mode,
    /// The fewest workers; 0 allows scale to zero.
    pub min_replicas: u32,
    /// The most workers.
    pub max_replicas: u32,
    /// How the pool grows.
    pub scale_up: Behavior,
    /// How the pool shrinks.
    pub scale_down: Behavior,
    /// The fewest messages that wake a pool from zero workers.
    pub activation: u64,
    /// How long there must be nothing to do before the last worker is removed, in seconds.
    pub cooldown_s: u64,
    /// Jobs due within this time keep a pool from shrinking to zero, in seconds.
    pub due_horizon_s: u64,
    /// A reading older than this is stale: it never lowers replicas. In seconds.
    pub stale_after_s: u64,
    /// Time windows with a higher minimum.
    pub schedule: Vec<Window>,
    /// Pauses growing.
    pub pause_up: bool,
    /// Pauses shrinking.
    pub pause_down: bool,
}

/// How demand becomes workers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mode {
    /// ceil((ready + running) / `jobs_per_worker`), as HPA's AverageValue does.
    Backlog {
        /// Jobs ready or running for each worker.
        jobs_per_worker: f64,
    },
    /// The fewest workers for which the oldest job starts within the target.
    TargetWait {
        /// Jobs start within this time, in seconds.
        target_s: f64,
        /// Slots of a worker, assumed until one has registered.
        #[serde(default = "usual::slots_per_worker")]
        slots_per_worker: u32,
        /// The part of all slots that may be busy on average (ρ).
        #[serde(default = "usual::utilization")]
        utilization: f64,
        /// How long a new worker needs until it takes its first job, in seconds.
        #[serde(default = "usual::startup_s")]
        startup_s: f64,
        /// A job's service time, assumed until one was measured, in seconds.
        #[serde(default = "usual::assumed_service_s")]
        assumed_service_s: f64,
    },
}

impl Mode {
    /// Returns the mode `target_wait` with the usual values.
    pub fn target_wait(target_s: f64) -> Mode {
        Mode::TargetWait {
            target_s,
            slots_per_worker: usual::slots_per_worker(),
            utilization: usual::utilization(),
            startup_s: usual::startup_s(),
            assumed_service_s: usual::assumed_service_s(),
        }
    }
}

/// What mode `target_wait` assumes unless it is set.
mod usual {
    /// The default of WORKER_SLOTS.
    pub fn slots_per_worker() -> u32 {
        16
    }

    pub fn utilization() -> f64 {
        0.8
    }

    pub fn startup_s() -> f64 {
        30.0
    }

    pub fn assumed_service_s() -> f64 {
        60.0
    }
}

/// One direction of HPA v2's `behavior`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Behavior {
    /// How far to look back over raw recommendations, in seconds: growing takes the lowest of them, shrinking the
    /// highest.
    pub stabilization_window_s: u64,
    /// Which of the limits binds.
    pub select_policy: SelectPolicy,
    /// Limits to the change. An empty list means no limit.
    pub policies: Vec<RateLimit>,
    /// Nothing changes while demand per worker differs from its target by no more than this part.
    pub tolerance: f64,
}

/// Which of several limits binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No change in this direction.
    Disabled,
}

/// A limit to the change within a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// What is counted.
    #[serde(rename = "type")]
    pub unit: RateUnit,
    /// The largest change.
    pub value: u32,
    /// The period, in seconds (HPA's `periodSeconds`).
    pub period_s: u64,
}

/// What a rate limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RateUnit {
    /// Workers.
    Pods,
    /// Percent of the workers at the period's beginning.
    Percent,
}

impl Policy {
    /// Returns the fewest workers at a moment: `min_replicas`, or that of an open window if it is higher.
    pub fn minimum_at(&self, now_ms: u64) -> u32 {
        let open = self.schedule.iter().filter(|window| window.is_open(now_ms));
        open.map(Window::min_replicas).fold(self.min_replicas, u32::max).min(self.max_replicas)
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            mode: Mode::Backlog { jobs_per_worker: 1.0 },
            min_replicas: 2,
            max_replicas: 20,
            scale_up: Behavior {
                stabilization_window_s: 0,
                select_policy: SelectPolicy::Max,
                policies: vec![
                    RateLimit { unit: RateUnit::Percent, value: 100, period_s: 15 },
                    RateLimit { unit: RateUnit::Pods, value: 5, period_s: 15 },
                ],
                tolerance: 0.0,
            },
            scale_down: Behavior {
                stabilization_window_s: 300,
                select_policy: SelectPolicy::Max,
                policies: vec![RateLimit { unit: RateUnit::Percent, value: 50, period_s: 15 }],
                tolerance: 0.1,
            },
            activation: 1,
            cooldown_s: 300,
            due_horizon_s: 60,
            stale_after_s: 15,
            schedule: Vec::new(),
            pause_up: false,
            pause_down: false,
        }
    }
}
