//! Retries with exponential backoff and jitter. Only this module knows the `backoff` crate, which is no longer
//! maintained (RUSTSEC-2025-0012). It is small, and can be replaced here alone.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use anyhow::anyhow;
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use tokio_util::sync::CancellationToken;
use tracing::{Span, info, warn};

use crate::with_causes;

/// Waits without end that double from `initial` to `max`. Each is changed by up to a half in either direction.
pub struct Backoff(backoff::ExponentialBackoff);

impl Backoff {
    /// Starts at the shortest wait.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Backoff(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(initial)
                .with_max_interval(max)
                .with_multiplier(2.0)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// Returns the next wait.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// Starts again at the shortest wait.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Why a retried operation has no result.
#[derive(Debug)]
pub enum RetryError<E> {
    /// It failed in a way that another try cannot repair.
    Permanent(E),
    /// The process was asked to stop.
    Stopped,
}

/// Runs `operation` until it succeeds, fails for good, or `stop` is cancelled. The 1st, 2nd, 4th, 8th …
/// failure is logged as "`what` failed", with its cause.
pub async fn retry<T, E, F, Fut>(
    what: &str,
    stop: &CancellationToken,
    is_retryable: impl Fn(&E) -> bool,
    operation: F,
) -> Result<T, RetryError<E>>
where
    E: std::error::Error + 'static,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    retry_about(Span::none, what, stop, is_retryable, operation).await
}

/// As [`retry`], but builds the log span only when something is logged.
pub async fn retry_about<T, E, F, Fut>(
    about: impl Fn() -> Span,
    what: &str,
    stop: &CancellationToken,
    is_retryable: impl Fn(&E) -> bool,
    mut operation: F,
) -> Result<T, RetryError<E>>
where
    E: std::error::Error + 'static,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut failures = 0u32;
    loop {
        let result = tokio::select! {
            biased;
            result = operation() => result,
            () = stop.cancelled() => return Err(RetryError::Stopped),
        };
        match result {
            Ok(value) => {
                if failures > 0 {
                    about().in_scope(|| info!(failures, "{what} succeeded again"));
                }
                return Ok(value);
            }
            Err(error) if !is_retryable(&error) => return Err(RetryError::Permanent(error)),
            Err(error) => {
                failures += 1;
                let delay = backoff.next_delay();
                if failures.is_power_of_two() {
                    about().in_scope(|| {
                        warn!(
                            cause = with_causes(&error),
                            failures,
                            delay_ms = delay.as_millis() as u64,
                            "{what} failed, trying again"
                        )
                    });
                }
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = stop.cancelled() => return Err(RetryError::Stopped),
                }
            }
        }
    }
}

/// As [`retry`], but returns `None` if it is asked to stop meanwhile. A permanent error says what failed.
pub async fn retry_or_stop<T, E, F>(
    what: &str,
    stop: &CancellationToken,
    is_retryable: impl Fn(&E) -> bool,
    operation: impl FnMut() -> F,
) -> anyhow::Result<Option<T>>
where
    E: Error + Send + Sync + 'static,
    F: Future<Output = Result<T, E>>,
{
    match retry(what, stop, is_retryable, operation).await {
        Ok(value) => Ok(Some(value)),
        Err(RetryError::Stopped) => Ok(None),
        Err(RetryError::Permanent(error)) => Err(anyhow!(error).context(what.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_passing_failure_is_outlived_and_a_lasting_one_is_reported() {
        let stop = CancellationToken::new();
        let mut tries = 0;
        let result: Result<u32, RetryError<std::io::Error>> = retry(
            "counting",
            &stop,
            |_| true,
            || {
                tries += 1;
                let now = tries;
                async move { if now < 4 { Err(std::io::Error::other("not yet")) } else { Ok(now) } }
            },
        )
        .await;
        assert!(matches!(result, Ok(4)));
        let lasting: Result<(), _> =
            retry("failing", &stop, |_| false, || async { Err(std::io::Error::other("never")) }).await;
        assert!(matches!(lasting, Err(RetryError::Permanent(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_tries() {
        let stop = CancellationToken::new();
        stop.cancel();
        let result: Result<(), _> =
            retry("failing", &stop, |_| true, || async { Err(std::io::Error::other("away")) }).await;
        assert!(matches!(result, Err(RetryError::Stopped)));
    }

    #[test]
    fn waits_grow_to_their_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..50).map(|_| backoff.next_delay()).collect();
        assert!(waits[0] <= Duration::from_millis(150));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(1500)));
        assert!(waits[40..].iter().any(|wait| *wait >= Duration::from_millis(500)));
    }
}
