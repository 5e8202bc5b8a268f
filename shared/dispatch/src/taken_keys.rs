//! Forgetting the keys of jobs that are held no longer. Their rows mean nothing by then, and only take space.

use std::time::Duration;

use store::{KeyCursor, Store, StoreError};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::tick::tick;

const EVERY: Duration = Duration::from_secs(60);
/// Looks of a round that found nothing to forget, at most: unique keys of jobs that live longer than their window.
const IN_VAIN: u32 = 10;

pub(crate) async fn run(store: &Store, stop: &CancellationToken) {
    let mut interval = interval(EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut behind = None;
    while tick(&mut interval, stop).await {
        if let Some(Err(error)) = stop.run_until_cancelled(forget(store, &mut behind)).await {
            warn!(cause = error.as_dyn(), "expired keys of jobs cannot be forgotten, trying again later");
        }
    }
}

/// Goes on where the round before stopped.
async fn forget(store: &Store, behind: &mut Option<KeyCursor>) -> Result<(), StoreError> {
    let mut in_vain = 0;
    while in_vain < IN_VAIN {
        let (forgotten, next) = store.forget_keys(*behind).await?;
        *behind = next;
        if next.is_none() {
            break;
        }
        in_vain += u32::from(forgotten == 0);
    }
    Ok(())
}
