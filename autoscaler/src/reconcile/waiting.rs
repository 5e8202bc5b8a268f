//! A scale-in that waits: since when, as which gauge, and when it is worth a report.
use std::time::Duration;

use job::Name;
use tokio::time::Instant;
use workload::Wait;

use crate::metrics::METRICS;

/// A wait is reported after so long.
const REPORTED_AFTER: Duration = Duration::from_secs(60);

/// The same kind of wait is reported again after so long.
const REPORTED_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// What is shown of a pool's wait; nothing is any more when this is dropped.
#[derive(Debug)]
pub struct Waiting {
    pool: Name,
    now: Option<(&'static str, Instant)>,
    reported: Option<(&'static str, Instant)>,
}

impl Waiting {
    /// A pool that does not wait.
    pub fn new(pool: Name) -> Waiting {
        Waiting { pool, now: None, reported: None }
    }

    /// What it waits for now, if it does, with so many replicas too many. Whether that should be reported: after a minute of waiting
    /// for whatever it is, and again when it waits for something else for a minute, or for the same for ten.
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
        // It has waited since then, whatever for.
        assert!(!report(Some(&Wait::Busy), 30));
        assert_eq!((shown("not_ready"), shown("draining")), (0, 3));
        assert!(report(Some(&broken), 60));
        assert!(!report(Some(&other), 61), "the same kind");
        assert!(!report(Some(&Wait::Busy), 119));
        assert!(report(Some(&Wait::Busy), 120), "another kind, a minute later");
        assert!(!report(Some(&Wait::Busy), 719));
        assert!(report(Some(&Wait::Busy), 720));
        // Over; the next one has its own minute.
        assert!(!report(None, 721));
        assert_eq!(shown("draining"), 0);
        assert!(!report(Some(&broken), 722));
        assert!(!report(Some(&broken), 781));
        assert!(report(Some(&broken), 782));
        drop(waiting);
        assert_eq!(shown("not_ready"), 0);
    }
}
