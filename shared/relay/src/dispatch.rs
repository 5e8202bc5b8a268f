//! Due rows to the broker.
//!
//! `scheduled → publishing` is committed first, the publishing is done without a lock, and `publishing → queued` is
//! noted for what the broker confirmed. A relay that dies in between leaves rows in `publishing`; they come due again
//! and are published twice at worst, which the claim makes harmless.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{JobId, Name, SCHEMA};
use queue::{BrokerStatus, Message, PublishError, jobs_queue};
use store::{DueJob, StoreError};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::METRICS;
use crate::{Relay, tick, unwanted};

/// How often due rows are looked for, while there are none.
const POLL: Duration = Duration::from_millis(200);
/// Rows per transaction.
const BATCH: i64 = 512;
/// When a job whose publisher died in the middle comes due again; a slow confirm at worst doubles the message.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// When a job that the broker did not take comes due again.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// When a queued job is looked for, whose queue is empty.
const VANISHED_AFTER: Duration = Duration::from_secs(60);
/// How often stuck and vanished rows are looked for.
const SWEEP: Duration = Duration::from_secs(2);

pub(crate) async fn run(relay: &Relay, stop: &CancellationToken) {
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept = Instant::now();
    let mut failing = false;
    while tick(&mut poll, stop).await {
        // Without a broker rows had better stay due.
        if !matches!(*relay.broker.status().borrow(), BrokerStatus::Ready { .. }) {
            continue;
        }
        let mut result = publish_due(relay, stop).await;
        if result.is_ok() && swept.elapsed() >= SWEEP {
            swept = Instant::now();
            result = sweep(relay).await;
        }
        match result {
            Ok(()) => failing = false,
            // Told once, not five times a second.
            Err(error) if !failing => {
                failing = true;
                warn!(cause = error.as_dyn(), "due jobs cannot be read from Postgres, trying on");
            }
            Err(_) => {}
        }
    }
}

async fn publish_due(relay: &Relay, stop: &CancellationToken) -> Result<(), StoreError> {
    while !stop.is_cancelled() {
        let due = relay.store.take_due(BATCH).await?;
        let full = due.len() as i64 == BATCH;
        if !due.is_empty() {
            publish(relay, due).await?;
        }
        if !full {
            break;
        }
    }
    Ok(())
}

/// Publishes jobs that are in the state `publishing`, and notes what the broker confirmed. Returns how many.
///
/// What was not confirmed comes due again soon; the reason is logged.
pub async fn publish(relay: &Relay, due: Vec<DueJob>) -> Result<usize, StoreError> {
    let mut sending: FuturesUnordered<_> = due.into_iter().map(|job| send(relay, job)).collect();
    let mut confirmed = Vec::with_capacity(sending.len());
    let mut refused = Vec::new();
    let mut reason = None;
    while let Some((job_id, result)) = sending.next().await {
        match result {
            Ok(()) => confirmed.push(job_id),
            Err(error) => {
                refused.push(job_id);
                reason = Some(error);
            }
        }
    }
    if !confirmed.is_empty() {
        METRICS.published.inc_by(confirmed.len() as u64);
        relay.store.confirm(&confirmed).await?;
    }
    if let Some(reason) = reason {
        METRICS.refused.inc_by(refused.len() as u64);
        warn!(%reason, jobs = refused.len(), "the broker did not take all due jobs, they come due again");
        relay.store.unconfirmed(&refused, REFUSED_FOR).await?;
    }
    Ok(confirmed.len())
}

async fn send(relay: &Relay, job: DueJob) -> (JobId, Result<(), PublishError>) {
    let message = Message {
        message_id: Some(job.job_id.to_string()),
        ..Message::new(SCHEMA, job.message.into_bytes())
    };
    let queue = jobs_queue(&job.pool);
    let mut result = relay.publisher.publish(&queue, message.clone()).await;
    // A pool that had no worker yet: its queue is declared now, by whoever needs it first.
    if matches!(result, Err(PublishError::Returned { .. })) {
        if let Err(error) = relay.broker.declare_pool(&job.pool).await {
            warn!(cause = %error, pool = %job.pool, "the pool's queue cannot be declared");
        }
        result = relay.publisher.publish(&queue, message).await;
    }
    (job.job_id, result)
}

/// Rows that were forgotten between two states, rows whose message has vanished from its queue, and rows that nobody
/// wants.
async fn sweep(relay: &Relay) -> Result<(), StoreError> {
    let stuck = relay.store.return_stuck(STUCK_AFTER).await?;
    if stuck > 0 {
        info!(jobs = stuck, "jobs whose publish was never confirmed are due again");
    }
    for pool in relay.store.pools_queued_longer_than(VANISHED_AFTER).await? {
        if queue_is_empty(relay, &pool).await {
            let vanished = relay.store.return_vanished(&pool, VANISHED_AFTER).await?;
            info!(jobs = vanished, %pool, "jobs whose message has vanished from their queue are due again");
        }
    }
    unwanted::sweep(&relay.store, &relay.replies).await?;
    let released = relay.store.release_stranded(VANISHED_AFTER).await?;
    if !released.is_empty() {
        warn!(jobs = released.len(), "blocked jobs with nothing before them were released");
    }
    Ok(())
}

/// Seen empty twice: a message on its way to a worker is in no queue, but its job is claimed a moment later.
async fn queue_is_empty(relay: &Relay, pool: &Name) -> bool {
    let queue = jobs_queue(pool);
    for pause in [Duration::from_secs(2), Duration::ZERO] {
        match relay.broker.depth(&queue).await {
            Ok(None) => {}
            Ok(Some(depth)) if depth.ready == 0 => {}
            Ok(Some(_)) | Err(_) => return false,
        }
        tokio::time::sleep(pause).await;
    }
    true
}
