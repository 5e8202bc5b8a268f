//! Our decisions equal those of Kubernetes' own HPA for the same rules, events and recommendations.

use super::*;

/// Changes spread evenly over the last `over_s` seconds, each in the middle of its part.
fn spread(changes: &[i64], over_s: u64) -> Vec<(u64, i64)> {
    let part_ms = over_s * 1000 / changes.len() as u64;
    let at_ms = |index: usize| NOW_MS - over_s * 1000 + part_ms * index as u64 + part_ms / 2;
    changes.iter().enumerate().map(|(index, change)| (at_ms(index), *change)).collect()
}

fn past(mut changes: Vec<(u64, i64)>) -> History {
    changes.sort_unstable();
    let mut history = History::default();
    for (at_ms, change) in changes {
        history.resized(at_ms, 500, (500 + change) as u32);
    }
    history
}

fn pods(value: u32, period_s: u64) -> RateLimit {
    RateLimit { unit: RateUnit::Pods, value, period_s }
}

fn percent(value: u32, period_s: u64) -> RateLimit {
    RateLimit { unit: RateUnit::Percent, value, period_s }
}

/// One row: what happened, the rules, and what comes of it.
struct Row {
    name: &'static str,
    changes: Vec<(u64, i64)>,
    up: Vec<RateLimit>,
    down: Vec<RateLimit>,
    bounds: (u32, u32),
    current: u32,
    demand: u64,
    desired: u32,
    reason: Reason,
}

impl Row {
    fn new(name: &'static str, current: u32, demand: u64, desired: u32, reason: Reason) -> Row {
        // Kubernetes' defaults.
        let (up, down) = (vec![percent(100, 15), pods(4, 15)], vec![percent(100, 15)]);
        Row { name, changes: Vec::new(), up, down, bounds: (1, 1000), current, demand, desired, reason }
    }

    fn up(self, up: &[RateLimit]) -> Row {
        Row { up: up.to_vec(), ..self }
    }

    fn down(self, down: &[RateLimit]) -> Row {
        Row { down: down.to_vec(), ..self }
    }

    fn after(mut self, changes: Vec<(u64, i64)>) -> Row {
        self.changes.extend(changes);
        self
    }

    fn within(self, min: u32, max: u32) -> Row {
        Row { bounds: (min, max), ..self }
    }

    fn hold(self) {
        let mut policy = plain();
        (policy.min_replicas, policy.max_replicas) = self.bounds;
        policy.scale_up.policies = self.up;
        policy.scale_down.policies = self.down;
        let decision = decide(&past(self.changes), &seen(NOW_MS, self.demand, self.current), &policy, NOW_MS);
        let name = self.name;
        assert_eq!(
            (decision.desired, decision.reason),
            (Some(self.desired), self.reason),
            "{name}: {decision}"
        );
    }
}

