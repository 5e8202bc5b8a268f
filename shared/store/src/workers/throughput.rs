//! How fast a worker works, as it reports with its heartbeats. Service times are not read from results,
//! because there are too many of them, and because a long job's id does not say when the job ended.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a worker has done lately: the runs that it has begun and ended.
#[derive(Clone, Debug, Default)]
pub struct Throughput {
    /// Runs begun per second.
    pub starts_per_s: f32,
    /// How long recently ended runs took.
    pub durations: Durations,
}

/// A histogram of how long runs took. Four buckets double the time, so a quantile is off by a fifth at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durations {
    /// The sum of all runs in milliseconds.
    sum_ms: u64,
    /// Runs by bucket; bucket n holds those of 2^((n-1)/4) to 2^(n/4) milliseconds, bucket 0 those of at most one.
    counts: BTreeMap<u16, u32>,
}

const BUCKETS_PER_DOUBLING: f64 = 4.0;

impl Durations {
    /// Counts a run.
    pub fn add(&mut self, took: Duration) {
        let ms = took.as_secs_f64() * 1e3;
        let bucket = (ms.max(1.0).log2() * BUCKETS_PER_DOUBLING).ceil() as u16;
        *self.counts.entry(bucket).or_default() += 1;
        self.sum_ms += ms.round() as u64;
    }

    /// Adds the counts of others.
    pub fn merge(&mut self, others: &Durations) {
        self.sum_ms += others.sum_ms;
        for (bucket, count) in &others.counts {
            *self.counts.entry(*bucket).or_default() += count;
        }
    }

    /// Returns whether no run was counted.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Returns how many runs were counted.
    pub fn runs(&self) -> u64 {
        self.counts.values().map(|count| u64::from(*count)).sum()
    }

    /// Returns the mean in milliseconds, or 0 if there are no runs.
    pub fn mean_ms(&self) -> f64 {
        self.sum_ms as f64 / self.runs().max(1) as f64
    }

    /// Returns the time in milliseconds within which this part of the runs ended (0.5: the median), or 0 if
    /// there are no runs.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let wanted = part.clamp(0.0, 1.0) * self.runs() as f64;
        let mut before = 0.0;
        for (bucket, count) in &self.counts {
            let count = f64::from(*count);
            if before + count >= wanted {
                // The runs are taken as evenly spread over the bucket, on the scale of the buckets.
                let within = f64::from(*bucket) - 1.0 + (wanted - before) / count;
                return (within.max(0.0) / BUCKETS_PER_DOUBLING).exp2();
            }
            before += count;
        }
        0.0
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers are written without errors")
    }

    /// Parses what a worker has written. The format of another release counts as no runs.
    pub(crate) fn from_json(text: &str) -> Durations {
        serde_json::from_str(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut durations = Durations::default();
        for ms in 1..=1000 {
            durations.add(Duration::from_millis(ms));
        }
        assert_eq!((durations.runs(), durations.mean_ms()), (1000, 500.5));
        for (part, truth) in [(0.5, 500.0), (0.95, 950.0), (0.01, 10.0)] {
            let seen = durations.quantile_ms(part);
            assert!((seen / truth).ln().abs() < 0.18, "{part}: {seen}, not {truth}");
        }
    }

    #[test]
    fn what_two_workers_counted_is_what_one_would_have_counted() {
        let (mut one, mut other, mut both) = Default::default();
        for (n, ms) in [0_u64, 1, 17, 250, 40_000, 7_200_000].into_iter().enumerate() {
            let into: &mut Durations = if n % 2 == 0 { &mut one } else { &mut other };
            into.add(Duration::from_millis(ms));
            Durations::add(&mut both, Duration::from_millis(ms));
        }
        one.merge(&other);
        assert_eq!(one, both);
        assert_eq!(Durations::from_json(&both.to_json()), both);
        assert_eq!(Durations::from_json("[]"), Durations::default());
    }

    #[test]
    fn without_runs_all_is_zero() {
        let none = Durations::default();
        assert_eq!((none.runs(), none.mean_ms(), none.quantile_ms(0.5)), (0, 0.0, 0.0));
    }
}
