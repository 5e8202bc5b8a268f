//! A slot: one job at a time, from delivery to ack.

use std::future::Future;
use std::time::{Duration, SystemTime};

use dispatch::Sending;
use job::JobSpec;
use queue::{Delivery, Slot};
use store::Answer;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{Instrument, Span, debug, info};

use crate::attempt::Arrival;
use crate::memory::OnItsWay;
use crate::running::Reservation;
use crate::worker::Worker;
use crate::{claim, input, intake, turn};

/// How often a second delivery looks at what became of the first one.
const CLAIM_POLL: Duration = Duration::from_millis(20);

/// How long a slot waits for its reply; a healthy broker confirms it in a few milliseconds.
const REPLIED_PROMPTLY: Duration = Duration::from_millis(100);

/// Takes jobs until the worker drains. The slot's delivery is acked when the slot is free again, so that the broker
/// never hands us more than we can run.
pub async fn run(worker: &Worker, mut slot: Slot) {
    let (mark, machine) = (&worker.mark, &worker.machine);
    loop {
        // Without a lease, or on a machine that lacks what a run needs, nothing can be done with a message here, but
        // perhaps elsewhere.
        let (leased, fit) = (worker.lease.is_fresh(), machine.is_fit());
        if !leased || !fit {
            slot.pause().await;
        }
        if mark.is_set() {
            slot.pause().await;
            let _parked = mark.park();
            tokio::select! {
                biased;
                () = worker.draining.cancelled() => break,
                () = mark.until_cleared() => continue,
            }
        }
        let delivery = tokio::select! {
            biased;
            () = worker.draining.cancelled() => break,
            () = mark.until_set() => continue,
            () = machine.unfit(), if fit => continue,
            () = machine.fit(), if !fit => continue,
            () = worker.lease.sleep_one_beat(), if !leased => continue,
            delivery = slot.next(), if leased && fit => delivery,
            () = worker.lease.over(), if leased => continue,
        };
        let Some(delivery) = delivery else { break };
        serve(worker, &mut slot, delivery).await;
    }
    slot.pause().await;
}

/// Reads a delivery and goes on with its job, unless another slot has it. A job of an unknown agent leaves a copy of
/// its message in `harness.dead`, and fails. If the lease ends before the ledger has taken the message, the message
/// goes back to the broker, for another worker.
async fn serve(worker: &Worker, slot: &mut Slot, delivery: Delivery) {
    let delivered = SystemTime::now();
    let mut room = Some(worker.memory.arrives(delivery.body.len()).await);
    let spec = match intake::read(worker, &delivery) {
        Ok(spec) => spec,
        Err(_) if job::is_input(&delivery.body) => return input::take(worker, delivery).await,
        Err(error) => return intake::refuse(worker, delivery, &error.to_string(), "undecodable").await,
    };
    if let Err(unknown) = worker.settings.agents.get(&spec.agent_id) {
        room = None;
        let burying = intake::bury(worker, &delivery, &unknown.message, "unknown_agent");
        if !burying.instrument(about(&spec)).await {
            return;
        }
    }
    match worker.lease.during(reserve_job(worker, &spec, &mut room)).await {
        Some(Some(reservation)) => {
            claim_and_work(worker, slot, (delivery, delivered, room), spec, reservation).await
        }
        Some(None) => delivery.settle().await,
        None => {}
    }
}

/// Makes a log span for the job. Before the claim it is made only for what is unusual, because a span would slow down
/// every job.
fn about(spec: &JobSpec) -> Span {
    dispatch::job_span(spec, None)
}

