//! Intake: a delivery becomes a job, or a dead letter with its reason.

use job::{DecodeError, JobSpec, Limits, decode};
use queue::{Delivery, MAX_HEADER_BYTES};
use service::{RetryError, retry};
use store::StoreError;
use tracing::{error, warn};

use crate::metrics::METRICS;
use crate::worker::Worker;

/// Reads a delivery; its properties fill in what the body leaves out.
pub fn read(worker: &Worker, delivery: &Delivery) -> Result<JobSpec, DecodeError> {
    let limits = Limits {
        max_bytes: worker.settings.max_message_bytes,
        retention: worker.settings.retention,
        now_unix_ms: worker.lease.now_unix_ms(),
        replies: worker.settings.replies.clone(),
    };
    let headers = delivery.header_bytes();
    if headers > MAX_HEADER_BYTES {
        let problem = format!("got {headers} bytes, expected at most {MAX_HEADER_BYTES}");
        return Err(DecodeError { field: "headers".to_owned(), problem });
    }
    let mut spec = decode(&delivery.body, delivery.message_id(), &limits)?;
    // The job is in the pool whose queue it came from, whatever the body says.
    spec.pool = worker.settings.pool.clone();
    let fill = |field: &mut Option<String>, property: Option<&str>| {
        if field.is_none() {
            *field = property.map(str::to_owned);
        }
    };
    fill(&mut spec.reply_to, delivery.reply_to());
    fill(&mut spec.correlation_id, delivery.correlation_id());
    spec.traceparent = spec.traceparent.or_else(|| delivery.traceparent()?.parse().ok());
    // The properties come from outside as well.
    spec.check(&limits)?;
    Ok(spec)
}

/// Gives up a message that cannot be used here: a job that waits for it fails, and a copy goes into `harness.dead`.
/// If we die in between, are asked to stop or lose the lease, the message comes again, here or elsewhere, and finds the
/// job's end.
pub async fn refuse(worker: &Worker, delivery: Delivery, reason: &str, code: &'static str) {
    if fail_its_job(worker, &delivery, reason).await && bury(worker, &delivery, reason, code).await {
        delivery.settle().await;
    }
}

/// Fails the job that waits for the message. Returns whether the ledger has answered.
async fn fail_its_job(worker: &Worker, delivery: &Delivery, reason: &str) -> bool {
    let pool = &worker.settings.pool;
    let fail = || worker.dispatch.fail_its_job(delivery, pool, reason);
    let failed =
        retry("failing a job whose message is dead", &worker.stop_waiting, StoreError::is_retryable, fail);
    match worker.lease.during(failed).await {
        Some(Ok(())) => true,
        Some(Err(RetryError::Stopped)) | None => false,
        Some(Err(RetryError::Permanent(cause))) => {
            error!(
                message_id = delivery.message_id(),
                cause = cause.as_dyn(),
                "the job of a dead message was not failed"
            );
            true
        }
    }
}

/// Puts a copy into `harness.dead`. Returns whether it is there; only then may the delivery be acked.
pub async fn bury(worker: &Worker, delivery: &Delivery, reason: &str, code: &'static str) -> bool {
    let publish = || worker.dispatch.publisher.dead_letter(delivery, reason, code);
    match retry("publishing a dead letter", &worker.stop_waiting, |_| true, publish).await {
        Ok(()) => {
            warn!(message_id = delivery.message_id(), reason, code, "a message was dead-lettered");
            METRICS.dead_letters.with_label_values(&[code]).inc();
            true
        }
        Err(RetryError::Stopped | RetryError::Permanent(_)) => false,
    }
}
