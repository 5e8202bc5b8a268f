//! Refusal: which claimed jobs are not run, or not yet; and beside which others a job may run that is suspected of
//! killing workers.

use std::convert::Infallible;
use std::time::Duration;

use job::{Failure, FailureCode, JobId, JobSpec, POISON_DEATHS};
use service::retry;
use store::{Claimed, Fenced, SessionState, StoreError, Suspicion};
use tracing::info;

use crate::attempt::{Attempt, Ended};
use crate::fold::{Beginning, Whole};
use crate::running::Isolation;

/// How long a suspect is postponed when it finds another one here.
const SUSPECT_WAIT: Duration = Duration::from_secs(1);
/// How long a suspect waits to be alone before it runs beside others.
const SUSPECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the end of an attempt on this session that is not to be run; `None` if it is to be run.
pub fn refused(attempt: &Attempt<'_>, session: &SessionState) -> Option<Ended> {
    let claimed = attempt.claimed;
    if let Some(failure) = hopeless(attempt.spec, claimed) {
        return Some(Ended::Refused(failure, to_be_folded(session, attempt.spec.job_id)));
    }
    let suspicion = claimed.suspicion?;
    (!attempt.reservation.may_run_as_suspect(isolation(suspicion))).then_some(Ended::Postponed(SUSPECT_WAIT))
}

/// Returns why a claimed job is never to be run again; `None` if it may be run.
fn hopeless(spec: &JobSpec, claimed: &Claimed) -> Option<Failure> {
    let (attempts, deaths) = (claimed.attempts, claimed.deaths);
    if deaths >= POISON_DEATHS {
        let message = format!("{deaths} workers died while they ran it");
        return Some(Failure::permanent(FailureCode::Poison, message));
    }
    if attempts >= spec.retry.max_attempts {
        let most = spec.retry.max_attempts;
        let message =
            format!("no attempt is left: {attempts} of {most} failed, {deaths} by the death of the worker");
        return Some(Failure::permanent(FailureCode::WorkerLost, message));
    }
    claimed.remaining.is_some_and(|left| left.is_zero()).then(overdue)
}

/// Returns the failure of a job whose deadline has passed.
pub fn overdue() -> Failure {
    Failure::permanent(FailureCode::DeadlineExceeded, "its deadline_ms was over before it was done")
}

/// Returns the session as it is now, if the job's end writes it whole.
fn to_be_folded(state: &SessionState, job_id: JobId) -> Option<Whole> {
    let Beginning { session, parts, .. } = Beginning::read(state, job_id).ok()?;
    Whole::if_due(parts, session)
}

/// Returns beside which other suspects this one may run.
fn isolation(suspicion: Suspicion) -> Isolation {
    match suspicion {
        Suspicion { shared: true, .. } => Isolation::Alone,
        Suspicion { waited, .. } if waited < SUSPECT_TIMEOUT => Isolation::First,
        Suspicion { .. } => Isolation::Any,
    }
}

/// Clears a suspect once it has run for longer than it ever did before a worker's death: first in the ledger, then
/// here. Never ends.
pub async fn clear(attempt: &Attempt<'_>) -> Infallible {
    let (worker, claimed) = (attempt.worker, attempt.claimed);
    if let Some(killed_after) = claimed.suspicion.and_then(|suspicion| suspicion.killed_after) {
        tokio::time::sleep(killed_after).await;
        let clear = || worker.store.clear_suspicion(&claimed.claim);
        let cleared =
            retry("clearing a suspect", &worker.stop_waiting, StoreError::is_retryable, clear).await;
        if let Ok(Fenced::Done(())) = cleared {
            attempt.reservation.clear_suspicion();
            info!(
                ran_s = killed_after.as_secs(),
                "no longer a suspect: it has run for longer than before any worker's death"
            );
        }
    }
    std::future::pending().await
}
