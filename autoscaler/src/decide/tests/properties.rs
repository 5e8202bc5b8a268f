//! What holds for every policy, every history and every observation.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn behaviors() -> impl Strategy<Value = Behavior> {
    let unit = select(vec![RateUnit::Pods, RateUnit::Percent]);
    let limit = (unit, 1_u32..200, 1_u64..200).prop_map(|(unit, value, period_s)| RateLimit {
        unit,
        value,
        period_s,
    });
    let policy = select(vec![SelectPolicy::Max, SelectPolicy::Min, SelectPolicy::Disabled]);
    let window = prop_oneof![Just(0), 1_u64..400];
    let parts = (window, policy, prop::collection::vec(limit, 0..3), 0.0..0.5);
    parts.prop_map(|(stabilization_window_s, select_policy, policies, tolerance)| Behavior {
        stabilization_window_s,
        select_policy,
        policies,
        tolerance,
    })
}

fn modes() -> impl Strategy<Value = Mode> {
    let wait = (0.001..600.0, 1_u32..9, 0.1..1.0, 0.0..120.0, 0.001..100.0);
    prop_oneof![
        (0.1..20.0).prop_map(|jobs_per_worker| Mode::Backlog { jobs_per_worker }),
        wait.prop_map(|(target_s, slots_per_worker, utilization, startup_s, assumed_service_s)| {
            Mode::TargetWait { target_s, slots_per_worker, utilization, startup_s, assumed_service_s }
        }),
    ]
}

fn policies() -> impl Strategy<Value = Policy> {
    let bounds = (0_u32..10, 0_u32..60);
    (modes(), bounds, behaviors(), behaviors(), 1_u64..20, 0_u64..100).prop_map(
        |(mode, (min_replicas, more), scale_up, scale_down, activation, cooldown_s)| Policy {
            mode,
            min_replicas,
            max_replicas: (min_replicas + more).max(1),
            scale_up,
            scale_down,
            activation,
            cooldown_s,
            ..Policy::default()
        },
    )
}

/// An observation of a pool of some size. All readings are fresh at 0.
fn looks() -> impl Strategy<Value = Observation> {
    let service = prop::option::of(1.0..300_000.0);
    let jobs = (0_u64..300, 0_u64..100, 0_u64..3, prop::option::of(0_u64..1_000_000));
    (jobs, 0_u32..20, 1_u32..9, 0_u32..40, 0.0..20.0, service).prop_map(
        |(
            (ready, running, due_soon, oldest_waiting_ms),
            workers,
            slots,
            busy_workers,
            arrivals_per_s,
            mean_ms,
        )| {
            let mut look = seen(0, ready, workers);
            *ledger(&mut look) = Demand {
                running,
                due_soon,
                oldest_waiting_ms,
                workers,
                slots: u64::from(workers * slots),
                busy_workers,
                arrivals_per_s,
                service: mean_ms.map(|mean_ms| ServiceTime {
                    jobs: 1,
                    mean_ms,
                    p50_ms: mean_ms,
                    p95_ms: mean_ms,
                }),
                ..Demand::default()
            };
            look
        },
    )
}

/// A sequence of observations, with the seconds between them. Now and then the queue is unknown.
fn pasts() -> impl Strategy<Value = Vec<(u64, Observation)>> {
    let unknown = prop::bool::weighted(0.1);
    let look = (1_u64..40, looks(), unknown).prop_map(|(after_s, mut look, unknown)| {
        look.ready = look.ready.filter(|_| !unknown);
        (after_s, look)
    });
    prop::collection::vec(look, 0..40)
}

fn at(mut look: Observation, at_ms: u64, current: u32) -> Observation {
    look.replicas = Some(Reading { value: Replicas { wanted: current, ready: current }, at_ms });
    for at in
        [look.ready.as_mut().map(|read| &mut read.at_ms), look.demand.as_mut().map(|read| &mut read.at_ms)]
    {
        at.into_iter().for_each(|at| *at = at_ms);
    }
    look
}

/// Runs a pool through a sequence of observations. Returns the pool and all its decisions.
fn live(
    policy: &Policy,
    past: &[(u64, Observation)],
    current: u32,
) -> (Pool, Vec<(Decision, Option<Resize>)>) {
    let mut pool = Pool::new(policy.clone(), current);
    let mut log = Vec::new();
    for (after_s, look) in past {
        let from = pool.current;
        let decision = pool.look(*after_s, |at_ms, current| at(look.clone(), at_ms, current));
        let resize = Resize { at_ms: pool.now_ms, from, to: pool.current };
        log.push((decision, Some(resize).filter(|_| from != pool.current)));
    }
    (pool, log)
}

