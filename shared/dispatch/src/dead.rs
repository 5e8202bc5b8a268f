//! Jobs whose message was given up: they fail, instead of waiting for a message that will not come.
//!
//! A message that the broker gave up after many deliveries gets a second chance first, because it is not
//! known whether a worker ever saw it.
//!
//! Every relay consumes from `harness.dead.sweep`, to which the broker sends a copy of each message that it
//! gives up. The letter itself stays in `harness.dead`. A consumer costs nothing while no message dies. A
//! copy is acked only when the ledger, or the broker, has answered, so a relay that is alive looks at each
//! copy. Looking twice is harmless. A worker that gives a message up calls [`Dispatch::fail_its_job`] itself.

use std::error::Error;
use std::time::Duration;

use anyhow::Context;
use job::{Backoff, Name, Trouble};
use queue::{DEAD_SWEEP_QUEUE, Delivery, PublishError, Slot, jobs_queue, pool_of_queue};
use store::{StoreError, Unwanted};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Span, error, warn};

use crate::{Dispatch, job_span};

/// How long to wait after Postgres or the broker has not answered.
const REST: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(30) };
/// How long [`Dispatch::sweep_dead_letters`] waits for a copy that another relay may have taken.
const TAKEN: Duration = Duration::from_secs(1);

pub(crate) async fn run(dispatch: &Dispatch, stop: &CancellationToken) {
    let mut slot = slot(dispatch);
    let mut trouble = Trouble::default();
    loop {
        let delivery = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            delivery = slot.next() => delivery,
        };
        let Some(delivery) = delivery else { return };
        let Err(error) = dispatch.bury(&delivery).await else {
            trouble.ends();
            delivery.settle().await;
            continue;
        };
        if trouble.begins() {
            let cause: &(dyn Error + 'static) = error.as_ref();
            warn!(cause, "messages that the broker gave up cannot be dealt with, retrying");
        }
        // The consumer is cancelled first, so that the delivery does not come back here at once.
        slot.pause().await;
        drop(delivery);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(REST.next_delay(trouble.failures(), 1.0)) => {}
        }
    }
}

fn slot(dispatch: &Dispatch) -> Slot {
    dispatch.broker.slot(DEAD_SWEEP_QUEUE, "dead-sweep")
}

impl Dispatch {
    /// Deals with the copies that wait now, so that the ledger knows of every dead message before a user
    /// decides about letters.
    pub async fn sweep_dead_letters(&self) -> anyhow::Result<()> {
        let waiting = self.broker.depth(DEAD_SWEEP_QUEUE).await.ok().flatten().map_or(0, |depth| depth.ready);
        if waiting == 0 {
            return Ok(());
        }
        let mut slot = slot(self);
        for _ in 0..waiting {
            let Ok(Some(delivery)) = timeout(TAKEN, slot.next()).await else { break };
            self.bury(&delivery).await?;
            delivery.settle().await;
        }
        slot.pause().await;
        Ok(())
    }

    /// Deals with one copy. A message that is not ours stays a dead letter and no more.
    async fn bury(&self, delivery: &Delivery) -> anyhow::Result<()> {
        // A message that could not be routed was in no queue. If its job is known, that is by another
        // message.
        let Some(death) = delivery.death() else { return Ok(()) };
        let Some(pool) = death.queue.as_deref().and_then(pool_of_queue) else { return Ok(()) };
        if death.is_second_chance {
            let queue = jobs_queue(&pool);
            match self.publisher.return_once(delivery, &queue).await {
                Ok(()) => {
                    let message_id = delivery.message_id();
                    warn!(queue, message_id, "a message was delivered too often; published again once");
                    return Ok(());
                }
                // What became of it is unknown, so it is tried once more. No later copy is looked at until
                // then.
                Err(error @ (PublishError::Unconfirmed { .. } | PublishError::Closed)) => {
                    return Err(error).context("publishing it again");
                }
                // Its queue is gone or full.
                Err(
                    error @ (PublishError::Returned { .. }
                    | PublishError::Nacked { .. }
                    | PublishError::TooLong { .. }),
                ) => {
                    warn!(cause = %error, "a message that was delivered too often cannot be published again")
                }
            }
        }
        Ok(self.fail_its_job(delivery, &pool, &death.reason).await?)
    }

    /// Ends the job of a message that was given up in a pool's queue, if the ledger knows the job and it
    /// waits for just this message. Its caller gets a reply. Safe to repeat.
    pub async fn fail_its_job(
        &self,
        delivery: &Delivery,
        pool: &Name,
        reason: &str,
    ) -> Result<(), StoreError> {
        let body = &delivery.body;
        let Some(job_id) = job::peek(body, delivery.message_id()).job_id else { return Ok(()) };
        let why = Unwanted::DeadLettered { pool, body, reason };
        // Nothing ends unless this is the job's own message, byte for byte.
        let spec = str::from_utf8(body).ok().and_then(|body| job::decode_stored(body).ok());
        let about = spec.as_ref().map_or_else(Span::none, |spec| job_span(spec, None));
        match self.end_waiting(&[job_id], why).await {
            Ok(0) => Ok(()),
            Ok(_) => {
                about.in_scope(|| warn!(reason, "a job has failed: its message is a dead letter"));
                Ok(())
            }
            // It would be refused forever, and no later copy would be looked at.
            Err(cause @ StoreError::Refused { .. }) => {
                about.in_scope(
                    || error!(%job_id, cause = cause.as_dyn(), "a job whose message is dead cannot be ended"),
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
