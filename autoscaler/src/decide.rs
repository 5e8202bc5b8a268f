//! Decide: how many workers a pool should have, from what was observed, what was decided before, and the policy.
//!
//! Pure: no I/O, no clock. `now_ms` and every other time here is Unix time in milliseconds by one clock, Postgres's.
//!
//! The rules apply one after another, each to the number that the previous one left: demand, tolerance, stabilization,
//! rate limits, bounds, zero, safety. The last rule that changed the number is the decision's reason.

mod observation;
mod history;
mod policy;
mod check;
mod demand;
mod behavior;
mod schedule;
mod safety;
mod decision;
#[cfg(test)]
mod tests;

use demand::Asked;

pub use decision::{Decision, Reason, Step};
pub use history::{History, Resize};
pub use observation::{Demand, Observation, Reading, Replicas, ServiceTime};
pub use policy::{Behavior, Mode, Policy, RateLimit, RateUnit, SelectPolicy};
pub use schedule::Window;

/// The longest stabilization window, in seconds (as in Kubernetes).
pub const MAX_WINDOW_S: u64 = 3600;
/// The longest period of a rate limit, in seconds (as in Kubernetes).
pub const MAX_PERIOD_S: u64 = 1800;

/// Decides how many workers the pool should have at `now_ms`.
///
/// The policy must have passed [`Policy::check`]. The caller records the decision in its history, applied or not. It
/// records what it writes to the workload with [`History::resized`].
pub fn decide(history: &History, observation: &Observation, policy: &Policy, now_ms: u64) -> Decision {
    let Some(replicas) = &observation.replicas else { return Decision::unknown(now_ms) };
    let current = replicas.value.wanted;
    let jobs = safety::jobs(observation, policy, now_ms);
    let mut proposal = Proposal::new(current);
    let mut recommended = None;
    let mut idle_since_ms = None;
    match jobs {
        Ok((ready, demand)) => {
            recommended = Some(proposal.demand(ready, demand, policy));
            proposal.behave(history, policy, now_ms);
            proposal.wake(ready.saturating_add(demand.in_line), policy);
            if demand.line_is_old {
                proposal.change(Reason::LineStale, proposal.workers.min(1));
            }
            if ready == 0
                && demand.running == 0
                && demand.due_soon == 0
                && demand.in_line == 0
                && !observation.manages_more()
            {
                let gap_ms = policy.stale_after_s.saturating_mul(1000);
                idle_since_ms = Some(history.idle_since_ms(now_ms, gap_ms).unwrap_or(now_ms));
            }
        }
        Err(unknown) => proposal.say(unknown, current),
    }
    proposal.bound(policy, now_ms);
    proposal.keep_last(idle_since_ms, policy, now_ms);
    safety::shrink(&mut proposal, observation, policy, now_ms);
    safety::grow(&mut proposal, observation, policy, now_ms);
    let Proposal { workers, reason, steps, .. } = proposal;
    Decision {
        at_ms: now_ms,
        current: Some(current),
        recommended,
        desired: Some(workers),
        reason,
        steps,
        idle_since_ms,
    }
}

/// A number of workers on its way through the rules.
struct Proposal {
    current: u32,
    workers: u32,
    reason: Reason,
    steps: Vec<Step>,
}

impl Proposal {
    fn new(current: u32) -> Proposal {
        Proposal { current, workers: current, reason: Reason::Demand, steps: Vec::with_capacity(4) }
    }

    /// Records what a rule says, even if it changes nothing.
    fn say(&mut self, rule: Reason, workers: u32) {
        self.steps.push(Step { rule, from: self.workers, to: workers });
        self.workers = workers;
        self.reason = rule;
    }

    /// Records what a rule says if it changes the number.
    fn change(&mut self, rule: Reason, workers: u32) {
        if workers != self.workers {
            self.say(rule, workers);
        }
    }

    /// Applies demand. While demand is within the tolerance, the current number stays.
    fn demand(&mut self, ready: u64, demand: &Demand, policy: &Policy) -> u32 {
        let Asked { workers, ratio } = demand::asked(&policy.mode, ready, demand, self.current);
        self.say(Reason::Demand, workers);
        if 1.0 - policy.scale_down.tolerance <= ratio && ratio <= 1.0 + policy.scale_up.tolerance {
            self.change(Reason::Tolerance, self.current);
        }
        self.workers
    }

    /// Applies stabilization, then the rate limits.
    fn behave(&mut self, history: &History, policy: &Policy, now_ms: u64) {
        let stabilized = behavior::stabilize(self.workers, self.current, history, policy, now_ms);
        if stabilized < self.workers {
            self.change(Reason::ScaleUpStabilized, stabilized);
        } else {
            self.change(Reason::ScaleDownStabilized, stabilized);
        }
        if self.workers > self.current {
            let rule = match policy.scale_up.select_policy {
                SelectPolicy::Disabled => Reason::ScaleUpDisabled,
                SelectPolicy::Max | SelectPolicy::Min => Reason::ScaleUpLimit,
            };
            let most = behavior::most(self.current, history, &policy.scale_up, now_ms);
            self.change(rule, self.workers.min(most));
        } else if self.workers < self.current {
            let rule = match policy.scale_down.select_policy {
                SelectPolicy::Disabled => Reason::ScaleDownDisabled,
                SelectPolicy::Max | SelectPolicy::Min => Reason::ScaleDownLimit,
            };
            let fewest = behavior::fewest(self.current, history, &policy.scale_down, now_ms);
            self.change(rule, self.workers.max(fewest));
        }
    }

    /// Starts the first worker: only for enough jobs in the queue and in line, but then at once. Windows and limits apply
    /// to pools that have workers (a percentage of zero is zero).
    fn wake(&mut self, waiting: u64, policy: &Policy) {
        if self.current > 0 {
            return;
        }
        if waiting < policy.activation {
            self.change(Reason::Activation, 0);
        } else if waiting > 0 && policy.scale_up.select_policy != SelectPolicy::Disabled {
            self.change(Reason::Wake, self.workers.max(1));
        }
    }

    /// Applies the minimum (the schedule's, if that is higher) and the maximum. As in Kubernetes, no window or limit
    /// delays them.
    fn bound(&mut self, policy: &Policy, now_ms: u64) {
        let minimum = policy.minimum_at(now_ms);
        let rule = if minimum > policy.min_replicas { Reason::Schedule } else { Reason::Minimum };
        self.change(rule, self.workers.max(minimum));
        self.change(Reason::Maximum, self.workers.min(policy.max_replicas));
    }

    /// Keeps the last worker until there was nothing to do for the whole cooldown.
    fn keep_last(&mut self, idle_since_ms: Option<u64>, policy: &Policy, now_ms: u64) {
        if self.workers == 0 && self.current > 0 {
            let cooldown_ms = policy.cooldown_s.saturating_mul(1000);
            if idle_since_ms.is_none_or(|since_ms| now_ms.saturating_sub(since_ms) < cooldown_ms) {
                self.say(Reason::Cooldown, 1);
            }
        }
    }
}
