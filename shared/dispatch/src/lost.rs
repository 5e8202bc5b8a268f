//! Deleted queues: what was in them, or on the way there, is published again at once.
//!
//! Who declares a pool's queue anew learns it from its broker. If this fails, or its process dies, jobs come back all the
//! same: what has been queued for a minute although the queue is empty is published again by every relay.

use std::time::Duration;

use job::Trouble;
use queue::Broker;
use store::Store;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The wait after Postgres has not answered.
const REST: Duration = Duration::from_secs(1);

/// Makes the jobs of each queue due again that was declared anew on this broker's connection, until told to stop.
pub async fn return_lost(store: &Store, broker: &Broker, stop: &CancellationToken) {
    while let Some(pools) = stop.run_until_cancelled(broker.redeclared_queues()).await {
        for (pool, lost_before) in pools {
            let mut trouble = Trouble::default();
            loop {
                match store.return_lost(&pool, lost_before).await {
                    Ok(0) => break,
                    Ok(jobs) => {
                        warn!(jobs, %pool, "the pool's queue was deleted: jobs whose message was in it are due again");
                        break;
                    }
                    Err(error) if trouble.begins() => {
                        warn!(cause = error.as_dyn(), %pool, "jobs of a deleted queue cannot be made due, trying on");
                    }
                    Err(_) => {}
                }
                if stop.run_until_cancelled(sleep(REST)).await.is_none() {
                    return;
                }
            }
        }
    }
}
