//! Claim: asks the ledger for a job, for as long as it takes.

use std::sync::OnceLock;
use std::time::Instant;

use job::{JobSpec, OnBusy};
use service::{RetryError, retry, retry_about};
use store::{Answer, Ask, ClaimRequest, StoreError, Unwanted};
use tracing::{error, warn};

use crate::metrics::METRICS;
use crate::worker::Worker;

/// Returns the ledger's answer. Whatever trouble Postgres has, the claim is retried for as long as the lease lasts. The
/// delivery stays with us meanwhile, so that this slot takes no other.
///
/// An error is the message's own fault: Postgres cannot hold what is in it. `None` means that we were asked to stop,
/// that the lease is over, or that the claim was too much for Postgres for as long as a lease. Then the delivery goes
/// back to the broker for another worker, and the slot is free for other jobs.
pub async fn claim(worker: &Worker, spec: &JobSpec) -> Result<Option<Answer>, StoreError> {
    let too_much = OnceLock::new();
    let is_retryable = |error: &StoreError| match error {
        StoreError::Refused { .. } => false,
        StoreError::TooMuch(_) => too_much.get_or_init(Instant::now).elapsed() < worker.lease.duration(),
        StoreError::Unavailable(_) | StoreError::Broken { .. } | StoreError::Closed => true,
    };
    let about = || dispatch::job_span(spec, None);
    loop {
        let request =
            || worker.store.claim(ClaimRequest { worker: worker.lease.worker(), spec: spec.clone() });
        let claiming = retry_about(about, "claiming a job", &worker.stop_waiting, is_retryable, request);
        let answer = match worker.lease.during(claiming).await {
            Some(Ok(answer)) => answer,
            Some(Err(RetryError::Stopped)) | None => return Ok(None),
            Some(Err(RetryError::Permanent(cause @ StoreError::TooMuch(_)))) => {
                about().in_scope(|| {
                    warn!(cause = cause.as_dyn(), "a job cannot be claimed; its message goes back")
                });
                return Ok(None);
            }
            Some(Err(RetryError::Permanent(error))) => return Err(error),
        };
        METRICS.claims.with_label_values(&[label(&answer)]).inc();
        if matches!(answer, Answer::Drained) {
            // The drain mark behind this has not reached us yet, or is already over by our clock.
            worker.lease.sleep_one_beat().await;
        }
        if matches!(answer, Answer::LeaseLost) {
            // The next heartbeat notices this as well, and gives us a new id.
            let one_beat = worker.lease.sleep_one_beat();
            tokio::select! {
                () = one_beat => continue,
                () = worker.stop_waiting.cancelled() => return Ok(None),
            }
        }
        return Ok(Some(answer));
    }
}

/// Returns a job that is not run now as it was accepted, for what its `on_busy` and its `reply_to` ask for. Of another
/// tenant's job the message proves only the id, so it is read from the ledger; without an envelope there, it asks for
/// nothing. `None` means that we were asked to stop.
pub async fn as_accepted(worker: &Worker, spec: JobSpec) -> Option<JobSpec> {
    if spec.tenant.is_default() {
        return Some(spec);
    }
    let read = || worker.store.known_job(spec.job_id);
    let known = match retry("reading a job", &worker.stop_waiting, StoreError::is_retryable, read).await {
        Ok(known) => known,
        Err(RetryError::Stopped) => return None,
        Err(RetryError::Permanent(cause)) => {
            dispatch::job_span(&spec, None).in_scope(|| error!(cause = cause.as_dyn(), "a job was not read"));
            None
        }
    };
    let envelope = known.and_then(|known| known.message);
    let accepted = envelope.and_then(|envelope| job::decode_stored(&envelope).ok());
    Some(accepted.unwrap_or(JobSpec { reply_to: None, on_busy: OnBusy::Enqueue, ..spec }))
}

/// Applies the `on_busy` of a job that found its session busy. Returns whether that is done; if not, the job's message
/// must come again.
pub async fn apply_on_busy(worker: &Worker, spec: &JobSpec) -> bool {
    let (store, job_id) = (&worker.store, spec.job_id);
    let act = || async {
        match spec.on_busy {
            OnBusy::Enqueue => Ok(()),
            OnBusy::Reject => worker.dispatch.end_waiting(&[job_id], Unwanted::Rejected).await.map(drop),
            OnBusy::Interrupt => store.make_room(&[(job_id, Ask::Interrupt)]).await,
            OnBusy::Rollback => store.make_room(&[(job_id, Ask::Rollback)]).await,
        }
    };
    let acting = retry("making room in a session", &worker.stop_waiting, StoreError::is_retryable, act);
    match worker.lease.during(acting).await {
        Some(Ok(())) => true,
        Some(Err(RetryError::Stopped)) | None => false,
        Some(Err(RetryError::Permanent(cause))) => {
            error!(
                cause = cause.as_dyn(),
                on_busy = spec.on_busy.as_str(),
                "the job waits for its turn instead"
            );
            true
        }
    }
}

fn label(answer: &Answer) -> &'static str {
    match answer {
        Answer::Claimed(_) => "claimed",
        Answer::Finished(_) => "finished",
        Answer::Held => "held",
        Answer::Blocked => "blocked",
        Answer::NotDue => "not_due",
        Answer::AwaitingInput => "awaiting_input",
        Answer::OtherSession(_) => "other_session",
        Answer::NotAccepted => "not_accepted",
        Answer::LeaseLost => "lease_lost",
        Answer::Drained => "drained",
    }
}
