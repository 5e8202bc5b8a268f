//! Makes dead workers' jobs due again.
//!
//! Postgres's clock says which worker is dead. Our own monotonic clock says how long we have watched. If the
//! two disagree, Postgres's clock was set (or this host has slept). Then leases only seem to be old, and the
//! watch begins anew.

use std::time::Duration;

use store::{Clock, ClockStep, Store, StoreError};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::METRICS;
use crate::redate;
use crate::tick::tick;

/// How often leases are looked at: with a lease of 10 s, a job runs again within 12.
const BEAT: Duration = Duration::from_secs(1);

pub(crate) async fn run(store: &Store, stop: &CancellationToken) {
    let begun = Notify::new();
    tokio::join!(watch(store, &begun, stop), redate::run(store, &begun, stop));
}

async fn watch(store: &Store, begun: &Notify, stop: &CancellationToken) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::default();
    while tick(&mut beat, stop).await {
        if let Err(error) = look(store, &mut watch, begun).await
            && watch.missed()
        {
            warn!(
                cause = error.as_dyn(),
                "leases cannot be watched: no worker is declared dead until its own lease has been watched again"
            );
        }
    }
}

async fn look(store: &Store, watch: &mut Watch, begun: &Notify) -> Result<(), StoreError> {
    let clock = store.clock().await?;
    match watch.reached(clock) {
        Some(ClockStep::Ahead(by)) => {
            warn!(
                ahead_s = by.as_secs(),
                "Postgres's clock was set ahead, or this host has slept: \
                no worker is declared dead until its own lease has been watched again; \
                deadlines that it has passed are over"
            );
        }
        Some(ClockStep::Back(by)) => {
            warn!(
                back_s = by.as_secs(),
                "Postgres's clock was set back: \
                no worker is declared dead until its own lease has been watched again"
            );
        }
        None => {}
    }
    if std::mem::take(&mut watch.is_new) {
        begun.notify_one();
    }
    if let Some(watched) = watch.unbroken(Instant::now()) {
        for worker_id in store.declare_dead(watched, &clock).await? {
            METRICS.workers_dead.inc();
            warn!(%worker_id, "worker declared dead: its lease has run out");
        }
    }
    // This includes jobs of workers that another rescuer declared dead and did not live to rescue.
    let rescued = store.rescue().await?;
    if !rescued.is_empty() {
        METRICS.rescued.inc_by(rescued.len() as u64);
        info!(jobs = rescued.len(), "jobs of dead workers are due again");
    }
    Ok(())
}

/// How long this process has reached Postgres without a gap. After an outage, a pause or start of this
/// process, or a step of Postgres's clock, all leases may look old although every worker is alive: the others
/// could not renew them either.
#[derive(Debug, Default)]
struct Watch {
    since: Option<Instant>,
    last: Option<Clock>,
    /// Whether the watch has just begun.
    is_new: bool,
}

impl Watch {
    /// Returns how the clock was set, if the watch begins anew because of that.
    fn reached(&mut self, clock: Clock) -> Option<ClockStep> {
        let now = clock.read_at();
        let step = self.last.and_then(|last| clock.step_since(&last));
        let paused = self.last.is_none_or(|last| now - last.read_at() > 3 * BEAT);
        if step.is_some() || paused || self.since.is_none() {
            self.since = Some(now);
            self.is_new = true;
        }
        self.last = Some(clock);
        step
    }

    /// Returns whether this is the first miss.
    fn missed(&mut self) -> bool {
        self.since.take().is_some()
    }

    /// Returns how long the watch has had no gap, up to now. Each worker has its own lease, and only a lease
    /// that is no longer than this can be said to have run out.
    fn unbroken(&self, now: Instant) -> Option<Duration> {
        self.last.filter(|last| now - last.read_at() <= 3 * BEAT)?;
        Some(now - self.since?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const HOUR_S: i64 = 3_600;

    /// Makes readings of Postgres's clock.
    struct Looks(Instant, SystemTime);

    impl Looks {
        /// Reads the clock after this many seconds here, when it is this far ahead.
        fn at(&self, second: u64, ahead_s: i64) -> Clock {
            let here = self.0 + Duration::from_secs(second);
            let there = self.1 + Duration::from_secs((HOUR_S + ahead_s).unsigned_abs() + second);
            Clock::new(there, here, here)
        }
    }

    /// Makes a watch that has looked once a second.
    fn watched_for(seconds: u64) -> (Watch, Looks) {
        let (mut watch, looks) = (Watch::default(), Looks(Instant::now(), SystemTime::now()));
        for second in 0..=seconds {
            assert_eq!(watch.reached(looks.at(second, 0)), None);
        }
        (watch, looks)
    }

    fn seconds(watch: &Watch, now: Clock) -> Option<u64> {
        watch.unbroken(now.read_at()).map(|watched| watched.as_secs())
    }

    #[test]
    fn a_watch_is_as_long_as_it_had_no_gap() {
        assert_eq!(Watch::default().unbroken(Instant::now()), None);
        let (watch, looks) = watched_for(9);
        assert_eq!(seconds(&watch, looks.at(9, 0)), Some(9));
    }

    #[test]
    fn an_outage_and_a_pause_start_the_watch_anew() {
        let (mut watch, looks) = watched_for(20);
        assert!(watch.missed() && !watch.missed());
        assert_eq!(seconds(&watch, looks.at(20, 0)), None);
        watch.reached(looks.at(21, 0));
        assert_eq!(seconds(&watch, looks.at(22, 0)), Some(1));

        let (mut watch, looks) = watched_for(20);
        assert_eq!(seconds(&watch, looks.at(80, 0)), None, "the process was paused");
        watch.reached(looks.at(80, 0));
        assert_eq!(seconds(&watch, looks.at(81, 0)), Some(1));
    }

    #[test]
    fn a_step_of_the_clock_starts_the_watch_anew_also_one_during_an_outage() {
        for ahead_s in [HOUR_S, -HOUR_S] {
            let (mut watch, looks) = watched_for(20);
            assert!(watch.reached(looks.at(21, ahead_s)).is_some());
            assert_eq!(seconds(&watch, looks.at(22, ahead_s)), Some(1));
            assert_eq!(watch.reached(looks.at(22, ahead_s)), None, "from now on that is the time");

            let (mut watch, looks) = watched_for(20);
            watch.missed();
            assert!(watch.reached(looks.at(60, ahead_s)).is_some());
            assert!(watch.is_new);
        }
    }
}
