//! A slot: one job at a time, from delivery to ack.

use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use dispatch::Sending;
use harness::Stop;
use job::{Failure, FailureCode, JobSpec, Outcome};
use queue::{Delivery, Slot};
use service::retry;
use store::{Answer, Claimed, Fenced, StoreError, Suspicion};
use tokio::time::{timeout, timeout_at};
use tracing::{Instrument, debug, info, warn};

use crate::attempt::{Arrival, Attempt};
use crate::execute::{Ended, Execution};
use crate::metrics::METRICS;
use crate::running::{Company, Reserved, Seat};
use crate::worker::Worker;
use crate::{claim, conclude, intake};

/// How often a second delivery looks whether the first one's claim is through.
const CLAIM_POLL: Duration = Duration::from_millis(20);

/// How long a slot waits for its reply; a broker that is well confirms it in a few milliseconds.
const REPLIED_PROMPTLY: Duration = Duration::from_millis(100);

/// When a suspect is looked at again that found another one here.
const SUSPECT_WAIT: Duration = Duration::from_secs(1);
/// How long a suspect waits to be alone; then it runs beside others.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(60);

/// Takes jobs until the worker drains. The slot's delivery is acked when the slot is free again, so that the broker
/// never hands us more than we can run.
pub async fn run(worker: &Worker, mut slot: Slot) {
    let (mark, machine) = (worker.lease.mark(), &worker.machine);
    loop {
        // Without Postgres there is nothing to be done with a message here, but perhaps elsewhere; nor on a machine that lacks
        // what a run needs.
        let fit = machine.is_fit();
        if !worker.lease.is_fresh() || !fit {
            slot.pause().await;
        }
        if mark.stands() {
            slot.pause().await;
            let _parked = mark.park();
            tokio::select! {
                biased;
                () = worker.draining.cancelled() => break,
                () = mark.lifted() => continue,
            }
        }
        let delivery = tokio::select! {
            biased;
            () = worker.draining.cancelled() => break,
            () = mark.set_up() => continue,
            () = machine.unfit(), if fit => continue,
            () = machine.fit(), if !fit => continue,
            delivery = async {
                while !worker.lease.is_fresh() {
                    worker.lease.renewed_within_a_beat().await;
                }
                slot.next().await
            }, if fit => delivery,
        };
        let Some(delivery) = delivery else { break };
        serve(worker, &mut slot, delivery).await;
    }
    slot.pause().await;
}

async fn serve(worker: &Worker, slot: &mut Slot, delivery: Delivery) {
    let delivered = SystemTime::now();
    let spec = match intake::read(worker, &delivery) {
        Ok(spec) => spec,
        Err(error) => return intake::refuse(worker, delivery, &error.to_string(), "undecodable").await,
    };
    // What is usual says nothing before the claim: a span for it would cost each job.
    let about = |spec: &JobSpec| dispatch::job_span(spec, None);
    if worker.settings.agents.get(&spec.agent_id).is_none() {
        let reason = unknown_agent(&spec).message;
        let burying = intake::bury(worker, &delivery, &reason, "unknown_agent");
        if !burying.instrument(about(&spec)).await {
            return;
        }
    }
    let Some(seat) = take_seat(worker, &spec).await else { return delivery.settle().await };
    let claiming = SystemTime::now();
    let answer = match claim::claim(worker, &spec).await {
        Ok(Some(answer)) => answer,
        Ok(None) => return,
        Err(error) => {
            let reason = error.to_string();
            let refusing = intake::refuse(worker, delivery, &reason, "unstorable");
            return refusing.instrument(about(&spec)).await;
        }
    };
    match answer {
        Answer::Claimed(claimed) => {
            let arrival = Arrival { at: delivered, claimed_from: Some(claiming) };
            let work = run_session(worker, spec, *claimed, seat, arrival);
            tokio::pin!(work);
            let ack_by = tokio::time::Instant::now() + worker.settings.ack_after;
            let early = tokio::time::sleep_until(ack_by);
            tokio::select! {
                replying = &mut work => settle_when_replied(slot, delivery, replying, ack_by).await,
                () = early => {
                    // The job is safe in the ledger. Without its message the broker's delivery-ack timeout has
                    // nothing to close the channel for; without a consumer it sends this busy slot no other.
                    slot.pause().await;
                    delivery.settle().await;
                    drop(work.await);
                }
            }
        }
        Answer::Finished(state) => {
            let replying = about(&spec).in_scope(|| {
                debug!(%state, "delivered again after its end");
                worker.dispatch.reply(&spec, spec.traceparent)
            });
            let ack_by = tokio::time::Instant::now() + worker.settings.ack_after;
            settle_when_replied(slot, delivery, replying, ack_by).await;
        }
        Answer::OtherSession(session) => {
            let reason = format!(
                "job_id: got {}, which is taken by a job of session {session}, expected a new id",
                spec.job_id
            );
            intake::refuse(worker, delivery, &reason, "job_id_taken").instrument(about(&spec)).await;
        }
        Answer::Blocked => {
            if claim::mind_the_busy(worker, &spec).instrument(about(&spec)).await {
                delivery.settle().await;
            }
        }
        Answer::Held | Answer::NotDue | Answer::LeaseLost => delivery.settle().await,
        // Back to the broker, for another worker.
        Answer::Drained => {}
    }
}