/// Claims the job, and does what the ledger's answer asks for.
async fn claim_and_work(
    worker: &Worker,
    slot: &mut Slot,
    (mut delivery, delivered, room): (Delivery, SystemTime, Option<OnItsWay<'_>>),
    spec: JobSpec,
    reservation: Reservation,
) {
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
    drop(room);
    let ack_by = Instant::now() + worker.settings.ack_after;
    match answer {
        Answer::Claimed(mut claimed) => {
            // The job runs for longer than its texts are needed.
            let stored = claimed.message.take().map(|message| job::decode_stored(&message));
            let spec = match stored.transpose() {
                Ok(accepted) => accepted.unwrap_or(spec),
                Err(error) => {
                    turn::fail_unreadable(worker, &claimed, &error).await;
                    return delivery.settle().await;
                }
            };
            delivery.body = Vec::new();
            let arrival = Arrival { at: delivered, claimed_from: Some(claiming) };
            let working = turn::take(worker, spec, *claimed, reservation, arrival);
            settle_when_done(slot, delivery, working, ack_by).await;
        }
        Answer::Finished(state) => {
            let said = || debug!(%state, "delivered again after its end");
            reply_again(worker, slot, delivery, spec, ack_by, said).await;
        }
        Answer::AwaitingInput => {
            let said = || debug!("delivered again while it waits for a person");
            reply_again(worker, slot, delivery, spec, ack_by, said).await;
        }
        Answer::OtherSession(session) => {
            let reason = format!(
                "job_id: got {}, which is taken by a job of session {session}, expected a new id",
                spec.job_id
            );
            intake::refuse(worker, delivery, &reason, "job_id_taken").instrument(about(&spec)).await;
        }
        Answer::NotAccepted => {
            let reason = format!(
                "tenant: got \"{}\", and the ledger does not know the job, expected \"default\"",
                spec.tenant
            );
            intake::refuse(worker, delivery, &reason, "tenant_not_accepted").instrument(about(&spec)).await;
        }
        Answer::Blocked => {
            // The end of the job before it may already have given it to another slot of ours, which waits for the place.
            drop(reservation);
            let Some(spec) = claim::as_accepted(worker, spec).await else { return };
            if claim::apply_on_busy(worker, &spec).instrument(about(&spec)).await {
                delivery.settle().await;
            }
        }
        Answer::Held | Answer::NotDue => {
            drop(reservation);
            delivery.settle().await;
        }
        // The delivery goes back to the broker, for another worker.
        Answer::Drained | Answer::LeaseLost => {}
    }
}

/// Replies once more: the worker that ran the job may have died before its reply was out.
async fn reply_again(
    worker: &Worker,
    slot: &mut Slot,
    delivery: Delivery,
    spec: JobSpec,
    ack_by: Instant,
    said: impl FnOnce(),
) {
    let Some(spec) = claim::as_accepted(worker, spec).await else { return };
    let replying = about(&spec).in_scope(|| {
        said();
        worker.dispatch.reply(&spec, spec.traceparent)
    });
    settle_when_replied(slot, delivery, replying, ack_by).await;
}

/// Acks the delivery when its job is done and the reply is out, or at `ack_by` if that comes first.
async fn settle_when_done(
    slot: &mut Slot,
    delivery: Delivery,
    working: impl Future<Output = Option<Sending>>,
    ack_by: Instant,
) {
    tokio::pin!(working);
    tokio::select! {
        replying = &mut working => settle_when_replied(slot, delivery, replying, ack_by).await,
        () = sleep_until(ack_by) => {
            // The job is safe in the ledger. Once its message is acked, the broker's delivery-ack timeout has no
            // reason to close the channel. Without a consumer, the broker sends this busy slot no other message.
            slot.pause().await;
            delivery.settle().await;
            drop(working.await);
        }
    }
}

/// Acks the delivery of an ended job when its reply is out, or after `ACK_AFTER_S`, as for a job that runs. If we die
/// before that, the message comes again and the reply is sent again. A slow reply does not hold up the slot.
async fn settle_when_replied(
    slot: &mut Slot,
    mut delivery: Delivery,
    replying: Option<Sending>,
    ack_by: Instant,
) {
    let Some(mut replying) = replying.filter(|replying| replying.prompt) else {
        return delivery.settle().await;
    };
    match timeout(REPLIED_PROMPTLY, replying.done()).await {
        Ok(true) => return delivery.settle().await,
        Ok(false) => return,
        Err(_) => {}
    }
    // The slot gives up its consumer, so that its next one can get another message while this one is unacked.
    slot.pause().await;
    delivery.body = Vec::new();
    tokio::spawn(async move {
        match timeout_at(ack_by, replying.done()).await {
            Ok(true) => {}
            // The message goes back to the broker, and the worker that gets it next replies.
            Ok(false) => return,
            Err(_) => info!("the message is acked before the reply is out, because the reply is slow"),
        }
        delivery.settle().await;
    });
}

/// Reserves the job. While another slot claims or runs it, this waits for the outcome. Returns `None` when the message
/// is one too many: the ledger said, after the message arrived, that the job runs here. What the running table says is
/// not enough for that, because this process may have been suspended for longer than its lease lasts, and the message
/// may be the one of a rescued job.
async fn reserve_job(
    worker: &Worker,
    spec: &JobSpec,
    room: &mut Option<OnItsWay<'_>>,
) -> Option<Reservation> {
    let arrived = Instant::now();
    loop {
        if let Some(reservation) = worker.running.reserve(spec.job_id) {
            return Some(reservation);
        }
        if worker.running.is_listed_since(spec.job_id, arrived) {
            return None;
        }
        // Others do not wait for what this waits for.
        *room = None;
        sleep(CLAIM_POLL).await;
    }
}