#[test]
fn bounds_and_limits_give_what_kubernetes_gives() {
    use Reason::{Demand, Maximum, Minimum, ScaleDownLimit, ScaleUpLimit};
    let row = Row::new;
    for row in [
        row("within range", 5, 7, 7, Demand).within(3, 8),
        row("below the minimum", 3, 1, 2, Minimum).within(2, 8),
        row("zero is within range", 1, 0, 0, Demand).within(0, 10),
        row("above the maximum already", 20, 1000, 10, Maximum).within(1, 10),
        row("below the minimum already", 1, 0, 2, Minimum).within(2, 6),
        row("the maximum", 100, 1000, 150, Maximum).within(100, 150),
        row("1 % rounds up", 3, 1000, 4, ScaleUpLimit).within(1, 2000).up(&[percent(1, 60)]),
        row("20 pods fewer", 1000, 3, 980, ScaleDownLimit).within(3, 2000).down(&[pods(20, 60)]),
        row("the default doubles", 10, 50, 20, ScaleUpLimit),
        row("the default adds four", 1, 50, 5, ScaleUpLimit),
        row("pods allow more", 10, 500, 110, ScaleUpLimit).up(&[pods(100, 60), percent(100, 60)]),
        row("percent allows more", 10, 500, 20, ScaleUpLimit).up(&[pods(2, 60), percent(100, 60)]),
        row("pods do not bind", 10, 50, 50, Demand).up(&[pods(100, 60)]),
        row("pods bind", 10, 50, 40, ScaleUpLimit).up(&[pods(30, 60)]),
        row("percent binds", 10, 50, 30, ScaleUpLimit).up(&[percent(200, 60)]),
        row("down, pods take more", 100, 2, 80, ScaleDownLimit).down(&[pods(20, 60), percent(1, 60)]),
        row("down, two pods or 1 %", 100, 2, 98, ScaleDownLimit).down(&[pods(2, 60), percent(1, 60)]),
        row("down to the minimum", 10, 0, 1, Minimum).down(&[pods(100, 60)]),
        row("down by 100 % to the minimum", 10, 2, 5, Minimum).within(5, 1000).down(&[percent(100, 60)]),
        row("down, pods bind", 10, 2, 5, ScaleDownLimit).down(&[pods(5, 60)]),
        row("down, half is enough", 10, 5, 5, Demand).down(&[percent(50, 60)]),
        row("down by half of an odd number", 7, 0, 3, ScaleDownLimit).down(&[percent(50, 60)]),
    ] {
        row.hold();
    }
}

#[test]
fn events_of_both_directions_count_from_the_beginning_of_the_period() {
    use Reason::{Demand, Maximum, Minimum, ScaleDownLimit, ScaleUpLimit};
    let row = Row::new;
    let grown = || spread(&[1, 5, 9], 120);
    let shrunk = || spread(&[-1, -5, -9], 120);
    let step_up = || spread(&[8, 12, 9, 11], 120);
    let step_down = || spread(&[-8, -12, -9, -11], 120);
    for row in [
        row("up, maximum first", 100, 500, 200, Maximum).after(grown()).within(1, 200).up(&[pods(300, 60)]),
        row("up by 10000 %", 100, 500, 200, Maximum).after(grown()).within(1, 200).up(&[percent(10000, 60)]),
        row("up, spent: no lower than now", 100, 500, 100, ScaleUpLimit).after(grown()).up(&[pods(5, 120)]),
        row("up, 85 + 150", 100, 500, 235, ScaleUpLimit).after(grown()).up(&[pods(150, 120)]),
        row("up, 85 + 200 %", 100, 500, 255, ScaleUpLimit).after(grown()).up(&[percent(200, 120)]),
        row("up, only the last minute's 9", 100, 500, 121, ScaleUpLimit).after(grown()).up(&[pods(30, 60)]),
        row("up, 6 − 4 + 2, fourfold", 6, 24, 16, ScaleUpLimit)
            .after(spread(&[4], 120))
            .after(spread(&[-2], 120))
            .up(&[percent(300, 300)]),
        row("down without a limit", 10, 5, 5, Demand).after(shrunk()),
        row("down, 115 − 115", 100, 0, 1, Minimum).after(shrunk()).down(&[pods(115, 120)]),
        row("down to five", 100, 0, 5, Minimum).after(shrunk()).within(5, 1000).down(&[pods(130, 120)]),
        row("down by all", 100, 2, 5, Minimum).after(shrunk()).within(5, 1000).down(&[percent(100, 120)]),
        row("down, spent: no higher than now", 100, 2, 100, ScaleDownLimit)
            .after(shrunk())
            .down(&[pods(5, 120)]),
        row("down, half of 112", 100, 0, 56, ScaleDownLimit)
            .after(spread(&[-2, -4, -6], 120))
            .down(&[percent(50, 120)]),
        row("down, half of 10 − 2 + 4", 10, 1, 6, ScaleDownLimit)
            .after(spread(&[2], 120))
            .after(spread(&[-4], 120))
            .down(&[percent(50, 180)]),
        row("down, 117 is above 100", 100, 0, 100, ScaleDownLimit)
            .after(spread(&[-10, -10, -10], 120))
            .down(&[percent(10, 120)]),
        row("down, below nothing", 10, 5, 5, Demand)
            .after(spread(&[-10, -10, -10], 120))
            .down(&[percent(1000, 120)]),
        row("up, old events", 100, 200, 200, Demand).after(step_up()).up(&[pods(1000, 60)]),
        row("up, two periods", 100, 200, 200, Demand)
            .after(step_up())
            .up(&[pods(1000, 120), percent(100, 60)]),
        row("up, the shorter pods", 100, 200, 200, Demand)
            .after(step_up())
            .up(&[pods(1000, 30), percent(100, 60)]),
        row("down, old events", 100, 5, 5, Demand).after(step_down()).down(&[pods(1000, 60)]),
        row("down, two periods", 100, 5, 5, Demand)
            .after(step_down())
            .down(&[pods(1000, 120), percent(100, 60)]),
        row("down, the shorter pods", 100, 5, 5, Demand)
            .after(step_down())
            .down(&[pods(1000, 30), percent(100, 60)]),
    ] {
        row.hold();
    }
}

