//! Conclude: what an attempt's outcome means for the job, recorded in the ledger.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use job::{Failure, FailureCode, Outcome, RetryPolicy};
use service::{RetryError, retry};
use store::{Concluded, Conclusion, End, Fenced, StoreError};
use tracing::{error, info, warn};

use crate::attempt::{Attempt, Ended};
use crate::fold::{Whole, fold};
use crate::metrics::METRICS;

/// Returns what an outcome leads to, and the attempts spent by then. `jitter` is drawn evenly from 0 to 1.
fn decide(outcome: Outcome, attempts_before: u32, policy: &RetryPolicy, jitter: f64) -> (End, u32) {
    let spent = attempts_before + 1;
    match outcome {
        Outcome::Succeeded(output) => (End::Succeeded(output), spent),
        Outcome::Cancelled(failure) => (End::Cancelled(failure), spent),
        Outcome::Asks(asks) => (End::Asks(asks), attempts_before),
        Outcome::Interrupted => (End::HandBack { delay: Duration::ZERO }, attempts_before),
        Outcome::Failed(failure) => match policy.next_delay(spent, jitter) {
            Some(delay) if failure.retryable => (End::Retry { failure, delay }, spent),
            Some(_) | None => (End::Failed(failure), spent),
        },
    }
}

/// Records an attempt's end. Returns what the ledger made of it; `None` when the lease is lost, or when we were asked
/// to stop waiting for Postgres. In the second case the lease runs out and the job is rescued.
pub async fn conclude(attempt: &mut Attempt<'_>, ended: Ended) -> Option<Concluded> {
    let before = attempt.claimed.attempts;
    let (end, attempts, session) = match ended {
        Ended::Ran(outcome, session) => {
            if let Outcome::Failed(failure) | Outcome::Cancelled(failure) = &outcome {
                METRICS.errors.with_label_values(&[failure.code.as_str()]).inc();
                info!(code = %failure.code, reason = failure.message, retryable = failure.retryable, "an attempt failed");
            }
            let (end, attempts) = decide(outcome, before, &attempt.spec.retry, fastrand::f64());
            (end, attempts, session)
        }
        Ended::Refused(failure, session) => {
            METRICS.errors.with_label_values(&[failure.code.as_str()]).inc();
            (End::Failed(failure), before, session)
        }
        Ended::Postponed(delay) => (End::HandBack { delay }, before, None),
        Ended::Lost => {
            METRICS.requests.with_label_values(&["lost"]).inc();
            attempt.lost();
            warn!(worker_id = %attempt.claimed.claim.worker(), "the lease on a job is lost; its run was stopped");
            return None;
        }
    };
    record(attempt, end, attempts, session).await
}

/// Records an end, and keeps the outcome until the ledger has taken it. If the ledger does not take it within the
/// time of a lease, less is recorded: first the end without the session's new state, whose parts are already in the
/// ledger, then only a failure. Returns `None` when nothing could be recorded.
async fn record(
    attempt: &mut Attempt<'_>,
    end: End,
    attempts: u32,
    session: Option<Whole>,
) -> Option<Concluded> {
    let since = SystemTime::now();
    let fold = match &end {
        End::Succeeded(_) | End::Failed(_) | End::Cancelled(_) => session.map(fold),
        End::Retry { .. } | End::HandBack { .. } | End::Asks(_) => None,
    };
    // A state that undoes something takes effect only if it is written whole.
    let stays_in_parts = !matches!(end, End::Cancelled(_));
    let mut last_resort = false;
    let claim = &attempt.claimed.claim;
    let mut conclusion = Conclusion { claim: claim.clone(), end, attempts, fold, take_next: true };
    loop {
        let (outcome, failure) = (label(&conclusion.end), failure_of(&conclusion.end));
        let cause = match commit(attempt, &mut conclusion).await {
            Ok(concluded) => {
                let lost = concluded.recorded == Fenced::Lost;
                METRICS.requests.with_label_values(&[if lost { "lost" } else { outcome }]).inc();
                if lost {
                    attempt.lost();
                } else {
                    attempt.recorded(since, outcome, failure);
                }
                return Some(concluded);
            }
            Err(RetryError::Stopped) => return None,
            Err(RetryError::Permanent(cause)) => cause,
        };
        if conclusion.fold.take().is_some() && stays_in_parts {
            warn!(cause = cause.as_dyn(), "a session's state was refused; it stays in parts");
        } else if !last_resort && !matches!(conclusion.end, End::HandBack { .. }) {
            last_resort = true;
            conclusion.end = End::Failed(unstorable(&cause));
            METRICS.errors.with_label_values(&[FailureCode::Unstorable.as_str()]).inc();
            warn!(cause = cause.as_dyn(), "a job's end was refused; it is recorded as failed");
        } else {
            error!(
                cause = cause.as_dyn(),
                "a job's end cannot be recorded; the job is handed back with its attempt spent"
            );
            attempt.worker.running.unrecorded(claim.job_id(), claim.epoch());
            return None;
        }
    }
}

