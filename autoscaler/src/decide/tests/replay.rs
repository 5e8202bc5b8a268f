//! Random traces give the same result here and in HPA's own algorithm, which is rewritten here from what Kubernetes
//! publishes (`pkg/controller/podautoscaler`): a list of samples, two lists of events, and every tick looks through all
//! of them.
//!
//! One difference is intended, and is built into this HPA, too: a recommendation counts for as long as it held. So this
//! HPA takes a sample of the last one just before the next.

use super::*;

/// The number of traces, and the ticks of each.
const TRACES: u64 = 60_000;
const TICKS: u64 = 30;

/// HPA's memory of one workload. Times are in half milliseconds, so that a moment just before another exists.
#[derive(Default)]
struct Hpa {
    recommendations: Vec<(u64, i64)>,
    ups: Vec<(u64, i64)>,
    downs: Vec<(u64, i64)>,
}

impl Hpa {
    /// `reconcileAutoscaler`: what it writes into `spec.replicas`.
    fn sync(&mut self, policy: &Policy, target_milli: u64, jobs: u64, current: u32, now_ms: u64) -> u32 {
        let (now, current) = (now_ms * 2, i64::from(current));
        let recommended = recommend(policy, target_milli, jobs, current);
        let stabilized = self.stabilize(policy, recommended, current, now);
        let desired = self.limit(policy, stabilized, current, now);
        match desired - current {
            added @ 1.. => self.ups.push((now, added)),
            removed @ ..0 => self.downs.push((now, -removed)),
            0 => {}
        }
        u32::try_from(desired).unwrap()
    }

    /// `stabilizeRecommendationWithBehaviors`.
    fn stabilize(&mut self, policy: &Policy, recommended: i64, current: i64, now: u64) -> i64 {
        let last = self.recommendations.last().map_or(current, |last| last.1);
        self.recommendations.push((now - 1, last));
        let (mut up, mut down) = (recommended, recommended);
        for (at, recommendation) in &self.recommendations {
            if *at > now - policy.scale_up.stabilization_window_s * 2000 {
                up = up.min(*recommendation);
            }
            if *at > now - policy.scale_down.stabilization_window_s * 2000 {
                down = down.max(*recommendation);
            }
        }
        self.recommendations.push((now, recommended));
        let mut stabilized = current;
        if stabilized < up {
            stabilized = up;
        }
        if stabilized > down {
            stabilized = down;
        }
        stabilized
    }

    /// `convertDesiredReplicasWithBehaviorRate`.
    fn limit(&self, policy: &Policy, desired: i64, current: i64, now: u64) -> i64 {
        let (least, most) = (i64::from(policy.min_replicas), i64::from(policy.max_replicas));
        let changed = |events: &[(u64, i64)], limit: &RateLimit| -> i64 {
            let within = events.iter().filter(|(at, _)| *at > now - limit.period_s * 2000);
            within.map(|(_, change)| change).sum()
        };
        let starts = |behavior: &Behavior| -> Vec<(RateLimit, i64)> {
            let start = |limit| current - changed(&self.ups, limit) + changed(&self.downs, limit);
            behavior.policies.iter().map(|limit| (*limit, start(limit))).collect()
        };
        if desired > current {
            let proposed = starts(&policy.scale_up).into_iter().map(|(limit, start)| match limit.unit {
                RateUnit::Pods => start + i64::from(limit.value),
                RateUnit::Percent => (start as f64 * (1.0 + f64::from(limit.value) / 100.0)).ceil() as i64,
            });
            let limit = match policy.scale_up.select_policy {
                SelectPolicy::Disabled => Some(current),
                SelectPolicy::Min => proposed.min(),
                SelectPolicy::Max => proposed.max(),
            };
            return desired.min(most.min(limit.unwrap().max(current)));
        }
        if desired < current {
            let proposed = starts(&policy.scale_down).into_iter().map(|(limit, start)| match limit.unit {
                RateUnit::Pods => start - i64::from(limit.value),
                RateUnit::Percent => (start as f64 * (1.0 - f64::from(limit.value) / 100.0)) as i64,
            });
            let limit = match policy.scale_down.select_policy {
                SelectPolicy::Disabled => Some(current),
                SelectPolicy::Min => proposed.max(),
                SelectPolicy::Max => proposed.min(),
            };
            return desired.max(least.max(limit.unwrap().min(current)));
        }
        desired
    }
}

/// `GetExternalPerPodMetricReplicas`, for a metric that counts jobs.
fn recommend(policy: &Policy, target_milli: u64, jobs: u64, current: i64) -> i64 {
    let (usage, target) = ((jobs * 1000) as f64, target_milli as f64);
    let ratio = usage / (target * current as f64);
    if 1.0 - policy.scale_down.tolerance <= ratio && ratio <= 1.0 + policy.scale_up.tolerance {
        return current;
    }
    (usage / target).ceil() as i64
}

fn any_behavior(random: &mut fastrand::Rng) -> Behavior {
    let select = [SelectPolicy::Max, SelectPolicy::Max, SelectPolicy::Min, SelectPolicy::Disabled];
    let limit = |random: &mut fastrand::Rng| {
        let most = [5, 100, 300][random.usize(0..3)];
        let unit = if random.bool() { RateUnit::Pods } else { RateUnit::Percent };
        RateLimit { unit, value: random.u32(1..=most), period_s: random.u64(1..=120) }
    };
    let window_s = [0, 0, 30, 300][random.usize(0..4)];
    Behavior {
        stabilization_window_s: if window_s > 0 { random.u64(1..=window_s) } else { 0 },
        select_policy: select[random.usize(0..4)],
        policies: (0..random.usize(1..=3)).map(|_| limit(random)).collect(),
        tolerance: [0.0, 0.05, 0.1, 0.1, 0.2, 0.3][random.usize(0..6)],
    }
}

/// Compares one trace. A failure shows its seed.
fn replay(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let target_milli = [1000, 10_000, 4000, 2500, 1100, 700, 333][random.usize(0..7)];
    let min_replicas = random.u32(1..=5);
    let policy = Policy {
        mode: Mode::Backlog { jobs_per_worker: target_milli as f64 / 1000.0 },
        min_replicas,
        max_replicas: min_replicas + random.u32(0..=60),
        scale_up: any_behavior(&mut random),
        scale_down: any_behavior(&mut random),
        ..plain()
    };
    let mut pool = Pool::new(policy.clone(), random.u32(policy.min_replicas..=policy.max_replicas));
    let mut hpa = Hpa::default();
    for tick in 0..TICKS {
        let enough = u64::from(pool.current) * target_milli;
        // Often at the very edge of a tolerance, where the last bit decides.
        let edge = [0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3][random.usize(0..9)];
        let jobs = match random.u32(0..4) {
            0 => 0,
            1 => random.u64(0..=enough * 4 / 1000),
            _ => (enough as f64 * edge / 1000.0).round() as u64,
        };
        let (current, after_s) = (pool.current, random.u64(1..=45));
        let decision = pool.tick(after_s, jobs);
        let theirs = hpa.sync(&policy, target_milli, jobs, current, pool.now_ms);
        assert_eq!(
            decision.desired,
            Some(theirs),
            "trace {seed}, tick {tick}: {jobs} jobs, {current} workers: {decision}; {policy:?}"
        );
    }
}

#[test]
fn random_traces_scale_as_a_horizontal_pod_autoscaler_would() {
    (0..TRACES).for_each(replay);
}
