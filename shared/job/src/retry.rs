//! When to try again after a failure: a job by its own policy, and what must work eventually by waits without end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many workers may die while they run a job before the job is taken for the cause and fails as poison.
pub const POISON_DEATHS: u32 = 3;

/// A job's retry policy: how often it may be tried, and how long to wait in between.
///
/// The wait before attempt n+1 is drawn evenly from `0 ..= min(max_delay_ms, base_delay_ms · 2^(n-1))` ("full
/// jitter", as in the AWS Architecture Blog's "Exponential Backoff And Jitter"), so that jobs that failed together do
/// not return together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryPolicy {
    /// All attempts, including the first; 1 to 100.
    pub max_attempts: u32,
    /// The upper bound of the first wait, in milliseconds.
    pub base_delay_ms: u64,
    /// The upper bound of every wait, in milliseconds.
    pub max_delay_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { max_attempts: 3, base_delay_ms: 1_000, max_delay_ms: 60_000 }
    }
}

impl RetryPolicy {
    /// Reports which field is wrong, and what would be right.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=100).contains(&self.max_attempts) {
            return Err(("retry.max_attempts", format!("got {}, expected 1 to 100", self.max_attempts)));
        }
        const WEEK_MS: u64 = 7 * 86_400_000;
        if self.max_delay_ms > WEEK_MS {
            return Err((
                "retry.max_delay_ms",
                format!("got {}, expected at most {WEEK_MS}", self.max_delay_ms),
            ));
        }
        if self.base_delay_ms > self.max_delay_ms {
            let problem =
                format!("got {}, expected at most max_delay_ms ({})", self.base_delay_ms, self.max_delay_ms);
            return Err(("retry.base_delay_ms", problem));
        }
        Ok(())
    }

    /// Returns the wait after `attempts` spent attempts (at least one), or `None` when no attempt is left. `jitter` is
    /// drawn evenly from 0 to 1.
    pub fn next_delay(&self, attempts: u32, jitter: f64) -> Option<Duration> {
        if attempts >= self.max_attempts {
            return None;
        }
        let ceiling = ceiling(self.base_delay_ms, self.max_delay_ms, attempts);
        Some(Duration::from_millis((ceiling as f64 * jitter.clamp(0.0, 1.0)) as u64))
    }
}

/// The waits between tries of something that must work eventually; the tries never end. Each wait is drawn evenly from
/// half its upper bound to all of it. A draw from zero could make a try follow at once.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The upper bound of the first wait.
    pub base: Duration,
    /// The upper bound of every wait.
    pub max: Duration,
}

impl Backoff {
    /// Returns the wait after `failures` in a row (at least one). `jitter` is drawn evenly from 0 to 1.
    pub fn next_delay(&self, failures: u32, jitter: f64) -> Duration {
        let ceiling = ceiling(self.base.as_millis() as u64, self.max.as_millis() as u64, failures);
        Duration::from_millis((ceiling as f64 * (0.5 + jitter.clamp(0.0, 1.0) / 2.0)) as u64)
    }
}

/// Returns the longest wait after so many tries. It doubles with each try, from `base` to `max`.
fn ceiling(base_ms: u64, max_ms: u64, tries: u32) -> u64 {
    let doublings = tries.saturating_sub(1).min(62);
    base_ms.saturating_mul(1 << doublings).min(max_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_the_cap_and_end_with_the_attempts() {
        let policy = RetryPolicy { max_attempts: 5, base_delay_ms: 100, max_delay_ms: 300 };
        let waits: Vec<_> = (1..=5).map(|n| policy.next_delay(n, 1.0).map(|d| d.as_millis())).collect();
        assert_eq!(waits, [Some(100), Some(200), Some(300), Some(300), None]);
    }

    #[test]
    fn waits_without_end_grow_to_the_cap_and_never_vanish() {
        let backoff = Backoff { base: Duration::from_millis(250), max: Duration::from_secs(3) };
        assert_eq!(backoff.next_delay(1, 1.0), Duration::from_millis(250));
        assert_eq!(backoff.next_delay(1, 0.0), Duration::from_millis(125));
        assert_eq!(backoff.next_delay(2, 1.0), Duration::from_millis(500));
        assert_eq!(backoff.next_delay(100, 1.0), Duration::from_secs(3));
    }

    proptest! {
        #[test]
        fn a_wait_never_passes_the_cap(attempts in 0u32..200, jitter in -1.0f64..2.0, base in 0u64..u64::MAX, cap in 0u64..604_800_000) {
            let policy = RetryPolicy { max_attempts: 100, base_delay_ms: base, max_delay_ms: cap };
            if let Some(wait) = policy.next_delay(attempts, jitter) {
                prop_assert!(wait.as_millis() as u64 <= cap);
                prop_assert!(attempts < 100);
            } else {
                prop_assert!(attempts >= 100);
            }
        }
    }
}
