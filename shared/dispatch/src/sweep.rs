//! What is looked for now and then: rows that were forgotten between two states, rows whose message has vanished from
//! its queue, jobs that nobody wants, and blocked jobs that nothing else would release.
//!
//! Each sweep has a loop of its own: none holds up another one, or what is due. A round looks at a bounded number of
//! rows, however many there are.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use job::{Name, Trouble};
use queue::{BrokerStatus, jobs_queue};
use store::StoreError;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Dispatch;
use crate::tick::tick;

/// How often.
const EVERY: Duration = Duration::from_secs(2);
/// When a job whose publisher died in the middle comes due again; a slow confirm at worst doubles the message.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// When a queued job is looked for, whose queue is empty.
const VANISHED_AFTER: Duration = Duration::from_secs(60);

pub(crate) async fn run(dispatch: &Dispatch, stop: &CancellationToken) {
    let behind = Mutex::new(None);
    tokio::join!(
        every(dispatch, stop, "publishes that were never confirmed", || return_stuck(dispatch)),
        every(dispatch, stop, "messages that have vanished", || return_vanished(dispatch)),
        every(dispatch, stop, "jobs that nobody wants", || dispatch.end_unwanted()),
        every(dispatch, stop, "blocked jobs with nothing before them", || release_stranded(
            dispatch, &behind
        )),
    );
}

/// Sweeps until told to stop. A failure that lasts is logged once.
async fn every<F>(dispatch: &Dispatch, stop: &CancellationToken, what: &str, sweep: impl Fn() -> F)
where
    F: Future<Output = Result<(), StoreError>>,
{
    let mut clock = interval(EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = Trouble::default();
    while tick(&mut clock, stop).await {
        // Without a broker rows had better stay as they are.
        if !matches!(*dispatch.broker.status().borrow(), BrokerStatus::Ready { .. }) {
            continue;
        }
        match sweep().await {
            Ok(()) => drop(trouble.ends()),
            Err(error) if trouble.begins() => {
                warn!(cause = error.as_dyn(), "{what} cannot be looked for, trying on");
            }
            Err(_) => {}
        }
    }
}

async fn return_stuck(dispatch: &Dispatch) -> Result<(), StoreError> {
    let stuck = dispatch.store.return_stuck(STUCK_AFTER).await?;
    if stuck > 0 {
        info!(jobs = stuck, "jobs whose publish was never confirmed are due again");
    }
    Ok(())
}

async fn return_vanished(dispatch: &Dispatch) -> Result<(), StoreError> {
    for pool in dispatch.store.pools_queued_longer_than(VANISHED_AFTER).await? {
        if queue_is_empty(dispatch, &pool).await {
            let vanished = dispatch.store.return_vanished(&pool, VANISHED_AFTER).await?;
            info!(jobs = vanished, %pool, "jobs whose message has vanished from their queue are due again");
        }
    }
    Ok(())
}

/// Seen empty twice: a message on its way to a worker is in no queue, but its job is claimed a moment later.
async fn queue_is_empty(dispatch: &Dispatch, pool: &Name) -> bool {
    let queue = jobs_queue(pool);
    for pause in [Duration::from_secs(2), Duration::ZERO] {
        match dispatch.broker.depth(&queue).await {
            Ok(None) => {}
            Ok(Some(depth)) if depth.ready == 0 => {}
            Ok(Some(_)) | Err(_) => return false,
        }
        tokio::time::sleep(pause).await;
    }
    true
}

/// Goes on behind the session at which the round before has stopped.
async fn release_stranded(dispatch: &Dispatch, behind: &Mutex<Option<String>>) -> Result<(), StoreError> {
    let begin = behind.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (released, rest) = dispatch.store.release_stranded(begin.as_deref(), VANISHED_AFTER).await?;
    *behind.lock().unwrap_or_else(PoisonError::into_inner) = rest;
    if !released.is_empty() {
        warn!(jobs = released.len(), "blocked jobs with nothing before them were released");
    }
    Ok(())
}
