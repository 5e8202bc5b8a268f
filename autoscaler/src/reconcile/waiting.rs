//! A scale-in that waits: its gauge, and when it is reported.
use std::time::Duration;

use job::Name;
use tokio::time::Instant;
use workload::Wait;

use crate::metrics::METRICS;

/// How long a wait lasts before it is reported.
const REPORTED_AFTER: Duration = Duration::from_secs(60);

/// How long the same kind of wait lasts before it is reported again.
const REPORTED_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// A pool's wait. When this is dropped, its gauge goes back to zero.
#[derive(Debug)]
pub struct Waiting {
    pool: Name,
    now: Option<(&'static str, Instant)>,
    reported: Option<(&'static str, Instant)>,
}

impl Waiting {
    /// Makes the state of a pool that does not wait.
    pub fn new(pool: Name) -> Waiting {
        Waiting { pool, now: None, reported: None }
    }

    /// Takes what the pool waits for now, if it does, and by how many replicas it is too large. Returns whether to
    /// report that: after a minute of waiting for anything, then after a minute of waiting for something else, or after
    /// ten for the same.
    pub fn is_worth_a_report(&mut self, wait: Option<&Wait>, surplus: u32, at: Instant) -> bool {
        let kind = wait.map(Wait::kind);
        if let Some((shown, _)) = self.now.filter(|(shown, _)| Some(*shown) != kind) {
            self.show(shown, 0);
        }
        let Some(kind) = kind else {
            (self.now, self.reported) = (None, None);
            return false;
        };
        self.show(kind, surplus);
        let (_, since) = *self.now.insert((kind, self.now.map_or(at, |(_, since)| since)));
        let due = match self.reported {
            None => since + REPORTED_AFTER,
            Some((last, when)) if last == kind => when + REPORTED_AGAIN_AFTER,
            Some((_, when)) => when + REPORTED_AFTER,
        };
        if at < due {
            return false;
        }
        self.reported = Some((kind, at));
        true
    }

    fn show(&self, kind: &'static str, surplus: u32) {
        METRICS.waits.with_label_values(&[self.pool.as_str(), kind]).set(surplus.into());
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((kind, _)) = self.now {
            self.show(kind, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_shown_at_once_and_reported_after_a_minute() {
        let pool: Name = "waits-shown".parse().unwrap();
        let shown = |kind| METRICS.waits.with_label_values(&["waits-shown", kind]).get();
        let mut waiting = Waiting::new(pool);
        let begin = Instant::now();
        let mut report =
            |wait: Option<&Wait>, at_s| waiting.is_worth_a_report(wait, 3, begin + Duration::from_secs(at_s));
        let broken = Wait::NotReady { pod: "w-1".into(), trouble: None };
        let other = Wait::NotReady { pod: "w-2".into(), trouble: None };
        assert!(!report(Some(&broken), 0));
        assert_eq!(shown("not_ready"), 3);
        // The wait began then, whatever it is for.
        assert!(!report(Some(&Wait::Busy), 30));
        assert_eq!((shown("not_ready"), shown("draining")), (0, 3));
        assert!(report(Some(&broken), 60));
        assert!(!report(Some(&other), 61), "the same kind");
        assert!(!report(Some(&Wait::Busy), 119));
        assert!(report(Some(&Wait::Busy), 120), "another kind, a minute later");
        assert!(!report(Some(&Wait::Busy), 719));
        assert!(report(Some(&Wait::Busy), 720));
        // The wait is over; the next one has its own minute.
        assert!(!report(None, 721));
        assert_eq!(shown("draining"), 0);
        assert!(!report(Some(&broken), 722));
        assert!(!report(Some(&broken), 781));
        assert!(report(Some(&broken), 782));
        drop(waiting);
        assert_eq!(shown("not_ready"), 0);
    }
}
