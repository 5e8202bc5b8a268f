//! What is looked for now and then: rows that were forgotten between two states, rows whose message has
//! vanished from its queue, jobs that are no longer wanted, and blocked jobs that nothing else would release.
//!
//! Each sweep has a loop of its own, so that it holds up neither another sweep nor what is due. A round looks
//! at a bounded number of rows, however many there are.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use job::Name;
use queue::jobs_queue;
use store::StoreError;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Dispatch;
use crate::tick::while_connected;

/// How often each of them runs.
const EVERY: Duration = Duration::from_secs(2);
/// After how long a job whose publisher died in the middle comes due again. A slow confirm at worst doubles
/// the message.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// How long a job must have been queued before its message is looked for.
const VANISHED_AFTER: Duration = Duration::from_secs(60);

pub(crate) async fn run(dispatch: &Dispatch, stop: &CancellationToken) {
    let behind = Mutex::new(None);
    tokio::join!(
        while_connected(
            dispatch,
            stop,
            EVERY,
            "publishes that were never confirmed cannot be looked for",
            || { return_stuck(dispatch) }
        ),
        while_connected(dispatch, stop, EVERY, "messages that have vanished cannot be looked for", || {
            return_vanished(dispatch)
        }),
        while_connected(dispatch, stop, EVERY, "jobs that are no longer wanted cannot be looked for", || {
            dispatch.end_unwanted()
        }),
        while_connected(
            dispatch,
            stop,
            EVERY,
            "blocked jobs with nothing before them cannot be looked for",
            || { release_stranded(dispatch, &behind) }
        ),
        while_connected(
            dispatch,
            stop,
            EVERY,
            "questions that nobody has answered in time cannot be looked for",
            || { time_out_inputs(dispatch) }
        ),
    );
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

/// Returns whether the queue was seen empty twice. Once is not enough: a message on its way to a worker is in
/// no queue, but its job is claimed a moment later.
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

async fn time_out_inputs(dispatch: &Dispatch) -> Result<(), StoreError> {
    let due = dispatch.store.time_out_inputs().await?;
    if !due.is_empty() {
        info!(jobs = due.len(), "jobs go on whose questions nobody has answered in time");
    }
    Ok(())
}

/// Continues after the session at which the previous round stopped.
async fn release_stranded(dispatch: &Dispatch, behind: &Mutex<Option<String>>) -> Result<(), StoreError> {
    let begin = behind.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (released, rest) = dispatch.store.release_stranded(begin.as_deref(), VANISHED_AFTER).await?;
    *behind.lock().unwrap_or_else(PoisonError::into_inner) = rest;
    if !released.is_empty() {
        warn!(jobs = released.len(), "blocked jobs with nothing before them were released");
    }
    Ok(())
}
