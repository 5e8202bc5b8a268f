//! How many decisions a core makes in a second, with the history of a restless pool: windows of five minutes, and a new
//! recommendation every second.

use autoscaler::decide::{
    Demand, History, Mode, Observation, Policy, Reading, Replicas, ServiceTime, Window, decide,
};
use divan::Bencher;
use divan::counter::ItemsCount;

/// Observations of a pool, one a second.
const LOOKS: usize = 4096;
/// 2026-01-01 00:00 UTC.
const START_MS: u64 = 1_767_225_600_000;

fn main() {
    divan::main();
}

fn policy(mode: Mode, scheduled: bool) -> Policy {
    let mut policy = Policy { mode, max_replicas: 200, ..Policy::default() };
    policy.scale_up.stabilization_window_s = 30;
    if scheduled {
        policy.schedule = vec![Window::new("0 8 * * 1-5", "0 18 * * 1-5", "Europe/Berlin", 5)];
    }
    assert!(policy.check().is_empty());
    policy
}

fn backlog() -> Mode {
    Mode::Backlog { jobs_per_worker: 4.0 }
}

fn target_wait() -> Mode {
    Mode::TargetWait {
        target_s: 60.0,
        slots_per_worker: 4,
        utilization: 0.8,
        startup_s: 20.0,
        assumed_service_s: 30.0,
    }
}

fn look(second: usize, current: u32) -> (u64, Observation) {
    let at_ms = START_MS + second as u64 * 1000;
    // A depth that rises and falls over ten minutes, with noise so that no two neighbours are equal.
    let wave = (second as f64 / 600.0 * std::f64::consts::TAU).sin() * 150.0 + 200.0;
    let ready = wave as u64 + (second as u64).wrapping_mul(2_654_435_761) % 97;
    let service = ServiceTime { jobs: 500, mean_ms: 20_000.0, p50_ms: 15_000.0, p95_ms: 60_000.0 };
    let demand = Demand {
        running: u64::from(current) * 3,
        oldest_waiting_ms: Some(ready * 100),
        workers: current,
        slots: u64::from(current) * 4,
        busy_workers: current / 2,
        arrivals_per_s: 7.0,
        service: Some(service),
        ..Demand::default()
    };
    let observation = Observation {
        ready: Some(Reading { value: ready, at_ms }),
        demand: Some(Reading { value: demand, at_ms }),
        replicas: Some(Reading { value: Replicas { wanted: current, ready: current }, at_ms }),
        managed_ready: Some(Reading { value: ready, at_ms }),
        budget_exhausted: Some(Reading { value: false, at_ms }),
    };
    (at_ms, observation)
}

/// Runs a pool through the observations. Returns its history and its size.
fn lived(policy: &Policy) -> (History, u32) {
    let (mut history, mut current) = (History::default(), 20);
    for second in 0..LOOKS {
        let (now_ms, look) = look(second, current);
        step(&mut history, &mut current, &look, policy, now_ms);
    }
    (history, current)
}

fn step(history: &mut History, current: &mut u32, look: &Observation, policy: &Policy, now_ms: u64) {
    let decision = decide(history, look, policy, now_ms);
    history.record(&decision);
    if let Some(desired) = decision.desired.filter(|desired| desired != current) {
        history.resized(now_ms, *current, desired);
        *current = desired;
    }
}

/// `decide` alone: one observation after another, with a fixed history.
fn decisions(bencher: Bencher, policy: &Policy) {
    let (history, current) = lived(policy);
    let looks: Vec<(u64, Observation)> = (LOOKS..LOOKS + 16).map(|second| look(second, current)).collect();
    bencher.counter(ItemsCount::new(looks.len())).bench_local(|| {
        for (now_ms, look) in &looks {
            divan::black_box(decide(divan::black_box(&history), look, policy, *now_ms));
        }
    });
}

#[divan::bench]
fn decide_backlog(bencher: Bencher) {
    decisions(bencher, &policy(backlog(), false));
}

#[divan::bench]
fn decide_target_wait(bencher: Bencher) {
    decisions(bencher, &policy(target_wait(), false));
}

#[divan::bench]
fn decide_scheduled(bencher: Bencher) {
    decisions(bencher, &policy(target_wait(), true));
}

/// A whole tick as in a simulation: observe, decide, record, resize.
#[divan::bench]
fn tick(bencher: Bencher) {
    let policy = policy(target_wait(), true);
    let (history, current) = lived(&policy);
    bencher.counter(ItemsCount::new(LOOKS)).with_inputs(|| (history.clone(), current)).bench_local_values(
        |(mut history, mut current)| {
            for second in LOOKS..2 * LOOKS {
                let (now_ms, look) = look(second, current);
                step(&mut history, &mut current, &look, &policy, now_ms);
            }
            (history, current)
        },
    );
}
