//! Check: lists what is wrong with a policy, by the name of the field.

use super::{Behavior, MAX_PERIOD_S, MAX_WINDOW_S, Mode, Policy};

/// The upper bound of a policy's other durations, in seconds: a week.
const MAX_WAIT_S: u64 = 7 * 24 * 3600;

impl Policy {
    /// Lists everything that is wrong with the policy. Each problem begins with the field's name. A policy without
    /// problems is fit for [`decide`](super::decide).
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        self.check_bounds(&mut problems);
        self.mode.check(&mut problems);
        self.scale_up.check("scale_up", &mut problems);
        self.scale_down.check("scale_down", &mut problems);
        if self.scale_down.tolerance >= 1.0 {
            let given = self.scale_down.tolerance;
            problems.push(format!(
                "scale_down.tolerance: {given} would never shrink; a part below 1, such as 0.1, is right"
            ));
        }
        self.check_schedule(&mut problems);
        problems
    }

    fn check_bounds(&self, problems: &mut Vec<String>) {
        let Policy { min_replicas, max_replicas, .. } = self;
        if *max_replicas == 0 {
            problems.push("max_replicas: 0 allows no worker; at least 1 is right".to_owned());
        }
        if min_replicas > max_replicas {
            problems.push(format!("min_replicas: {min_replicas} is more than max_replicas ({max_replicas})"));
        }
        if self.activation == 0 {
            problems
                .push("activation: 0 messages would wake a pool for nothing; at least 1 is right".to_owned());
        }
        let mut wait = |field: &str, given_s: u64, least_s: u64| {
            if !(least_s..=MAX_WAIT_S).contains(&given_s) {
                problems.push(format!("{field}: {given_s} is not from {least_s} to {MAX_WAIT_S} seconds"));
            }
        };
        wait("cooldown_s", self.cooldown_s, 0);
        wait("due_horizon_s", self.due_horizon_s, 0);
        wait("stale_after_s", self.stale_after_s, 1);
    }

    fn check_schedule(&self, problems: &mut Vec<String>) {
        for (index, window) in self.schedule.iter().enumerate() {
            problems.extend(window.problems().iter().map(|problem| format!("schedule[{index}].{problem}")));
            if window.min_replicas() > self.max_replicas {
                let (given, max) = (window.min_replicas(), self.max_replicas);
                problems.push(format!(
                    "schedule[{index}].min_replicas: {given} is more than max_replicas ({max})"
                ));
            }
        }
    }
}

impl Mode {
    fn check(&self, problems: &mut Vec<String>) {
        let mut seconds = |field: &str, given: f64, least: f64| {
            if !(least..=MAX_WAIT_S as f64).contains(&given) {
                problems.push(format!("mode.{field}: {given} is not from {least} to {MAX_WAIT_S} seconds"));
            }
        };
        match *self {
            Mode::Backlog { jobs_per_worker } => {
                if !(0.001..=1e9).contains(&jobs_per_worker) {
                    problems.push(format!(
                        "mode.jobs_per_worker: {jobs_per_worker} is not from 0.001 to 1000000000"
                    ));
                }
            }
            Mode::TargetWait { target_s, slots_per_worker, utilization, startup_s, assumed_service_s } => {
                seconds("target_s", target_s, 0.001);
                seconds("startup_s", startup_s, 0.0);
                seconds("assumed_service_s", assumed_service_s, 0.001);
                if slots_per_worker == 0 {
                    problems
                        .push("mode.slots_per_worker: 0 slots take no job; at least 1 is right".to_owned());
                }
                if !(utilization > 0.0 && utilization <= 1.0) {
                    problems.push(format!(
                        "mode.utilization: {utilization} is not above 0 and at most 1, such as 0.8"
                    ));
                }
            }
        }
    }
}

impl Behavior {
    fn check(&self, direction: &str, problems: &mut Vec<String>) {
        let window_s = self.stabilization_window_s;
        if window_s > MAX_WINDOW_S {
            problems
                .push(format!("{direction}.stabilization_window_s: {window_s} is more than {MAX_WINDOW_S}"));
        }
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            let given = self.tolerance;
            problems.push(format!(
                "{direction}.tolerance: {given} is not a part of demand; 0 or more, such as 0.1, is right"
            ));
        }
        for (index, limit) in self.policies.iter().enumerate() {
            if limit.value == 0 {
                problems.push(format!("{direction}.policies[{index}].value: 0 is not a valid limit; at least 1 is right, or select_policy Disabled"));
            }
            if !(1..=MAX_PERIOD_S).contains(&limit.period_s) {
                let given = limit.period_s;
                problems.push(format!(
                    "{direction}.policies[{index}].period_s: {given} is not from 1 to {MAX_PERIOD_S}"
                ));
            }
        }
    }
}
