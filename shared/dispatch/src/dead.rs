//! Jobs whose message was given up: they fail, instead of waiting for what will not come.
//!
//! One that the broker gave up after many deliveries gets a second chance first: nobody knows whether a worker ever saw it.
//!
//! Every relay takes from `harness.dead.sweep`, to which the broker sends a copy of each message that it gives up; the
//! letter itself stays in `harness.dead`. A consumer costs nothing while nothing dies. The copy is acked when the
//! ledger, or the broker, has answered, so each is looked at, by whoever lives; looking twice is harmless. What a worker gives up it
//! tells the ledger itself, by [`Dispatch::fail_its_job`] as well.

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

/// The waits after Postgres or the broker has not answered.
const REST: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(30) };
/// How long [`Dispatch::sweep_dead`] waits for a copy that somebody else may have taken.
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
            warn!(cause, "messages that the broker gave up cannot be dealt with, trying on");
        }
        // Without a consumer first, so that it does not come back here at once.
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
    /// Looks at the copies that wait now, so that the ledger knows of every death before somebody decides about letters.
    pub async fn sweep_dead(&self) -> anyhow::Result<()> {
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

    /// Looks at one copy. What is no message of ours stays a dead letter and no more.
    async fn bury(&self, delivery: &Delivery) -> anyhow::Result<()> {
        // What could not be routed was in no queue: if its job is known, then by another message.
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
                // Where nothing is known, once more: nothing behind it is looked at until then.
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

    /// Ends the job of a message that was given up in a pool's queue, if the ledger knows it and it waits for just this
    /// message; its caller is told. Safe to repeat.
    pub async fn fail_its_job(
        &self,
        delivery: &Delivery,
        pool: &Name,
        reason: &str,
    ) -> Result<(), StoreError> {
        let body = &delivery.body;
        let Some(job_id) = job::glimpse(body, delivery.message_id()).job_id else { return Ok(()) };
        let why = Unwanted::DeadLettered { pool, body, reason };
        // Where it is not the job's own message to the letter, nothing ends.
        let spec = str::from_utf8(body).ok().and_then(|body| job::restore(body).ok());
        let about = spec.as_ref().map_or_else(Span::none, |spec| job_span(spec, None));
        match self.end_waiting(&[job_id], why).await {
            Ok(0) => Ok(()),
            Ok(_) => {
                about.in_scope(|| warn!(reason, "a job has failed: its message is a dead letter"));
                Ok(())
            }
            // Would be refused for ever, and nothing behind it would be looked at.
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
