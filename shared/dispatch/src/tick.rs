//! The beat of a loop.

use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

/// Ticks until told to stop.
pub(crate) async fn tick(interval: &mut Interval, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        _ = interval.tick() => true,
    }
}
