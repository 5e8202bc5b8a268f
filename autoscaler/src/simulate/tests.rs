//! What holds for every run, whatever the trace and the policy.

use proptest::prelude::*;

use super::*;
use crate::decide::{Decision, History, Mode, Observation, Policy, decide};

const SETUP: Setup = Setup {
    delays: Delays { startup_ms: 20_000, drain_ms: 3_000, observation_ms: 1_000 },
    slots: 2,
    workers: 2,
    start_ms: 1_767_571_200_000,
};
const TAIL_MS: u64 = 900_000;

fn job(arrival_s: u64, service_s: u64) -> Arrival {
    Arrival { arrival_ms: arrival_s * 1_000, service_ms: service_s * 1_000, session: None }
}

fn burst() -> Trace {
    Trace::read(&include_bytes!("../../../ops/traces/burst.csv")[..]).expect("the shipped trace")
}

fn target_wait() -> Policy {
    toml::from_str(include_str!("../../../ops/policies/target_wait.toml")).expect("the shipped policy")
}

fn play<'a>(trace: &'a Trace, policy: &'a Policy, setup: Setup) -> Simulation<'a> {
    let mut run = Simulation::new(trace, policy, setup);
    while !run.is_over(TAIL_MS) {
        run.tick();
    }
    run
}

#[test]
fn figures_are_those_of_a_run_that_can_be_done_by_hand() {
    let policy = Policy { min_replicas: 1, max_replicas: 1, ..Policy::default() };
    let trace = Trace::new(vec![job(0, 10), job(0, 10), job(0, 10), job(40, 60)]);
    let setup = Setup { slots: 1, workers: 1, ..SETUP };
    let mut run = Simulation::new(&trace, &policy, setup);
    while !run.is_over(100_000) {
        run.tick();
    }
    let expected = Report {
        jobs: 4,
        unfinished: 0,
        interrupted: 0,
        wait: Waits { p50_s: 0.0, p95_s: 20.0, p99_s: 20.0, max_s: 20.0 },
        worker_hours: 200.0 / 3_600.0,
        utilization: 90.0 / 200.0,
        scale_ups: 0,
        scale_downs: 0,
        flaps: 0,
        peak_depth: 2,
        peak_workers: 1,
        hours: 200.0 / 3_600.0,
    };
    assert_eq!(run.report(600_000), expected);
}

#[test]
fn a_burst_is_answered_by_one_write_as_soon_as_it_is_seen() {
    let mut policy = Policy { max_replicas: 100, ..Policy::default() };
    policy.scale_up.policies.clear();
    let trace = Trace::new((0..60).map(|_| job(10, 30)).collect());
    let run = play(&trace, &policy, SETUP);
    let first = run.resizes()[0];
    assert_eq!((first.at_ms - SETUP.start_ms, first.from, first.to), (11_000, 2, 60));
    assert_eq!(run.samples()[30].ready, 60, "20 s later they are there");
}

#[test]
fn a_session_runs_one_job_at_a_time_and_its_own_wait_is_not_the_pool_s() {
    let policy = Policy::default();
    let of = |session| Arrival { session: Some(session), ..job(0, 60) };
    let trace = Trace::new(vec![of(0), of(0), of(0), of(1)]);
    let run = play(&trace, &policy, SETUP);
    let started: Vec<u64> = run.runs().iter().map(|run| run.started_ms / 1_000).collect();
    assert_eq!(started, [0, 60, 120, 0]);
    assert_eq!(run.report(0).wait.max_s, 0.0);
}

#[test]
fn a_pool_that_may_not_grow_is_distinguished_from_one_that_is_done() {
    let policy = Policy { min_replicas: 0, pause_up: true, ..Policy::default() };
    let trace = Trace::new(vec![job(5, 1), job(6, 1)]);
    let run = play(&trace, &policy, Setup { workers: 0, ..SETUP });
    assert_eq!(run.report(0).unfinished, 2);
}

#[test]
fn readings_older_than_the_policy_takes_never_shrink_the_pool() {
    let policy = Policy::default();
    let trace = burst();
    let late = Delays { observation_ms: (policy.stale_after_s + 1) * 1_000, ..SETUP.delays };
    let run = play(&trace, &policy, Setup { workers: 15, delays: late, ..SETUP });
    assert_eq!((run.resizes(), run.report(0).unfinished), (&[][..], 0));
}

#[test]
fn the_same_input_gives_the_same_run_and_the_same_picture() {
    let (trace, policy) = (burst(), target_wait());
    let (one, two) = (play(&trace, &policy, SETUP), play(&trace, &policy, SETUP));
    assert_eq!((one.runs(), one.samples()), (two.runs(), two.samples()));
    assert_eq!(one.report(600_000), two.report(600_000));
    let picture =
        |simulation| plot("burst", &[Drawn { name: "target wait", simulation }]).expect("a picture");
    assert_eq!(picture(&one), picture(&two));
}

