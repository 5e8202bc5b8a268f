//! Dead workers' jobs to due.

use std::time::Duration;

use store::{Store, StoreError};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::METRICS;
use crate::tick;

/// How often leases are looked at: with a lease of 10 s, a job runs again within 12.
const BEAT: Duration = Duration::from_secs(1);

pub(crate) async fn run(store: &Store, stop: &CancellationToken) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::default();
    while tick(&mut beat, stop).await {
        match look(store, watch.unbroken(Instant::now())).await {
            Ok(()) => watch.reached(Instant::now()),
            Err(error) => {
                if watch.missed() {
                    warn!(
                        cause = error.as_dyn(),
                        "leases cannot be watched: no worker is declared dead until its own lease was watched again"
                    );
                }
            }
        }
    }
}

async fn look(store: &Store, watched: Option<Duration>) -> Result<(), StoreError> {
    if let Some(watched) = watched {
        for worker_id in store.declare_dead(watched).await? {
            METRICS.workers_dead.inc();
            warn!(%worker_id, "worker declared dead: its lease has run out");
        }
    }
    // Also jobs of workers that another rescuer declared dead and did not live to rescue.
    let rescued = store.rescue().await?;
    if !rescued.is_empty() {
        METRICS.rescued.inc_by(rescued.len() as u64);
        info!(jobs = rescued.len(), "jobs of dead workers are due again");
    }
    Ok(())
}

/// How long this process has reached Postgres without a gap. After an outage, a pause of the process or its start,
/// all leases may look old although everybody lives: the others could not renew them either.
#[derive(Debug, Default)]
struct Watch {
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Watch {
    fn reached(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now - last > 3 * BEAT) {
            self.since = Some(now);
        }
        self.last = Some(now);
    }

    /// Returns whether this is the first miss.
    fn missed(&mut self) -> bool {
        self.last = None;
        self.since.take().is_some()
    }

    /// For how long, up to now. Each worker has a lease of its own, and only one that is no longer than this may be said to
    /// have run out.
    fn unbroken(&self, now: Instant) -> Option<Duration> {
        self.last.filter(|last| now - *last <= 3 * BEAT)?;
        Some(now - self.since?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched_for(seconds: u64) -> (Watch, Instant) {
        let start = Instant::now();
        let mut watch = Watch::default();
        for second in 0..=seconds {
            watch.reached(start + Duration::from_secs(second));
        }
        (watch, start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_watch_is_as_long_as_it_had_no_gap() {
        assert_eq!(Watch::default().unbroken(Instant::now()), None);
        let (watch, now) = watched_for(9);
        assert_eq!(watch.unbroken(now), Some(Duration::from_secs(9)));
    }

    #[test]
    fn an_outage_and_a_pause_start_the_watch_anew() {
        let (mut watch, now) = watched_for(20);
        assert!(watch.missed() && !watch.missed());
        assert_eq!(watch.unbroken(now), None);

        let (mut watch, now) = watched_for(20);
        let resumed = now + Duration::from_secs(60);
        assert_eq!(watch.unbroken(resumed), None, "the process was paused");
        watch.reached(resumed);
        assert_eq!(watch.unbroken(resumed + Duration::from_secs(1)), Some(Duration::from_secs(1)));
    }
}
