//! Demand: how many workers the jobs ask for, by the policy's mode.
//!
//! # `backlog`
//! ceil((ready + running) / target), as HPA's `AverageValue`: `GetExternalPerPodMetricReplicas` in Kubernetes'
//! `pkg/controller/podautoscaler/replica_calculator.go`. The target is in thousandths, as Kubernetes' quantities are,
//! and the floating point is the same. The ratio that the tolerance applies to is *one* division, usage by (target ·
//! workers). Two divisions give 0.8999… where one gives 0.9, and so another number of workers at the edge of the
//! tolerance.
//!
//! # `target_wait`
//! There are c slots for R waiting and n running jobs of S seconds each. When all slots are in use, one becomes free
//! every S/c seconds, so the i-th job in line starts within max(0, i + n − c)·S/c (Graham, "Bounds for certain
//! multiprocessing anomalies", 1966: a list scheduler leaves no slot idle while a job waits). We assume that ages in
//! line fall evenly from the oldest's A to 0. Each job should start before it is T old:
//! - the last in line: c ≥ (R + n)·S/(T + S);
//! - the oldest: c ≥ (1 + n)·S/(T − A + S) while A < T;
//! - the R·(1 − T/A) jobs that are older than T already, now: one slot each;
//! - running jobs keep their slots: c ≥ n.
//!
//! If the existing slots do not suffice, new ones come a start-up time D later. Until then the existing ones take f
//! jobs with free slots, and more as jobs end; the remaining R′ jobs have T − D left. At most R′ slots are added,
//! because the other jobs are taken sooner than a worker could start.
//!
//! A steady stream sets a lower bound: λ·S jobs run on average (Little, "A proof for the queuing formula L = λW",
//! 1961), and may use the part ρ of the slots.

use super::{Demand, Mode};

/// The shortest service time that the formulas use, in seconds: 1 ms.
const LEAST_SERVICE_S: f64 = 0.001;

/// Subtracted from a quotient before it is rounded up, so that its last bits add no worker.
const ROUNDING: f64 = 1e-9;

/// What the jobs ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Asked {
    /// The number of workers.
    pub workers: u32,
    /// The workers asked for, before rounding up, divided by those that exist: 1 is just enough. Infinite or NaN if
    /// there are none.
    pub ratio: f64,
}

/// Returns what the jobs ask for, compared with the current workers.
pub(super) fn asked(mode: &Mode, ready: u64, demand: &Demand, current: u32) -> Asked {
    let current = f64::from(current);
    let ready = ready.saturating_add(demand.in_line);
    match *mode {
        Mode::Backlog { jobs_per_worker } => {
            let usage = ready.saturating_add(demand.running) as f64 * 1000.0;
            let target = (jobs_per_worker * 1000.0).round().max(1.0);
            Asked { workers: (usage / target).ceil() as u32, ratio: usage / (target * current) }
        }
        Mode::TargetWait { target_s, slots_per_worker, utilization, startup_s, assumed_service_s } => {
            let slots_per_worker = match demand.workers {
                0 => f64::from(slots_per_worker.max(1)),
                workers => (demand.slots as f64 / f64::from(workers)).max(1.0),
            };
            let service_s = demand.service.map_or(assumed_service_s, |service| service.mean_ms / 1000.0);
            let service_s = service_s.max(LEAST_SERVICE_S);
            let line = Line {
                waiting: ready as f64,
                running: demand.running as f64,
                service_s,
                oldest_s: demand.oldest_waiting_ms.max(demand.oldest_in_line_ms).unwrap_or(0) as f64 / 1000.0,
            };
            let steady = demand.arrivals_per_s.max(0.0) * service_s / utilization;
            let slots = line.slots_with_startup(target_s, demand.slots as f64, startup_s).max(steady);
            let workers = (slots / slots_per_worker - ROUNDING).max(0.0);
            Asked { workers: workers.ceil() as u32, ratio: workers / current }
        }
    }
}

/// Jobs that wait in line for slots.
#[derive(Clone, Copy)]
struct Line {
    waiting: f64,
    running: f64,
    service_s: f64,
    oldest_s: f64,
}

impl Line {
    /// Returns the fewest slots with which each job starts before it is `target_s` old, if all of them existed now.
    fn slots(self, target_s: f64) -> f64 {
        let Line { waiting, running, service_s, oldest_s } = self;
        if waiting <= 0.0 {
            return running;
        }
        let last = (waiting + running) * service_s / (target_s + service_s);
        let (oldest, overdue) = if oldest_s < target_s {
            ((1.0 + running) * service_s / (target_s - oldest_s + service_s), 0.0)
        } else {
            (1.0 + running, running + waiting * (1.0 - target_s / oldest_s.max(LEAST_SERVICE_S)))
        };
        last.max(oldest).max(overdue).max(running).min(running + waiting)
    }

    /// As `slots`, but only `there` slots exist now, and the others come `startup_s` later.
    fn slots_with_startup(self, target_s: f64, there: f64, startup_s: f64) -> f64 {
        let slots = self.slots(target_s);
        if slots <= there {
            return slots;
        }
        let free = (there - self.running).max(0.0);
        let busy = there - free;
        let taken = free * (startup_s / self.service_s).max(1.0) + busy * startup_s / self.service_s;
        let left = (self.waiting - taken).max(0.0);
        let later = Line {
            waiting: left,
            running: self.running.max(there),
            oldest_s: if self.waiting > 0.0 { self.oldest_s * left / self.waiting } else { 0.0 },
            ..self
        };
        later.slots((target_s - startup_s).max(0.0))
    }
}
