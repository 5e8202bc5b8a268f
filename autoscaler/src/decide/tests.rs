//! A pool whose demand is what the test says, tick by tick.

mod kubernetes;
mod properties;
mod replay;
mod restart;
mod safety;
mod schedule;
mod wait;
mod words;
mod zero;

use super::*;

/// 2026-01-01 00:00 UTC, a Thursday.
const NOW_MS: u64 = 1_767_225_600_000;

/// One worker per job, 0 to 1000 workers, and no windows, limits, tolerances or waits: demand alone decides.
fn plain() -> Policy {
    let free = Behavior {
        stabilization_window_s: 0,
        select_policy: SelectPolicy::Max,
        policies: Vec::new(),
        tolerance: 0.0,
    };
    Policy {
        min_replicas: 0,
        max_replicas: 1000,
        scale_up: free.clone(),
        scale_down: free,
        cooldown_s: 0,
        ..Policy::default()
    }
}

/// A complete observation of a pool: `ready` messages, nothing running, `current` workers.
fn seen(at_ms: u64, ready: u64, current: u32) -> Observation {
    let demand = Demand { workers: current, slots: u64::from(current), ..Demand::default() };
    Observation {
        ready: Some(Reading { value: ready, at_ms }),
        demand: Some(Reading { value: demand, at_ms }),
        replicas: Some(Reading { value: Replicas { wanted: current, ready: current }, at_ms }),
        managed_ready: None,
        budget_exhausted: None,
    }
}

/// The ledger's part of an observation.
fn ledger(seen: &mut Observation) -> &mut Demand {
    &mut seen.demand.as_mut().unwrap().value
}

/// Decides without a history.
fn once(observation: &Observation, policy: &Policy) -> (u32, Reason) {
    let decision = decide(&History::default(), observation, policy, NOW_MS);
    (decision.desired.unwrap(), decision.reason)
}

/// A pool that gets at once what is decided.
struct Pool {
    policy: Policy,
    history: History,
    current: u32,
    now_ms: u64,
}

impl Pool {
    fn new(policy: Policy, current: u32) -> Pool {
        assert_eq!(policy.check(), Vec::<String>::new());
        Pool { policy, history: History::default(), current, now_ms: NOW_MS }
    }

    /// Observes and decides `after_s` seconds after the last time, with `ready` messages ready.
    fn tick(&mut self, after_s: u64, ready: u64) -> Decision {
        self.look(after_s, |at_ms, current| seen(at_ms, ready, current))
    }

    fn look(&mut self, after_s: u64, see: impl FnOnce(u64, u32) -> Observation) -> Decision {
        self.now_ms += after_s * 1000;
        let decision = decide(&self.history, &see(self.now_ms, self.current), &self.policy, self.now_ms);
        self.history.record(&decision);
        if let Some(desired) = decision.desired.filter(|desired| *desired != self.current) {
            self.history.resized(self.now_ms, self.current, desired);
            self.current = desired;
        }
        decision
    }
}
