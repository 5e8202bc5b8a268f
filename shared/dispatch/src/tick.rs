//! The beat of a loop.

use std::time::Duration;

use job::Trouble;
use queue::BrokerStatus;
use store::StoreError;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Dispatch;

/// The pause between two looks of who leads, at least and at most, and in relation to what looking took.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
pub(crate) const REST: u32 = 10;
/// The pause of who does not lead.
pub(crate) const OTHER_LEADS: Duration = Duration::from_millis(100);

/// Returns the pause after a look that took so long.
pub(crate) fn rest(took: Duration) -> Duration {
    (took * REST).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Returns the pause that a look asks for, or the longest one if it has failed.
pub(crate) fn pause_after(
    looked: Result<Duration, StoreError>,
    trouble: &mut Trouble,
    cannot: &str,
) -> Duration {
    note(&looked, trouble, cannot);
    looked.unwrap_or(LONGEST_PAUSE)
}

/// A failure that lasts is logged once; `cannot` says what does not work meanwhile.
pub(crate) fn note<T>(done: &Result<T, StoreError>, trouble: &mut Trouble, cannot: &str) {
    match done {
        Ok(_) => drop(trouble.ends()),
        Err(error) if trouble.begins() => warn!(cause = error.as_dyn(), "{cannot}, retrying"),
        Err(_) => {}
    }
}

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
        note(&work().await, &mut trouble, cannot);
    }
}
