//! A new process makes the decisions that the old one would have made.

use super::*;

fn slow_to_shrink() -> Policy {
    let mut policy = plain();
    policy.scale_down.stabilization_window_s = 300;
    policy.scale_down.policies = vec![RateLimit { unit: RateUnit::Pods, value: 3, period_s: 60 }];
    policy
}

#[test]
fn a_restart_without_any_past_drops_nothing_for_a_whole_window() {
    let mut pool = Pool::new(slow_to_shrink(), 10);
    pool.history = History::default();
    pool.history.resumed(NOW_MS, 10);
    assert_eq!(pool.tick(0, 1).desired, Some(10));
    // The first decision ends the earlier recommendation; the window counts from there.
    assert_eq!(pool.tick(299, 1).desired, Some(10));
    assert_eq!(pool.tick(1, 1).desired, Some(7));
}

#[test]
fn rate_limits_go_on_across_a_restart() {
    let mut pool = Pool::new(slow_to_shrink(), 10);
    pool.policy.scale_down.stabilization_window_s = 0;
    assert_eq!(pool.tick(0, 1).desired, Some(7));
    let mut reloaded: History = serde_json::from_str(&serde_json::to_string(&pool.history).unwrap()).unwrap();
    reloaded.resumed(pool.now_ms + 1000, 7);
    pool.history = reloaded;
    let limited = pool.tick(30, 1);
    assert_eq!((limited.desired, limited.reason), (Some(7), Reason::ScaleDownLimit));
    assert_eq!(pool.tick(30, 1).desired, Some(4));
}

#[test]
fn a_restart_begins_the_cooldown_anew() {
    let mut pool = Pool::new(Policy { cooldown_s: 60, ..plain() }, 1);
    for _ in 0..59 {
        pool.tick(1, 0);
    }
    pool.history.resumed(pool.now_ms, 1);
    assert_eq!(pool.tick(1, 0).reason, Reason::Cooldown);
    assert_eq!(pool.tick(1, 0).reason, Reason::Cooldown);
}

#[test]
fn the_past_is_forgotten_when_no_policy_may_look_at_it() {
    let mut pool = Pool::new(plain(), 10);
    for second in 0..20_000_u64 {
        pool.tick(1, 20_000 - second.min(19_000));
    }
    for _ in 0..4000 {
        pool.tick(1, 5);
    }
    let text = serde_json::to_value(&pool.history).unwrap();
    for kept in ["highs", "lows", "resizes"] {
        assert_eq!(text[kept].as_array().unwrap().len(), 0, "{kept}");
    }
}