/// Tries until Postgres has answered. An error whose cause may lie in this end is retried for as long as a lease, and
/// in a transaction of its own. What Postgres cannot hold is not retried: it could not hold it a moment later either.
async fn commit(
    attempt: &Attempt<'_>,
    conclusion: &mut Conclusion,
) -> Result<Concluded, RetryError<StoreError>> {
    let (worker, refused) = (attempt.worker, OnceLock::new());
    let try_again = |error: &StoreError| match error {
        StoreError::Refused { .. } | StoreError::Closed => false,
        StoreError::Unavailable(_) => true,
        StoreError::TooMuch(_) | StoreError::Broken { .. } => {
            refused.get_or_init(Instant::now).elapsed() < worker.lease.duration()
        }
    };
    let commit = || {
        conclusion.take_next = !worker.draining.is_cancelled();
        let (conclusion, alone) = (conclusion.clone(), refused.get().is_some());
        async move {
            if alone {
                worker.store.conclude_alone(conclusion).await
            } else {
                worker.store.conclude(conclusion).await
            }
        }
    };
    retry("recording a job's end", &worker.stop_waiting, try_again, commit).await
}

/// Makes a failure that any database can hold, whatever its encoding.
fn unstorable(cause: &StoreError) -> Failure {
    let cause = match cause {
        StoreError::Refused { sqlstate, message } => format!("({sqlstate}): {message}"),
        other => format!(": {other}"),
    };
    let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let message = format!("Postgres refused what the harness delivered {cause}");
    Failure::permanent(FailureCode::Unstorable, message.chars().map(plain).collect::<String>())
}

/// Returns the code of the failure that this end records, if it records one.
fn failure_of(end: &End) -> Option<FailureCode> {
    match end {
        End::Failed(failure) | End::Retry { failure, .. } => Some(failure.code),
        End::Succeeded(_) | End::Cancelled(_) | End::HandBack { .. } | End::Asks(_) => None,
    }
}

fn label(end: &End) -> &'static str {
    match end {
        End::Succeeded(_) => "succeeded",
        End::Failed(_) => "failed",
        End::Cancelled(_) => "cancelled",
        End::Retry { .. } => "retried",
        End::HandBack { .. } => "interrupted",
        End::Asks(_) => "asked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::Json;

    fn policy(max_attempts: u32) -> RetryPolicy {
        RetryPolicy { max_attempts, base_delay_ms: 100, max_delay_ms: 1_000 }
    }

    fn failure(retryable: bool) -> Outcome {
        Outcome::Failed(Failure { code: FailureCode::Crashed, message: "gone".to_owned(), retryable })
    }

    #[test]
    fn a_retryable_failure_retries_until_its_attempts_are_spent() {
        assert!(
            matches!(decide(failure(true), 0, &policy(2), 1.0), (End::Retry { delay, .. }, 1) if delay.as_millis() == 100)
        );
        assert!(matches!(decide(failure(true), 1, &policy(2), 1.0), (End::Failed(_), 2)));
        assert!(matches!(decide(failure(false), 0, &policy(2), 1.0), (End::Failed(_), 1)));
    }

    #[test]
    fn an_interruption_by_us_spends_no_attempt() {
        assert!(matches!(decide(Outcome::Interrupted, 1, &policy(2), 1.0), (End::HandBack { .. }, 1)));
        assert!(matches!(
            decide(Outcome::Succeeded(Json::null()), 1, &policy(2), 1.0),
            (End::Succeeded(_), 2)
        ));
        let cancelled = Outcome::Cancelled(Failure::permanent(FailureCode::Cancelled, ""));
        assert!(matches!(decide(cancelled, 0, &policy(2), 1.0), (End::Cancelled(_), 1)));
    }
}
