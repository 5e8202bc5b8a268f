//! Claim: asks the ledger for a job, for as long as it takes.

use job::JobSpec;
use service::{RetryError, retry};
use store::{Answer, ClaimRequest, StoreError};

use crate::metrics::METRICS;
use crate::worker::Worker;

/// The ledger's answer. Tries on through every trouble of Postgres's; the delivery stays with us meanwhile, so that
/// this slot takes no other.
///
/// An error is the message's own fault: Postgres cannot hold what is in it. `None` when we were told to stop first:
/// then the delivery goes back to the broker.
pub async fn claim(worker: &Worker, spec: &JobSpec) -> Result<Option<Answer>, StoreError> {
    let is_retryable = |error: &StoreError| !matches!(error, StoreError::Refused { .. });
    let message = job::encode(spec);
    loop {
        let request = || {
            worker.store.claim(ClaimRequest {
                worker: worker.lease.worker(),
                job_id: spec.job_id,
                session_id: spec.session_id.clone(),
                agent_id: spec.agent_id.clone(),
                user_id: spec.user_id.clone(),
                pool: spec.pool.clone(),
                message: message.clone(),
            })
        };
        let answer = retry("claiming a job", &worker.stop_waiting, is_retryable, request).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(RetryError::Stopped) => return Ok(None),
            Err(RetryError::Permanent(error)) => return Err(error),
        };
        METRICS.claims.with_label_values(&[label(&answer)]).inc();
        if matches!(answer, Answer::LeaseLost) {
            // The next heartbeat notices too, and gives us a new id.
            let renewed = worker.lease.renewed_within_a_beat();
            tokio::select! {
                () = renewed => continue,
                () = worker.stop_waiting.cancelled() => return Ok(None),
            }
        }
        return Ok(Some(answer));
    }
}

fn label(answer: &Answer) -> &'static str {
    match answer {
        Answer::Claimed(_) => "claimed",
        Answer::Finished(_) => "finished",
        Answer::Held => "held",
        Answer::Blocked => "blocked",
        Answer::NotDue => "not_due",
        Answer::OtherSession(_) => "other_session",
        Answer::LeaseLost => "lease_lost",
    }
}
