//! The figures of a simulation.

use serde::Serialize;

use crate::decide::Resize;

/// The figures of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Jobs in the trace.
    pub jobs: usize,
    /// Jobs that the pool never ran, because it had no worker for them.
    pub unfinished: usize,
    /// Jobs that ran on a worker as it was taken away.
    pub interrupted: u64,
    /// How long jobs waited for a slot.
    pub wait: Waits,
    /// What was paid for: `spec.replicas` over time, in hours of one worker.
    pub worker_hours: f64,
    /// The part of the paid slots' time in which jobs ran.
    pub utilization: f64,
    /// Writes that grew the pool.
    pub scale_ups: usize,
    /// Writes that shrank the pool.
    pub scale_downs: usize,
    /// Changes of direction: writes that shrink what the previous write grew, or the other way round, within the flap
    /// time.
    pub flaps: usize,
    /// The most messages that were ready at once.
    pub peak_depth: usize,
    /// The largest `spec.replicas`.
    pub peak_workers: u32,
    /// How long the simulation was, in modelled hours.
    pub hours: f64,
}

/// Waits in seconds, from when a job could have run (accepted, and its session free) to its start. Percentiles are
/// nearest ranks, so each is the wait of some job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Waits {
    /// The median.
    pub p50_s: f64,
    /// Of 20 jobs, 19 waited no longer.
    pub p95_s: f64,
    /// Of 100 jobs, 99 waited no longer.
    pub p99_s: f64,
    /// The longest.
    pub max_s: f64,
}

impl Waits {
    /// Computes the percentiles of these waits, in milliseconds, in any order; zeros if there are none.
    pub fn of(waits_ms: &mut [u64]) -> Waits {
        waits_ms.sort_unstable();
        let at = |percent: usize| match waits_ms.len() {
            0 => 0.0,
            jobs => waits_ms[(jobs * percent).div_ceil(100) - 1] as f64 / 1e3,
        };
        Waits { p50_s: at(50), p95_s: at(95), p99_s: at(99), max_s: at(100) }
    }
}

/// Counts the changes that reverse the previous one within `flap_ms`.
pub fn flaps(resizes: &[Resize], flap_ms: u64) -> usize {
    let grows = |resize: &Resize| resize.to > resize.from;
    let reverses =
        |pair: &&[Resize]| grows(&pair[0]) != grows(&pair[1]) && pair[1].at_ms - pair[0].at_ms <= flap_ms;
    resizes.windows(2).filter(reverses).count()
}

/// Two runs of the same trace for the same time, and the difference between them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Under the first policy.
    pub first: Report,
    /// Under the second.
    pub second: Report,
    /// Second minus first.
    pub difference: Difference,
}

/// Second minus first, for the figures by which a policy is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Of the median wait, in seconds.
    pub wait_p50_s: f64,
    /// Of the 95th percentile, in seconds.
    pub wait_p95_s: f64,
    /// Of the longest wait, in seconds.
    pub wait_max_s: f64,
    /// Of worker-hours.
    pub worker_hours: f64,
    /// Of the used part of the paid time.
    pub utilization: f64,
    /// Of the number of writes.
    pub changes: i64,
    /// Of the number of flaps.
    pub flaps: i64,
}

impl Comparison {
    /// Compares the second run with the first.
    pub fn of(first: Report, second: Report) -> Comparison {
        let count = |second: usize, first: usize| second as i64 - first as i64;
        let difference = Difference {
            wait_p50_s: second.wait.p50_s - first.wait.p50_s,
            wait_p95_s: second.wait.p95_s - first.wait.p95_s,
            wait_max_s: second.wait.max_s - first.wait.max_s,
            worker_hours: second.worker_hours - first.worker_hours,
            utilization: second.utilization - first.utilization,
            changes: count(second.changes(), first.changes()),
            flaps: count(second.flaps, first.flaps),
        };
        Comparison { first, second, difference }
    }
}

impl Report {
    /// Writes to the workload, in both directions.
    pub fn changes(&self) -> usize {
        self.scale_ups + self.scale_downs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_waits_that_some_job_had() {
        let mut waits: Vec<u64> = (1..=200).rev().map(|n| n * 1_000).collect();
        let expected = Waits { p50_s: 100.0, p95_s: 190.0, p99_s: 198.0, max_s: 200.0 };
        assert_eq!(Waits::of(&mut waits), expected);
        assert_eq!(Waits::of(&mut [7_000]), Waits { p50_s: 7.0, p95_s: 7.0, p99_s: 7.0, max_s: 7.0 });
        assert_eq!(Waits::of(&mut []), Waits::default());
    }

    #[test]
    fn a_flap_is_a_reversal_that_comes_soon() {
        let resize = |at_s: u64, from, to| Resize { at_ms: at_s * 1_000, from, to };
        let changes =
            [resize(0, 2, 4), resize(10, 4, 8), resize(20, 8, 7), resize(200, 7, 9), resize(230, 9, 2)];
        assert_eq!(flaps(&changes, 60_000), 2, "at 20 s and at 230 s");
        assert_eq!(flaps(&changes, 180_000), 3);
        assert_eq!(flaps(&changes[..2], 60_000), 0, "growing twice is none");
    }
}
