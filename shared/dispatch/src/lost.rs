//! Deleted queues: jobs whose message was in one, or on the way there, are published again at once.
//!
//! A process that declares a pool's queue anew learns that from its broker. If this fails, or the process
//! dies, the jobs come back all the same: every relay publishes again what has been queued for a minute
//! although the queue is empty.

use std::time::Duration;

use job::Trouble;
use queue::Broker;
use store::Store;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long to wait after Postgres has not answered.
const REST: Duration = Duration::from_secs(1);

/// Makes a pool's jobs due again whenever its queue was declared anew on this broker's connection, until
/// asked to stop.
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
                        warn!(cause = error.as_dyn(), %pool, "jobs of a deleted queue cannot be made due, retrying");
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
