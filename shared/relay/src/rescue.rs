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

pub(crate) async fn run(store: &Store, lease: Duration, stop: &CancellationToken) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::default();
    while tick(&mut beat, stop).await {
        let may_declare = watch.may_declare(Instant::now(), lease);
        match look(store, may_declare).await {
            Ok(()) => watch.reached(Instant::now()),
            Err(error) => {
                if watch.missed() {
                    warn!(
                        cause = error.as_dyn(),
                        "leases cannot be watched: nobody is declared dead until they were watched for a whole lease again"
                    );
                }
            }
        }
    }
}

async fn look(store: &Store, may_declare: bool) -> Result<(), StoreError> {
    if may_declare {
        for worker_id in store.declare_dead().await? {
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

    fn may_declare(&self, now: Instant, lease: Duration) -> bool {
        let unbroken = self.last.is_some_and(|last| now - last <= 3 * BEAT);
        unbroken && self.since.is_some_and(|since| now - since >= lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn watched_for(seconds: u64) -> (Watch, Instant) {
        let start = Instant::now();
        let mut watch = Watch::default();
        for second in 0..=seconds {
            watch.reached(start + Duration::from_secs(second));
        }
        (watch, start + Duration::from_secs(seconds))
    }

    #[test]
    fn nobody_is_declared_dead_before_a_whole_lease_was_watched() {
        let (watch, now) = watched_for(9);
        assert!(!watch.may_declare(now, LEASE));
        let (watch, now) = watched_for(10);
        assert!(watch.may_declare(now, LEASE));
    }

    #[test]
    fn an_outage_and_a_pause_start_the_watch_anew() {
        let (mut watch, now) = watched_for(20);
        assert!(watch.missed() && !watch.missed());
        assert!(!watch.may_declare(now, LEASE));

        let (mut watch, now) = watched_for(20);
        let resumed = now + Duration::from_secs(60);
        assert!(!watch.may_declare(resumed, LEASE), "the process was paused");
        watch.reached(resumed);
        assert!(!watch.may_declare(resumed + Duration::from_secs(1), LEASE));
    }
}
