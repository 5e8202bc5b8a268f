//! `target_wait` asks for the fewest workers with which jobs start in time, and for none that would come too late to
//! help.

use super::*;

fn policy(target_s: f64, startup_s: f64) -> Policy {
    let (utilization, assumed_service_s) = (0.8, 10.0);
    let mode = Mode::TargetWait { target_s, slots_per_worker: 1, utilization, startup_s, assumed_service_s };
    Policy { mode, ..plain() }
}

/// Returns how many workers of one slot demand asks for.
fn asked(policy: &Policy, ready: u64, there: u32, set: impl FnOnce(&mut Demand)) -> u32 {
    let mut look = seen(NOW_MS, ready, there);
    set(ledger(&mut look));
    decide(&History::default(), &look, policy, NOW_MS).recommended.unwrap()
}

#[test]
fn a_fresh_line_gets_the_fewest_slots_that_start_it_in_time() {
    for jobs in [1_u64, 2, 7, 99, 100, 105, 106, 5000] {
        for target_s in [0_u32, 10, 60, 600] {
            // A slot takes a job at 0 s, 10 s, … up to the target.
            let starts_of_a_slot = u64::from(target_s / 10 + 1);
            let fewest = jobs.div_ceil(starts_of_a_slot) as u32;
            assert_eq!(
                asked(&policy(f64::from(target_s), 0.0), jobs, 0, |_| ()),
                fewest,
                "{jobs} in {target_s} s"
            );
        }
    }
}

#[test]
fn a_new_worker_comes_late_so_more_of_them_are_needed() {
    let set = |demand: &mut Demand| demand.running = 10;
    // 100 wait and 10 run: 110 jobs of 10 s, the last begun within 60 s, by 15.7 slots.
    assert_eq!(asked(&policy(60.0, 0.0), 100, 10, set), 16);
    // The existing 10 take 30 within 30 s; 80 of 10 s are left, the last begun 30 s later, by 20.
    assert_eq!(asked(&policy(60.0, 30.0), 100, 10, set), 20);
}

#[test]
fn no_worker_is_added_for_a_job_that_a_busy_slot_takes_sooner() {
    let policy = policy(5.0, 30.0);
    let set = |demand: &mut Demand| demand.running = 10;
    assert_eq!(asked(&policy, 30, 10, set), 10);
    assert_eq!(asked(&policy, 31, 10, set), 11);
    // However old it is.
    let old = |demand: &mut Demand| (demand.running, demand.oldest_waiting_ms) = (10, Some(3_600_000));
    assert_eq!(asked(&policy, 30, 10, old), 10);
    assert_eq!(asked(&policy, 45, 10, old), 25);
}

#[test]
fn free_slots_take_jobs_at_once() {
    let set = |demand: &mut Demand| demand.running = 4;
    assert_eq!(asked(&policy(0.0, 5.0), 6, 10, set), 10);
    // 6 free slots take a job each; 4 busy ones two more of 10 s within 5 s.
    assert_eq!(asked(&policy(0.0, 5.0), 9, 10, set), 11);
}

#[test]
fn the_oldest_and_all_that_are_overdue_count() {
    let aged = |oldest_ms: u64| move |demand: &mut Demand| demand.oldest_waiting_ms = Some(oldest_ms);
    let policy = policy(100.0, 0.0);
    assert_eq!(asked(&policy, 10, 0, aged(0)), 1);
    assert_eq!(asked(&policy, 10, 0, aged(100_000)), 1);
    // Half of the line is older than the target.
    assert_eq!(asked(&policy, 10, 0, aged(200_000)), 5);
    let behind = |demand: &mut Demand| (demand.running, demand.oldest_waiting_ms) = (3, Some(100_000));
    assert_eq!(asked(&policy, 1, 0, behind), 4);
}

#[test]
fn a_steady_stream_has_the_floor_of_littles_law() {
    let set = |demand: &mut Demand| {
        (demand.workers, demand.slots, demand.arrivals_per_s) = (5, 20, 2.0);
        demand.service =
            Some(ServiceTime { jobs: 100, mean_ms: 10_000.0, p50_ms: 9_000.0, p95_ms: 20_000.0 });
    };
    // 2 × 10 jobs run; a worker's share is 0.8 of 4 slots: 6.25 workers.
    assert_eq!(asked(&policy(60.0, 0.0), 0, 5, set), 7);
}

#[test]
fn what_runs_keeps_its_slots() {
    let set = |demand: &mut Demand| (demand.workers, demand.slots, demand.running) = (5, 20, 9);
    assert_eq!(asked(&policy(600.0, 0.0), 0, 5, set), 3);
}

#[test]
fn numbers_that_are_none_are_no_harm() {
    let set = |demand: &mut Demand| {
        demand.arrivals_per_s = f64::NAN;
        demand.service = Some(ServiceTime { jobs: 1, mean_ms: f64::NAN, p50_ms: 0.0, p95_ms: 0.0 });
    };
    assert_eq!(asked(&policy(0.0, 0.0), 3, 0, set), 3);
    let endless = |demand: &mut Demand| demand.arrivals_per_s = f64::INFINITY;
    assert_eq!(asked(&policy(0.0, 0.0), u64::MAX, 0, endless), u32::MAX);
}
