//! Dates from the future: what was written while Postgres's clock was ahead.
//!
//! They are looked for whenever a watch over the leases begins, including when a process starts, because the
//! clock may have been corrected while no process ran. This has a loop of its own, so that it holds up no
//! rescue.

use std::time::Duration;

use job::Trouble;
use store::{Redating, Store, StoreError};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::tick::tick;

/// How often a part of the rows is looked at.
const BEAT: Duration = Duration::from_secs(1);

/// Looks for them each time a watch has begun.
pub(crate) async fn run(store: &Store, begun: &Notify, stop: &CancellationToken) {
    while stop.run_until_cancelled(begun.notified()).await.is_some() {
        redate(store, stop).await;
    }
}

async fn redate(store: &Store, stop: &CancellationToken) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut walk, mut trouble) = (Redating::default(), Trouble::default());
    while tick(&mut beat, stop).await {
        match redate_part(store, &mut walk).await {
            Ok(true) => drop(trouble.ends()),
            Ok(false) => break,
            Err(error) if trouble.begins() => {
                warn!(cause = error.as_dyn(), "dates from the future cannot be looked for, retrying");
            }
            Err(_) => {}
        }
    }
    if walk.jobs > 0 {
        warn!(jobs = walk.jobs, "jobs that were dated in the future wait no longer than they were meant to");
    }
}

/// Redates a part of the rows. Returns whether there may be more.
async fn redate_part(store: &Store, walk: &mut Redating) -> Result<bool, StoreError> {
    let workers = store.redate_workers().await?;
    Ok(store.redate_jobs(walk).await? || workers)
}