#[test]
fn a_picture_has_a_title_axes_with_units_and_a_legend() {
    let (trace, first, second) = (burst(), Policy::default(), target_wait());
    let (one, two) = (play(&trace, &first, SETUP), play(&trace, &second, SETUP));
    let drawn =
        [Drawn { name: "first", simulation: &one }, Drawn { name: "second & last", simulation: &two }];
    let svg = plot("A <title>", &drawn).expect("a picture");
    for text in [
        "A &lt;title&gt;",
        "time (min)",
        "messages",
        "seconds",
        "Workers, first",
        "Workers, second &amp; last",
        "busy",
    ] {
        assert!(svg.contains(text), "{text}");
    }
}

#[test]
fn a_policy_compared_with_itself_differs_in_nothing() {
    let (trace, policy) = (burst(), Policy::default());
    let report = play(&trace, &policy, SETUP).report(600_000);
    let Comparison { difference, .. } = Comparison::of(report.clone(), report);
    let nothing = Difference {
        wait_p50_s: 0.0,
        wait_p95_s: 0.0,
        wait_max_s: 0.0,
        worker_hours: 0.0,
        utilization: 0.0,
        changes: 0,
        flaps: 0,
    };
    assert_eq!(difference, nothing);
}

#[test]
fn decisions_read_back_from_json_and_made_again_are_the_same() {
    let trace = burst();
    for policy in [Policy::default(), target_wait()] {
        let mut run = Simulation::new(&trace, &policy, SETUP);
        let mut rows = Vec::new();
        while !run.is_over(TAIL_MS) {
            let (observation, decision) = run.tick();
            let row = serde_json::to_string(&(&observation, &decision)).expect("JSON");
            rows.push((row, run.resizes().last().copied().filter(|resize| resize.at_ms == decision.at_ms)));
        }
        assert!(run.resizes().len() > 10, "there was something to decide");
        let mut history = History::default();
        for (row, resize) in rows {
            let (observation, live): (Observation, Decision) = serde_json::from_str(&row).expect("JSON");
            assert_eq!(decide(&history, &observation, &policy, live.at_ms), live);
            history.record(&live);
            if let Some(resize) = resize {
                history.resized(resize.at_ms, resize.from, resize.to);
            }
        }
    }
}

fn traces() -> impl Strategy<Value = Trace> {
    let arrival = (0u64..400_000, 0u64..90_000, prop::option::of(0u32..6));
    prop::collection::vec(arrival, 1..120).prop_map(|jobs| {
        let arrival = |(arrival_ms, service_ms, session)| Arrival { arrival_ms, service_ms, session };
        Trace::new(jobs.into_iter().map(arrival).collect())
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![
        (0.5f64..8.0).prop_map(|jobs_per_worker| Mode::Backlog { jobs_per_worker }),
        (1.0f64..120.0).prop_map(|target_s| Mode::TargetWait {
            target_s,
            slots_per_worker: 2,
            utilization: 0.8,
            startup_s: 10.0,
            assumed_service_s: 30.0,
        }),
    ];
    (mode, 0u32..4, 4u32..30, 0u64..120, 0u64..120).prop_map(|(mode, min, max, window_s, cooldown_s)| {
        let mut policy =
            Policy { mode, min_replicas: min, max_replicas: max, cooldown_s, ..Policy::default() };
        policy.scale_down.stabilization_window_s = window_s;
        policy
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_job_starts_and_ends_once_in_its_turn_and_is_never_interrupted(
        trace in traces(),
        policy in policies(),
        slots in 1u32..5,
        workers in 0u32..6,
        (startup_ms, drain_ms, observation_ms) in (0u64..60_000, 0u64..10_000, 0u64..5_000),
    ) {
        let delays = Delays { startup_ms, drain_ms, observation_ms };
        let setup = Setup { delays, slots, workers, ..SETUP };
        let run = play(&trace, &policy, setup);
        let report = run.report(600_000);
        prop_assert_eq!((report.unfinished, report.interrupted), (0, 0));
        let mut free_ms = vec![0; trace.sessions()];
        let mut order: Vec<_> = trace.jobs().iter().zip(run.runs()).collect();
        for (job, run) in &order {
            prop_assert_eq!((run.starts, run.ends), (1, 1));
            prop_assert!(run.started_ms >= job.arrival_ms + run.wait_ms);
        }
        // In the order of their starts, no job of a session starts before the previous one has ended.
        order.sort_by_key(|(_, run)| run.started_ms);
        for (job, run) in &order {
            if let Some(session) = job.session {
                prop_assert!(free_ms[session as usize] <= run.started_ms);
                free_ms[session as usize] = run.started_ms + job.service_ms;
            }
        }
        for sample in run.samples() {
            prop_assert!(sample.busy <= sample.ready && sample.ready <= sample.wanted, "{:?}", sample);
            prop_assert!(sample.wanted <= policy.max_replicas.max(workers), "{:?}", sample);
        }
        let paid_s: u64 = std::iter::once(workers)
            .chain(run.samples().iter().map(|sample| sample.wanted))
            .take(run.samples().len())
            .map(u64::from)
            .sum();
        prop_assert!((report.worker_hours * 3_600.0 - paid_s as f64).abs() < 1e-6);
        let busy_ms: u64 = trace.jobs().iter().map(|job| job.service_ms).sum();
        let used_ms = report.utilization * (paid_s * u64::from(slots)) as f64 * 1e3;
        prop_assert!((used_ms - busy_ms as f64).abs() < 1.0);
    }
}