fn replayed<'a>(log: impl IntoIterator<Item = &'a (Decision, Option<Resize>)>) -> History {
    let mut history = History::default();
    for (decision, resize) in log {
        let text = serde_json::to_string(decision).unwrap();
        history.record(&serde_json::from_str(&text).unwrap());
        if let Some(Resize { at_ms, from, to }) = *resize {
            history.resized(at_ms, from, to);
        }
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn more_messages_never_mean_fewer_workers(
        policy in policies(), past in pasts(), look in looks(), more in 0_u64..300, current in 0_u32..70,
    ) {
        let (pool, _) = live(&policy, &past, current);
        let now_ms = pool.now_ms + 1000;
        let mut look = at(look, now_ms, pool.current);
        let few = decide(&pool.history, &look, &policy, now_ms);
        look.ready.as_mut().unwrap().value += more;
        let many = decide(&pool.history, &look, &policy, now_ms);
        prop_assert!(few.recommended <= many.recommended, "{few} / {many}");
        prop_assert!(few.desired <= many.desired, "{few} / {many}");
    }

    #[test]
    fn a_decision_stays_within_bounds_unless_busy_workers_are_above(
        policy in policies(), past in pasts(), look in looks(), current in 0_u32..70,
    ) {
        let (pool, _) = live(&policy, &past, current);
        let now_ms = pool.now_ms + 1000;
        let busy = look.demand.as_ref().unwrap().value.busy_workers.min(pool.current);
        let decision = decide(&pool.history, &at(look, now_ms, pool.current), &policy, now_ms);
        let desired = decision.desired.unwrap();
        prop_assert!(desired >= policy.min_replicas, "{decision}");
        prop_assert!(desired <= policy.max_replicas.max(busy), "{decision}");
        prop_assert!(desired >= busy, "{decision}");
        prop_assert_eq!(decision.steps.last().unwrap().to, desired);
        prop_assert_eq!(decision.steps.last().unwrap().rule, decision.reason);
    }

    #[test]
    fn what_is_old_or_unknown_never_lowers(
        policy in policies(), past in pasts(), look in looks(), current in 0_u32..70, part in 0..3, gone in any::<bool>(),
        age_ms in 15_001_u64..1_000_000,
    ) {
        let (pool, _) = live(&policy, &past, current);
        let now_ms = pool.now_ms + 1000;
        let mut look = at(look, now_ms, pool.current);
        let old_ms = now_ms - age_ms;
        match (part, gone) {
            (0, true) => look.ready = None,
            (1, true) => look.demand = None,
            (2, true) => look.replicas = None,
            (0, false) => look.ready.as_mut().unwrap().at_ms = old_ms,
            (1, false) => look.demand.as_mut().unwrap().at_ms = old_ms,
            _ => look.replicas.as_mut().unwrap().at_ms = old_ms,
        }
        let decision = decide(&pool.history, &look, &policy, now_ms);
        prop_assert!(decision.desired.is_none_or(|desired| desired >= pool.current), "{decision}");
        prop_assert_eq!(decision.desired.is_none(), look.replicas.is_none());
        if part < 2 {
            prop_assert_eq!(decision.recommended, None);
        }
    }

    #[test]
    fn a_restart_never_drops_replicas(
        policy in policies(), past in pasts(), look in looks(), current in 0_u32..70, lost in any::<bool>(),
    ) {
        let (pool, log) = live(&policy, &past, current);
        let now_ms = pool.now_ms + 1000;
        let mut reloaded = if lost { History::default() } else { replayed(&log) };
        reloaded.resumed(pool.now_ms, pool.current);
        let look = at(look, now_ms, pool.current);
        let would = decide(&pool.history, &look, &policy, now_ms);
        let does = decide(&reloaded, &look, &policy, now_ms);
        if !lost {
            prop_assert!(does.desired >= would.desired.min(Some(pool.current)), "{does} / {would}");
        }
        if policy.scale_down.stabilization_window_s > 1 {
            prop_assert!(does.desired.unwrap() >= pool.current.min(policy.max_replicas), "{does}");
        }
    }

    #[test]
    fn a_replay_decides_as_the_living_one(
        policy in policies(), past in pasts(), look in looks(), current in 0_u32..70,
    ) {
        let (pool, log) = live(&policy, &past, current);
        prop_assert_eq!(&replayed(&log), &pool.history);
        // A decision that repeats the previous one need not be kept.
        let decisive: Vec<_> = log.iter().enumerate().filter(|(index, (decision, resize))| {
            let before = log[..*index].iter().rev().find_map(|(before, _)| before.recommended);
            resize.is_some() || decision.recommended.is_some_and(|now| Some(now) != before)
        }).map(|(_, kept)| kept).collect();
        let now_ms = pool.now_ms + 1000;
        let look = at(look, now_ms, pool.current);
        let policy = Policy { min_replicas: policy.min_replicas.max(1), ..policy };
        let live = decide(&pool.history, &look, &policy, now_ms);
        let again = decide(&replayed(decisive), &look, &policy, now_ms);
        prop_assert_eq!((live.desired, live.reason, live.steps), (again.desired, again.reason, again.steps));
    }

    #[test]
    fn a_window_sees_all_that_stood_in_it(
        asked in prop::collection::vec((1_u64..50, 0_u32..20), 1..60), window_s in 1_u64..400,
    ) {
        let mut history = History::default();
        let mut now_ms = NOW_MS;
        let mut stood: Vec<(u64, u32)> = Vec::new();
        for (after_s, replicas) in asked {
            now_ms += after_s * 1000;
            let decision = decide(&history, &seen(now_ms, u64::from(replicas), replicas), &plain(), now_ms);
            history.record(&decision);
            stood.push((now_ms, replicas));
        }
        let after_ms = now_ms + 1000 - window_s * 1000;
        let ends = stood.iter().skip(1).map(|(at_ms, _)| *at_ms).chain([u64::MAX]);
        let within: Vec<u32> =
            stood.iter().zip(ends).filter(|(_, end_ms)| *end_ms > after_ms).map(|((_, one), _)| *one).collect();
        prop_assert_eq!(history.lowest_after(after_ms, 0), *within.iter().min().unwrap());
        prop_assert_eq!(history.highest_after(after_ms, 0), *within.iter().max().unwrap());
    }
}