/// Acks the delivery of an ended job when its reply is out, or after `ACK_AFTER_S` like one of a job that runs; were we to die
/// before, the message would bring the reply again. A reply that takes its time does not take the slot's.
async fn settle_when_replied(
    slot: &mut Slot,
    mut delivery: Delivery,
    replying: Option<Sending>,
    ack_by: tokio::time::Instant,
) {
    let Some(mut replying) = replying.filter(|replying| replying.prompt) else {
        return delivery.settle().await;
    };
    match timeout(REPLIED_PROMPTLY, replying.done()).await {
        Ok(true) => return delivery.settle().await,
        Ok(false) => return,
        Err(_) => {}
    }
    // Without its consumer, the slot may have another message beside this one.
    slot.pause().await;
    delivery.body = Vec::new();
    tokio::spawn(async move {
        match timeout_at(ack_by, replying.done()).await {
            Ok(true) => {}
            // Back to the broker: who gets it next replies.
            Ok(false) => return,
            Err(_) => info!("the message is acked before the reply is out, which is slow"),
        }
        delivery.settle().await;
    });
}

/// A seat for the job; `None` when another slot of this worker runs it already, so that this message is one too many.
/// While another slot claims it, what comes of that is waited for: until the ledger has the job, every message counts.
async fn take_seat(worker: &Worker, spec: &JobSpec) -> Option<Seat> {
    loop {
        match worker.running.reserve(spec.job_id) {
            Reserved::Seat(seat) => return Some(seat),
            Reserved::Runs => return None,
            Reserved::Claiming => tokio::time::sleep(CLAIM_POLL).await,
        }
    }
}

/// Runs a claimed job, and after it the session's next ones that the ledger hands us, each in this slot. Returns the first
/// reply: the others' messages are acked already.
async fn run_session(
    worker: &Worker,
    mut spec: JobSpec,
    mut claimed: Claimed,
    mut seat: Seat,
    mut arrival: Arrival,
) -> Option<Sending> {
    let mut replying = None;
    loop {
        let about = dispatch::job_span(&spec, Some(claimed.attempts + 1));
        let (next, reply) = run_job(worker, &spec, &claimed, &seat, arrival).instrument(about).await;
        drop(seat);
        replying = replying.or(reply);
        let Some(next) = next else { return replying };
        let message = next.message.as_deref().unwrap_or_default();
        let reserved = worker.running.reserve(next.job_id);
        (spec, seat) = match (job::restore(message), reserved) {
            (Ok(next), Reserved::Seat(seat)) => (next, seat),
            // The heartbeat finds it a stranger and hands it back.
            (result, _) => {
                let trace_id = result.as_ref().map_or(next.job_id.into(), JobSpec::trace_id);
                let (job_id, session_id, error) = (next.job_id, next.session_id, result.err());
                warn!(parent: None, %job_id, session_id, %trace_id, cause = ?error, "the session's next job cannot be taken here");
                return replying;
            }
        };
        claimed = *next;
        arrival = Arrival { at: SystemTime::now(), claimed_from: None };
    }
}

