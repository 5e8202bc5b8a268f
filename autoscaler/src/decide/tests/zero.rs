//! A pool shrinks to zero only after a whole cooldown with nothing to do, and grows from zero at once.

use super::*;

fn pool() -> Pool {
    Pool::new(Policy { cooldown_s: 60, activation: 3, ..plain() }, 2)
}

#[test]
fn the_last_worker_goes_after_a_whole_cooldown_of_nothing() {
    let mut pool = pool();
    assert_eq!(pool.tick(0, 2).desired, Some(2));
    let idle = pool.tick(1, 0);
    assert_eq!((idle.desired, idle.reason), (Some(1), Reason::Cooldown));
    for _ in 0..59 {
        assert_eq!(pool.tick(1, 0).reason, Reason::Cooldown);
    }
    assert_eq!(pool.tick(1, 0).desired, Some(0));
    let asleep = pool.tick(1, 0);
    assert_eq!((asleep.desired, asleep.reason), (Some(0), Reason::Demand));
}

#[test]
fn one_job_begins_the_cooldown_anew() {
    let mut pool = pool();
    for _ in 0..50 {
        pool.tick(1, 0);
    }
    pool.tick(1, 1);
    for _ in 0..60 {
        assert_eq!(pool.tick(1, 0).desired, Some(1));
    }
    assert_eq!(pool.tick(1, 0).desired, Some(0));
}

#[test]
fn what_runs_is_due_or_is_seen_by_the_management_api_keeps_the_last_worker() {
    let busy: [fn(&mut Observation); 3] = [
        |seen| ledger(seen).running = 1,
        |seen| ledger(seen).due_soon = 1,
        |seen| seen.managed_ready = Some(Reading { value: 1, ..seen.ready.clone().unwrap() }),
    ];
    for busy in busy {
        let mut pool = pool();
        for _ in 0..200 {
            pool.look(1, |at_ms, current| {
                let mut seen = seen(at_ms, 0, current);
                busy(&mut seen);
                seen
            });
        }
        assert_eq!(pool.current, 1);
    }
}

#[test]
fn blocked_jobs_are_no_demand() {
    let mut pool = pool();
    for _ in 0..62 {
        pool.look(1, |at_ms, current| {
            let mut seen = seen(at_ms, 0, current);
            ledger(&mut seen).blocked = 100;
            seen
        });
    }
    assert_eq!(pool.current, 0);
}

#[test]
fn time_that_nobody_watched_is_not_idle() {
    let mut pool = pool();
    pool.tick(0, 0);
    assert_eq!(pool.tick(3600, 0).reason, Reason::Cooldown);
    assert_eq!(pool.tick(10, 0).reason, Reason::Cooldown);
    for _ in 0..5 {
        pool.tick(10, 0);
    }
    assert_eq!(pool.current, 0);
}

#[test]
fn unknown_time_is_not_idle() {
    let mut pool = pool();
    for second in 0..300 {
        pool.look(1, |at_ms, current| {
            let mut seen = seen(at_ms, 0, current);
            seen.ready = seen.ready.filter(|_| second % 50 != 49);
            seen
        });
    }
    assert_eq!(pool.current, 1);
}

#[test]
fn too_little_does_not_wake_a_pool_and_enough_does_at_once() {
    let mut pool = pool();
    pool.policy.scale_up.policies = vec![RateLimit { unit: RateUnit::Percent, value: 100, period_s: 60 }];
    pool.policy.scale_up.stabilization_window_s = 300;
    pool.current = 0;
    pool.tick(0, 0);
    let few = pool.tick(1, 2);
    assert_eq!(few.desired, Some(0));
    let enough = pool.tick(1, 3);
    assert_eq!((enough.desired, enough.reason), (Some(1), Reason::Wake));
}

#[test]
fn jobs_that_still_end_elsewhere_do_not_wake_a_pool() {
    let mut look = seen(NOW_MS, 0, 0);
    ledger(&mut look).running = 5;
    assert_eq!(once(&look, &plain()), (0, Reason::Activation));
}

#[test]
fn the_rate_limits_hold_from_zero_too_where_they_allow_more_than_one() {
    let mut policy = plain();
    policy.scale_up = Policy::default().scale_up;
    assert_eq!(once(&seen(NOW_MS, 50, 0), &policy), (5, Reason::ScaleUpLimit));
}

#[test]
fn what_waits_in_line_wakes_the_pool_as_messages_do() {
    // A pool without workers has one job in its queue, however many wait in line.
    let mut look = seen(NOW_MS, 1, 0);
    ledger(&mut look).in_line = 19;
    let policy = Policy { activation: 3, ..plain() };
    assert_eq!(once(&look, &policy), (20, Reason::Demand));
    ledger(&mut look).in_line = 1;
    assert_eq!(once(&look, &policy), (0, Reason::Activation));
}

#[test]
fn a_line_that_nobody_looks_at_gets_its_first_worker_and_changes_nothing_else() {
    let of = |workers| {
        let mut look = seen(NOW_MS, 0, workers);
        ledger(&mut look).in_line = 500;
        ledger(&mut look).line_is_old = true;
        once(&look, &Policy { activation: 3, ..plain() })
    };
    assert_eq!(of(0), (1, Reason::LineStale));
    for workers in [1, 10, 600] {
        assert_eq!(of(workers), (workers, Reason::LineStale));
    }
}
