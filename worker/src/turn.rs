//! A session's turn in a slot: its claimed job, and after that the next ones that the ledger hands over. Each is one
//! attempt.

use std::time::SystemTime;

use dispatch::Sending;
use job::{DecodeError, Failure, FailureCode, JobSpec, Json, TraceId};
use service::{RetryError, retry};
use store::{Claimed, Conclusion, End, Fenced, StoreError};
use tracing::{Instrument, error, warn};

use crate::attempt::{Arrival, Attempt, Given};
use crate::calls;
use crate::conclude::conclude;
use crate::execute::execute;
use crate::metrics::METRICS;
use crate::refusal::refused;
use crate::running::{Inherited, Reservation};
use crate::worker::Worker;

/// Runs a claimed job, and after it the session's next ones. Returns the first reply; the messages of the other jobs
/// are already acked.
pub async fn take(
    worker: &Worker,
    mut spec: JobSpec,
    mut claimed: Claimed,
    mut reservation: Reservation,
    mut arrival: Arrival,
) -> Option<Sending> {
    let mut replying = None;
    loop {
        let about = dispatch::job_span(&spec, Some(claimed.attempts + 1));
        let given = Given {
            input: std::mem::replace(&mut spec.input, Json::null()),
            session: std::mem::take(&mut claimed.session),
        };
        let running = run_job(worker, (&spec, given), &claimed, &reservation, arrival);
        let (next, reply) = running.instrument(about).await;
        drop(reservation);
        replying = replying.or(reply);
        let Some(mut next) = next else { return replying };
        let message = next.message.take().unwrap_or_default();
        // Its message may have come at the same time, and another slot asks the ledger for it.
        let inheriting = worker.running.inherit(next.claim.job_id(), next.claim.epoch());
        let inherited = worker.lease.during(inheriting).await;
        (spec, reservation) = match (job::decode_stored(&message), inherited) {
            (Ok(next), Some(Inherited::Place(reservation))) => (next, reservation),
            (Err(error), Some(Inherited::Place(_reservation))) => {
                fail_unreadable(worker, &next, &error).await;
                return replying;
            }
            (_, Some(Inherited::RunsAnew)) => return replying,
            // The heartbeat finds it among the unknown jobs and hands it back.
            (result, Some(Inherited::RunsStill) | None) => {
                let trace_id = result.as_ref().map_or(next.claim.job_id().into(), JobSpec::trace_id);
                cannot_be_taken(&next, trace_id);
                return replying;
            }
        };
        claimed = *next;
        arrival = Arrival { at: SystemTime::now(), claimed_from: None };
    }
}

/// Logs that a claimed job does not run here. The heartbeat hands it back.
fn cannot_be_taken(claimed: &Claimed, trace_id: TraceId) {
    let (job_id, (tenant, session_id)) = (claimed.claim.job_id(), claimed.claim.session());
    let tenant = tenant.unless_default();
    warn!(parent: None, %job_id, %session_id, tenant, %trace_id, "a claimed job cannot be taken here");
}

/// Ends a claimed job whose envelope in the ledger cannot be decoded, because no worker could run it. It gets no reply: the
/// envelope would say where to. If the end cannot be recorded, the heartbeat hands the job back.
pub async fn fail_unreadable(worker: &Worker, claimed: &Claimed, error: &DecodeError) {
    let failure = Failure::permanent(
        FailureCode::DeadLettered,
        format!("the job's envelope in the ledger cannot be decoded: {error}"),
    );
    let conclusion = Conclusion {
        claim: claimed.claim.clone(),
        end: End::Failed(failure.clone()),
        attempts: claimed.attempts,
        fold: None,
        take_next: false,
    };
    let record = || worker.store.conclude(conclusion.clone());
    let recorded =
        retry("recording a job's end", &worker.stop_waiting, StoreError::is_retryable, record).await;
    let (job_id, (tenant, session_id)) = (claimed.claim.job_id(), claimed.claim.session());
    let tenant = tenant.unless_default();
    match recorded {
        Ok(concluded) if concluded.recorded == Fenced::Done(()) => {
            METRICS.errors.with_label_values(&[failure.code.as_str()]).inc();
            METRICS.requests.with_label_values(&["failed"]).inc();
            warn!(parent: None, %job_id, %session_id, tenant, reason = failure.message, "a claimed job has failed");
        }
        // The lease is lost, or we were asked to stop.
        Ok(_) | Err(RetryError::Stopped) => {}
        Err(RetryError::Permanent(cause)) => {
            let cause = cause.as_dyn();
            error!(parent: None, %job_id, %session_id, tenant, cause, "the end of a claimed job cannot be recorded");
        }
    }
}

/// Makes one attempt at one job. Returns the session's next job, and the reply to this job's caller.
async fn run_job(
    worker: &Worker,
    (spec, given): (&JobSpec, Given),
    claimed: &Claimed,
    reservation: &Reservation,
    arrival: Arrival,
) -> (Option<Box<Claimed>>, Option<Sending>) {
    let mut attempt = Attempt::begin(worker, spec, claimed, reservation, arrival);
    let ended = match refused(&attempt, &given.session) {
        Some(refused) => refused,
        None => execute(&attempt, given).await,
    };
    match conclude(&mut attempt, ended).await {
        Some(concluded) => {
            calls::count_repaid(&attempt);
            (concluded.next, reply(&attempt, concluded.recorded))
        }
        None => (None, None),
    }
}

/// Sends the recorded end to the caller.
fn reply(attempt: &Attempt<'_>, recorded: Fenced<()>) -> Option<Sending> {
    METRICS.request_latency.observe(attempt.begun.elapsed().as_secs_f64());
    match recorded {
        Fenced::Done(()) => attempt.worker.dispatch.reply(attempt.spec, attempt.place()),
        Fenced::Lost => {
            let epoch = attempt.claimed.claim.epoch();
            warn!(epoch, "a stale end was refused: the job has another runner, or has ended");
            None
        }
    }
}