/// One attempt at one job. Returns the session's next job, and the reply to this one's caller.
async fn run_job(
    worker: &Worker,
    spec: &JobSpec,
    claimed: &Claimed,
    seat: &Seat,
    arrival: Arrival,
) -> (Option<Box<Claimed>>, Option<Sending>) {
    let started = Instant::now();
    let mut attempt = Attempt::begin(worker, spec, claimed, arrival);
    let stop = seat.begin(claimed.epoch);
    if claimed.attempts == 0 {
        let waited_ms = worker.lease.now_unix_ms().saturating_sub(spec.job_id.unix_ms());
        METRICS.start_wait.observe(waited_ms as f64 / 1e3);
    }
    let concluded = if let Some(failure) = conclude::hopeless(spec, claimed) {
        conclude::give_up(&mut attempt, failure).await
    } else if claimed.suspicion.is_some_and(|suspicion| !seat.may_run_as_suspect(company(suspicion))) {
        conclude::postpone(&mut attempt, SUSPECT_WAIT).await
    } else {
        worker.pace.started();
        let ended = match worker.settings.agents.get(&spec.agent_id) {
            Some(harness) => {
                let mut run = attempt.run();
                let (store, worker_id, place) = (&worker.store, attempt.worker_id, run.place());
                let (max_session_bytes, patience) =
                    (worker.settings.max_session_bytes, worker.lease.duration());
                let execution = Execution {
                    store,
                    machine: &worker.machine,
                    worker: worker_id,
                    spec,
                    claimed,
                    stop,
                    max_session_bytes,
                    patience,
                    place,
                };
                let ended = tokio::select! {
                    ended = execution.run(harness.as_ref()) => ended,
                    never = clear(&attempt, seat) => match never {},
                };
                if let Some(Outcome::Failed(failure)) = &ended.outcome {
                    run.fail(failure.code.as_str());
                }
                ended
            }
            None => Ended { outcome: Some(Outcome::Failed(unknown_agent(spec))), session: None },
        };
        worker.pace.ended(started.elapsed());
        conclude::conclude(&mut attempt, ended).await
    };
    let Some(concluded) = concluded else { return (None, None) };
    METRICS.request_latency.observe(started.elapsed().as_secs_f64());
    let replying = match concluded.recorded {
        Fenced::Done(()) => worker.dispatch.reply(spec, attempt.place()),
        Fenced::Lost => {
            worker.running.stop(spec.job_id, claimed.epoch, Stop::LeaseLost);
            warn!(epoch = claimed.epoch, "a stale end was refused: the job has another runner, or has ended");
            None
        }
    };
    (concluded.next, replying)
}

/// Beside which other suspects one may run.
fn company(suspicion: Suspicion) -> Company {
    match suspicion {
        Suspicion { shared: true, .. } => Company::Alone,
        Suspicion { waited, .. } if waited < SUSPECT_PATIENCE => Company::First,
        Suspicion { .. } => Company::Any,
    }
}

/// Clears a suspect when it has outlived the time after which it killed: first in the ledger, then here. Never ends.
async fn clear(attempt: &Attempt<'_>, seat: &Seat) -> Infallible {
    let (worker, claimed) = (attempt.worker, attempt.claimed);
    if let Some(killed_after) = claimed.suspicion.and_then(|suspicion| suspicion.killed_after) {
        tokio::time::sleep(killed_after).await;
        let clear = || worker.store.clear_suspicion(attempt.worker_id, claimed.job_id, claimed.epoch);
        let cleared =
            retry("clearing a suspect", &worker.stop_waiting, StoreError::is_retryable, clear).await;
        if let Ok(Fenced::Done(())) = cleared {
            seat.is_cleared();
            info!(
                ran_s = killed_after.as_secs(),
                "no suspect any more: it has outlived the deaths of its workers"
            );
        }
    }
    std::future::pending().await
}

fn unknown_agent(spec: &JobSpec) -> Failure {
    let problem = format!("agent_id: got \"{}\", expected an agent of this pool's workers", spec.agent_id);
    Failure::permanent(FailureCode::UnknownAgent, problem)
}
