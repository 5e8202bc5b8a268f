//! What keeps jobs moving when nobody else does: due rows go to the broker, dead workers' jobs come due, jobs whose
//! message is dead fail, the ledger's partitions are made and dropped.
//!
//! It runs in every worker and in the producer, any number at a time: each step takes rows that no other takes
//! (`SKIP LOCKED`), or is true whoever says it. It never runs a job, and ends only those that nobody wants any more or nothing
//! can start any more.

mod metrics;
mod about;
mod dispatch;
mod sweep;
mod unwanted;
mod dead;
mod lost;
mod redate;
mod reply;
mod rescue;
mod upkeep;

use std::sync::LazyLock;
use std::time::Duration;

use queue::{Broker, Publisher};
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::metrics::METRICS;

pub use about::job_span;
pub use dead::{fail_its_job, sweep_dead};
pub use dispatch::publish;
pub use lost::return_lost;
pub use reply::{Replies, Sending};
pub use unwanted::{cancel, end_waiting};

/// The relay's surroundings.
#[derive(Clone)]
pub struct Relay {
    /// The ledger.
    pub store: Store,
    /// A connection for publishing.
    pub broker: Broker,
    /// Its confirming publisher.
    pub publisher: Publisher,
    /// For the results that callers wait for.
    pub replies: Replies,
    /// How long results are kept.
    pub retention: Duration,
}

impl Relay {
    /// Sends the replies that are still to be sent, within a bound, and closes the connections.
    pub async fn close(&self, within: Duration) {
        self.replies.close(within).await;
        self.broker.close().await;
    }

    /// Works until told to stop. Failures of Postgres or the broker are logged and outlived.
    pub async fn run(self, stop: CancellationToken) {
        // Shown as 0 before anything happens: a counter that appears at 1 has no rate.
        LazyLock::force(&METRICS);
        tokio::join!(
            dispatch::run(&self, &stop),
            sweep::run(&self, &stop),
            dead::run(&self, &stop),
            lost::return_lost(&self.store, &self.broker, &stop),
            rescue::run(&self.store, &stop),
            upkeep::run(&self.store, self.retention, &stop)
        );
    }
}

/// Ticks until told to stop.
async fn tick(interval: &mut tokio::time::Interval, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        _ = interval.tick() => true,
    }
}
