//! Unknown numbers never shrink a pool; a worker that holds a job stays; the budget and operators can stop a change.

use super::*;

const OLD_MS: u64 = NOW_MS - 15_001;

/// Ten workers, two jobs: demand alone would shrink.
fn shrinking() -> Observation {
    seen(NOW_MS, 2, 10)
}

#[test]
fn an_unknown_or_old_source_lowers_nothing() {
    type Break = fn(&mut Observation);
    let broken: [(Break, Reason); 6] = [
        (|seen| seen.ready = None, Reason::QueueUnknown),
        (|seen| seen.demand = None, Reason::LedgerUnknown),
        (|seen| seen.ready.as_mut().unwrap().at_ms = OLD_MS, Reason::QueueStale),
        (|seen| seen.demand.as_mut().unwrap().at_ms = OLD_MS, Reason::LedgerStale),
        (|seen| seen.replicas.as_mut().unwrap().at_ms = OLD_MS, Reason::WorkloadStale),
        (|seen| seen.managed_ready = Some(Reading { value: 2, at_ms: OLD_MS }), Reason::ManagementStale),
    ];
    assert_eq!(once(&shrinking(), &plain()), (2, Reason::Demand));
    for (break_it, reason) in broken {
        let mut seen = shrinking();
        break_it(&mut seen);
        assert_eq!(once(&seen, &plain()), (10, reason));
        // A maximum does not shrink it either.
        assert_eq!(once(&seen, &Policy { max_replicas: 5, ..plain() }), (10, reason));
    }
}

#[test]
fn a_reading_is_old_only_after_its_time() {
    let mut look = shrinking();
    look.ready.as_mut().unwrap().at_ms = NOW_MS - 15_000;
    assert_eq!(once(&look, &plain()), (2, Reason::Demand));
}

#[test]
fn an_unknown_queue_still_gets_the_minimum() {
    let look = Observation { ready: None, ..seen(NOW_MS, 0, 1) };
    assert_eq!(once(&look, &Policy { min_replicas: 3, ..plain() }), (3, Reason::Minimum));
}

#[test]
fn an_unknown_workload_is_not_touched() {
    let look = Observation { replicas: None, ..seen(NOW_MS, 100, 1) };
    let decision = decide(&History::default(), &look, &plain(), NOW_MS);
    assert_eq!((decision.current, decision.desired, decision.reason), (None, None, Reason::WorkloadUnknown));
}

#[test]
fn an_old_workload_can_grow() {
    let mut look = seen(NOW_MS, 20, 10);
    look.replicas.as_mut().unwrap().at_ms = OLD_MS;
    assert_eq!(once(&look, &plain()), (20, Reason::Demand));
}

#[test]
fn a_management_api_that_disagrees_blocks_shrinking_alone() {
    let mut look = shrinking();
    look.managed_ready = Some(Reading { value: 13, at_ms: NOW_MS });
    assert_eq!(once(&look, &plain()), (10, Reason::Disagreement));
    look.managed_ready = Some(Reading { value: 12, at_ms: NOW_MS });
    assert_eq!(once(&look, &plain()), (2, Reason::Demand));
    let mut look = seen(NOW_MS, 100, 10);
    look.managed_ready = Some(Reading { value: 0, at_ms: NOW_MS });
    assert!(look.disagrees());
    assert_eq!(once(&look, &plain()), (100, Reason::Demand));
    look.managed_ready = Some(Reading { value: 50, at_ms: NOW_MS });
    assert!(!look.disagrees());
}

#[test]
fn busy_workers_stay_whatever_else_is_said() {
    let mut look = shrinking();
    ledger(&mut look).busy_workers = 7;
    assert_eq!(once(&look, &plain()), (7, Reason::Busy));
    assert_eq!(once(&look, &Policy { max_replicas: 4, ..plain() }), (7, Reason::Busy));
    // More busy workers than wanted (during a rollout) are no reason to grow.
    ledger(&mut look).busy_workers = 12;
    assert_eq!(once(&look, &plain()), (10, Reason::Busy));
}

#[test]
fn a_spent_budget_stops_growth_but_not_the_minimum() {
    let mut look = seen(NOW_MS, 50, 3);
    look.budget_exhausted = Some(Reading { value: true, at_ms: NOW_MS });
    assert_eq!(once(&look, &plain()), (3, Reason::BudgetExhausted));
    assert_eq!(once(&look, &Policy { min_replicas: 5, ..plain() }), (5, Reason::BudgetExhausted));
    look.ready.as_mut().unwrap().value = 1;
    assert_eq!(once(&look, &plain()), (1, Reason::Demand));
    look.ready.as_mut().unwrap().value = 50;
    look.budget_exhausted = Some(Reading { value: false, at_ms: NOW_MS });
    assert_eq!(once(&look, &plain()), (50, Reason::Demand));
}

#[test]
fn a_pause_stops_its_direction_alone() {
    let paused = Policy { pause_up: true, min_replicas: 20, ..plain() };
    assert_eq!(once(&seen(NOW_MS, 50, 3), &paused), (3, Reason::PausedUp));
    assert_eq!(once(&shrinking(), &Policy { pause_up: true, ..plain() }), (2, Reason::Demand));
    let paused = Policy { pause_down: true, max_replicas: 5, ..plain() };
    assert_eq!(once(&shrinking(), &paused), (10, Reason::PausedDown));
    assert_eq!(once(&seen(NOW_MS, 50, 3), &Policy { pause_down: true, ..plain() }), (50, Reason::Demand));
}
