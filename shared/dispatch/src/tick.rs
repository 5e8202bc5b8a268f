//! The beat of a loop.

use std::time::Duration;

use job::Trouble;
use queue::BrokerStatus;
use store::StoreError;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Dispatch;

/// Waits for the next tick. Returns false when asked to stop.
pub(crate) async fn tick(interval: &mut Interval, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        _ = interval.tick() => true,
    }
}

/// Repeats the work while there is a connection to the broker, until asked to stop. A failure that lasts is
/// logged once; `cannot` says what does not work meanwhile.
pub(crate) async fn while_connected<F>(
    dispatch: &Dispatch,
    stop: &CancellationToken,
    every: Duration,
    cannot: &str,
    work: impl Fn() -> F,
) where
    F: Future<Output = Result<(), StoreError>>,
{
    let mut clock = interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = Trouble::default();
    while tick(&mut clock, stop).await {
        // Without a broker, rows are better left as they are.
        if !matches!(*dispatch.broker.status().borrow(), BrokerStatus::Ready { .. }) {
            continue;
        }
        match work().await {
            Ok(()) => drop(trouble.ends()),
            Err(error) if trouble.begins() => warn!(cause = error.as_dyn(), "{cannot}, retrying"),
            Err(_) => {}
        }
    }
}
