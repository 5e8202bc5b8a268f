//! Throughput: how many runs this process begins, and how long they take, over the last minutes. It is reported with
//! each heartbeat. The sum of these reports is what the autoscaler knows of service times.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::{Durations, Throughput};
use tokio::time::Instant;

/// The past is kept in slices of this length.
const SLICE: Duration = Duration::from_secs(15);
/// Slices that count for how long runs took: five minutes.
const SLICES: usize = 20;
/// The latest slices, which count for the rate of starts: a minute.
const LATE_SLICES: usize = 4;

/// The counts; clones share them.
#[derive(Clone)]
pub struct ThroughputWindow(Arc<Mutex<Window>>);

struct Window {
    since: Instant,
    /// Oldest first.
    slices: VecDeque<Slice>,
}

struct Slice {
    begins: Instant,
    starts: u32,
    durations: Durations,
}

impl ThroughputWindow {
    /// Makes an empty window that begins now.
    pub fn new() -> ThroughputWindow {
        ThroughputWindow(Arc::new(Mutex::new(Window { since: Instant::now(), slices: VecDeque::new() })))
    }

    /// Counts a run that has begun.
    pub fn started(&self) {
        self.lock().slice(Instant::now()).starts += 1;
    }

    /// Counts a run that has ended.
    pub fn ended(&self, took: Duration) {
        self.lock().slice(Instant::now()).durations.add(took);
    }

    /// Returns what is reported with the next heartbeat.
    pub fn measure(&self) -> Throughput {
        self.lock().measure(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        // These are only counts, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Returns the present slice, and drops those that are too old.
    fn slice(&mut self, now: Instant) -> &mut Slice {
        self.forget(now);
        if self.slices.back().is_none_or(|last| now >= last.begins + SLICE) {
            self.slices.push_back(Slice { begins: now, starts: 0, durations: Durations::default() });
        }
        self.slices.back_mut().expect("one was pushed")
    }

    fn forget(&mut self, now: Instant) {
        while self.slices.front().is_some_and(|first| now >= first.begins + SLICE * SLICES as u32) {
            self.slices.pop_front();
        }
    }

    fn measure(&mut self, now: Instant) -> Throughput {
        self.forget(now);
        let mut throughput = Throughput::default();
        let mut starts = 0;
        // Slices begin with an event, so the oldest that counts shows how far back the minute reaches.
        let mut reach = (now - self.since).min(SLICE * LATE_SLICES as u32);
        for slice in &self.slices {
            throughput.durations.merge(&slice.durations);
            let age = now - slice.begins;
            if age < SLICE * LATE_SLICES as u32 + SLICE {
                starts += slice.starts;
                reach = reach.max(age);
            }
        }
        throughput.starts_per_s = starts as f32 / reach.as_secs_f32().max(1.0);
        throughput
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_steady_rate_is_measured_as_it_is_and_fades_when_it_ends() {
        let begin = Instant::now();
        let mut window = Window { since: begin, slices: VecDeque::new() };
        for second in 0..200 {
            window.slice(begin + SECOND * second).starts += 3;
        }
        let rate = window.measure(begin + SECOND * 200).starts_per_s;
        assert!((2.5..=3.5).contains(&rate), "{rate}");
        assert_eq!(window.measure(begin + SECOND * 300).starts_per_s, 0.0);
    }

    #[test]
    fn a_fresh_worker_divides_by_the_time_it_had() {
        let begin = Instant::now();
        let mut window = Window { since: begin, slices: VecDeque::new() };
        window.slice(begin + SECOND).starts += 20;
        let rate = window.measure(begin + SECOND * 10).starts_per_s;
        assert!((1.9..=2.1).contains(&rate), "{rate}");
    }

    #[test]
    fn runs_count_for_five_minutes() {
        let begin = Instant::now();
        let mut window = Window { since: begin, slices: VecDeque::new() };
        window.slice(begin).durations.add(SECOND);
        window.slice(begin + SECOND * 200).durations.add(SECOND);
        assert_eq!(window.measure(begin + SECOND * 299).durations.runs(), 2);
        assert_eq!(window.measure(begin + SECOND * 301).durations.runs(), 1);
        assert_eq!(window.measure(begin + SECOND * 501).durations.runs(), 0);
    }
}
