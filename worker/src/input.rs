//! Input: a person's answer that came as a message on the pool's queue.
//!
//! A message alone proves no tenant, so that it answers jobs of the tenant `default` alone. One that cannot count is a dead
//! letter with its reason; one that was taken before is acked.

use job::{Input, Tenant};
use queue::Delivery;
use service::{RetryError, retry};
use store::StoreError;
use tracing::info;

use crate::intake;
use crate::worker::Worker;

/// Takes an answer to the ledger. If the lease ends before that, the message goes back to the broker.
pub async fn take(worker: &Worker, delivery: Delivery) {
    let refused = match job::decode_input(&delivery.body) {
        Ok(input) => match answer(worker, &input).await {
            Ok(None) => return delivery.settle().await,
            Ok(Some(refused)) => refused,
            Err(NotAsked) => return,
        },
        Err(error) => (error.to_string(), "undecodable"),
    };
    let (reason, code) = refused;
    if intake::bury(worker, &delivery, &reason, code).await {
        delivery.settle().await;
    }
}

/// The ledger was not asked: we are stopping, or have no lease.
struct NotAsked;

/// Returns why the answer does not count, if it does not.
async fn answer(worker: &Worker, input: &Input) -> Result<Option<(String, &'static str)>, NotAsked> {
    let tenant = Tenant::default();
    let ask = || worker.store.answer(None, input, Some(&tenant));
    let asking = retry("answering a job", &worker.stop_waiting, StoreError::is_retryable, ask);
    let (job_id, call_id) = (input.job_id, &input.call_id);
    match worker.lease.during(asking).await {
        Some(Ok(answered)) => {
            let refused = answered.refused(call_id);
            if refused.is_none() {
                info!(%job_id, %call_id, "a person has answered");
            }
            Ok(refused.map(|(field, problem)| (format!("{field}: {problem}"), "input_refused")))
        }
        Some(Err(RetryError::Permanent(cause))) => Ok(Some((cause.to_string(), "unstorable"))),
        Some(Err(RetryError::Stopped)) | None => Err(NotAsked),
    }
}