#[test]
fn select_policy_min_takes_the_smallest_change_and_disabled_none() {
    let mut policy = plain();
    let both = vec![pods(2, 60), percent(50, 60)];
    (policy.scale_up.policies, policy.scale_down.policies) = (both.clone(), both);
    (policy.scale_up.select_policy, policy.scale_down.select_policy) = (SelectPolicy::Min, SelectPolicy::Min);
    assert_eq!(once(&seen(NOW_MS, 50, 1), &policy), (2, Reason::ScaleUpLimit));
    assert_eq!(once(&seen(NOW_MS, 1, 5), &policy), (3, Reason::ScaleDownLimit));
    assert_eq!(once(&seen(NOW_MS, 50, 100), &policy), (98, Reason::ScaleDownLimit));
    (policy.scale_up.select_policy, policy.scale_down.select_policy) =
        (SelectPolicy::Disabled, SelectPolicy::Disabled);
    assert_eq!(once(&seen(NOW_MS, 50, 10), &policy), (10, Reason::ScaleUpDisabled));
    assert_eq!(once(&seen(NOW_MS, 5, 10), &policy), (10, Reason::ScaleDownDisabled));
    assert_eq!(once(&seen(NOW_MS, 5, 0), &policy), (0, Reason::ScaleUpDisabled));
}

/// Takes earlier recommendations (seconds ago, workers), the windows for growing and shrinking, the current workers and
/// demand.
fn stabilized(past: &[(u64, u64)], windows: (u64, u64), current: u32, demand: u64) -> (u32, Reason) {
    let mut policy = plain();
    (policy.scale_up.stabilization_window_s, policy.scale_down.stabilization_window_s) = windows;
    let mut history = History::default();
    for (ago_s, demand) in past {
        let at_ms = NOW_MS - ago_s * 1000;
        history.record(&decide(&history, &seen(at_ms, *demand, *demand as u32), &policy, at_ms));
    }
    let decision = decide(&history, &seen(NOW_MS, demand, current), &policy, NOW_MS);
    assert_eq!(decision.recommended, Some(demand as u32));
    (decision.desired.unwrap(), decision.reason)
}

