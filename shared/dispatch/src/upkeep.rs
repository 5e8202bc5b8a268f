//! What the ledger needs done from time to time.

use std::time::Duration;

use store::{Store, StoreError};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::tick::tick;

const EVERY: Duration = Duration::from_secs(15 * 60);
/// How many times accounts are folded at a time. The busy ones are folded by those who reserve.
const FOLDS: usize = 100;
const FORGET_WORKERS_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) async fn run(store: &Store, retention: Duration, stop: &CancellationToken) {
    let mut interval = interval(EVERY);
    while tick(&mut interval, stop).await {
        if let Err(error) = keep_up(store, retention).await {
            warn!(cause = error.as_dyn(), "the ledger's upkeep failed, trying again later");
        }
    }
}

/// Does every step, also behind one that fails. Returns the first error.
async fn keep_up(store: &Store, retention: Duration) -> Result<(), StoreError> {
    let steps = [
        partitions(store, retention).await,
        lost_calls(store).await,
        folds(store).await,
        store.forget_inputs(retention).await,
        store.forget_spend(retention).await,
        store.forget_rates().await,
        store.forget_cached().await.map(drop),
        store.forget_blobs().await,
        store.forget_decisions(retention).await,
        store.forget_workers(FORGET_WORKERS_AFTER).await,
    ];
    steps.into_iter().collect()
}

async fn partitions(store: &Store, retention: Duration) -> Result<(), StoreError> {
    if let Some((made, dropped)) = store.maintain_partitions(retention).await?
        && made + dropped > 0
    {
        info!(made, dropped, "weeks of partitions were made or dropped");
    }
    Ok(())
}

async fn lost_calls(store: &Store) -> Result<(), StoreError> {
    let lost = store.leave_lost_calls().await?;
    if lost > 0 {
        info!(calls = lost, "model calls of ended runs were left open and count in full now");
    }
    Ok(())
}

async fn folds(store: &Store) -> Result<(), StoreError> {
    for _ in 0..FOLDS {
        if store.fold_accounts().await? == 0 {
            break;
        }
    }
    Ok(())
}