#[test]
fn stabilization_takes_the_lowest_to_grow_and_the_highest_to_shrink() {
    use Reason::{Demand, ScaleDownStabilized, ScaleUpStabilized};
    let rising = [(120, 4), (60, 5)];
    assert_eq!(stabilized(&[], (0, 0), 100, 5), (5, Demand));
    assert_eq!(stabilized(&rising, (0, 180), 100, 3), (5, ScaleDownStabilized));
    assert_eq!(stabilized(&rising, (300, 0), 1, 7), (4, ScaleUpStabilized));
    assert_eq!(stabilized(&[(120, 1), (60, 2)], (300, 0), 100, 3), (3, Demand));
    assert_eq!(stabilized(&rising, (0, 300), 1, 3), (3, Demand));
    assert_eq!(stabilized(&[(120, 1), (60, 2)], (0, 300), 3, 3), (3, Demand));
    // With both windows: never below the lowest, never above the highest.
    assert_eq!(stabilized(&[(120, 8), (60, 12)], (300, 300), 10, 4), (10, ScaleDownStabilized));
    assert_eq!(stabilized(&[(120, 8), (60, 12)], (300, 300), 10, 20), (10, ScaleUpStabilized));
    assert_eq!(stabilized(&[(120, 12), (60, 15)], (300, 300), 10, 20), (12, ScaleUpStabilized));
    // 10 held until 9 came, nine minutes ago; 4 is the highest since.
    assert_eq!(stabilized(&[(600, 10), (540, 9), (301, 4)], (0, 300), 100, 3), (4, ScaleDownStabilized));
}

#[test]
fn a_recommendation_counts_until_its_window_after_it_ended() {
    let mut policy = plain();
    policy.scale_down.stabilization_window_s = 300;
    let mut pool = Pool::new(policy, 10);
    pool.tick(0, 10);
    // It holds for twenty minutes, and ends then.
    let ended = pool.tick(1200, 2);
    assert_eq!((ended.desired, ended.reason), (Some(10), Reason::ScaleDownStabilized));
    assert_eq!(pool.tick(299, 2).desired, Some(10));
    assert_eq!(pool.tick(1, 2).desired, Some(2));
}

#[test]
fn what_there_is_counts_as_the_first_recommendation() {
    let mut policy = plain();
    policy.scale_down.stabilization_window_s = 60;
    let mut pool = Pool::new(policy, 10);
    assert_eq!(pool.tick(0, 2).reason, Reason::ScaleDownStabilized);
    assert_eq!(pool.tick(59, 2).desired, Some(10));
    assert_eq!(pool.tick(1, 2).desired, Some(2));
}

#[test]
fn within_the_tolerance_what_there_is_stays() {
    let mut policy = plain();
    policy.mode = Mode::Backlog { jobs_per_worker: 10.0 };
    (policy.scale_up.tolerance, policy.scale_down.tolerance) = (0.05, 0.1);
    assert_eq!(once(&seen(NOW_MS, 90, 10), &policy), (10, Reason::Tolerance));
    assert_eq!(once(&seen(NOW_MS, 89, 10), &policy), (9, Reason::Demand));
    assert_eq!(once(&seen(NOW_MS, 105, 10), &policy), (10, Reason::Tolerance));
    assert_eq!(once(&seen(NOW_MS, 106, 10), &policy), (11, Reason::Demand));
    // The ratio is 0.9 in one division, and 0.8999… in two.
    assert_eq!(once(&seen(NOW_MS, 117, 13), &policy), (13, Reason::Tolerance));
    policy.scale_up.tolerance = 0.0;
    assert_eq!(once(&seen(NOW_MS, 100, 10), &policy), (10, Reason::Demand));
    assert_eq!(once(&seen(NOW_MS, 101, 10), &policy), (11, Reason::Demand));
}

#[test]
fn a_target_of_parts_of_a_job_divides_without_a_remainder_of_its_own() {
    let mut policy = plain();
    for (jobs_per_worker, jobs, workers) in
        [(0.1, 3, 30), (0.7, 49, 70), (1.1, 33, 30), (2.5, 11, 5), (0.3, 9, 30)]
    {
        policy.mode = Mode::Backlog { jobs_per_worker };
        assert_eq!(once(&seen(NOW_MS, jobs, 1), &policy).0, workers, "{jobs} jobs by {jobs_per_worker}");
    }
}
