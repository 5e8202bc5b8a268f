//! The drain mark, as this process knows it. While it is set, no slot takes a job; once all slots have parked,
//! nothing is held.
//!
//! Postgres says that a mark is set, is renewed, or was taken back. Our own monotonic clock says when it is over: a
//! mark lasts for the time that it had left when it was first seen, and never longer than `MARK_FOR`. Postgres's
//! clock does not decide this, since it may be set meanwhile, and the pod of a drained worker may be about to go. A
//! worker that cannot reach Postgres stays as it is, and could not claim anything either.

use std::sync::Arc;
use std::time::SystemTime;

use store::{DrainMark, MARK_FOR};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::METRICS;

/// The mark and the slots; clones share it.
#[derive(Clone)]
pub struct Mark(Arc<watch::Sender<State>>);

struct State {
    /// The mark as Postgres last reported it, while it is set.
    mark: Option<Standing>,
    /// The end of a mark that is over by our clock while Postgres still has it.
    over: Option<SystemTime>,
    /// Slots without a consumer and without a delivery.
    parked: u32,
    slots: u32,
}

/// A mark that is set, and when it is over by our clock.
#[derive(Clone, Copy, PartialEq)]
struct Standing {
    mark: DrainMark,
    until: Instant,
}

impl State {
    /// Returns the mark that Postgres reports, unless it is over by our clock.
    fn standing(&self, mark: DrainMark, now: Instant) -> Option<Standing> {
        let known = self.mark.filter(|known| known.mark.until == mark.until);
        let until = match known {
            Some(known) => known.until,
            None if self.over == Some(mark.until) => return None,
            None => now + mark.left.min(MARK_FOR),
        };
        (now < until).then_some(Standing { mark, until })
    }

    /// Returns the mark under which nothing is held and nothing is taken.
    fn drained(&self) -> Option<DrainMark> {
        self.mark.filter(|_| self.parked == self.slots).map(|standing| standing.mark)
    }

    /// Returns the mark's epoch if we are drained under it and the ledger does not know that.
    fn unconfirmed(&self) -> Option<i64> {
        self.drained().filter(|mark| !mark.drained).map(|mark| mark.epoch)
    }
}

impl Mark {
    /// Begins without a mark, for a worker with this many slots.
    pub fn none(slots: u32) -> Mark {
        Mark(Arc::new(watch::Sender::new(State { mark: None, over: None, parked: 0, slots })))
    }

    /// Takes what Postgres reports. Returns whether a mark was set or cleared by it; a new epoch of the same mark is
    /// neither.
    pub fn set(&self, mark: Option<DrainMark>) -> bool {
        self.set_at(mark, Instant::now())
    }

    fn set_at(&self, mark: Option<DrainMark>, now: Instant) -> bool {
        let (mut turned, mut is_set) = (false, false);
        self.0.send_if_modified(|state| {
            let standing = mark.and_then(|mark| state.standing(mark, now));
            state.over =
                mark.filter(|mark| standing.is_none() && !mark.left.is_zero()).map(|mark| mark.until);
            (turned, is_set) = (state.mark.is_some() != standing.is_some(), standing.is_some());
            let changed = state.mark != standing;
            state.mark = standing;
            changed
        });
        METRICS.drain_marked.set(i64::from(is_set));
        turned
    }

    /// Returns the end of a mark that is over here while Postgres takes it for valid.
    pub fn over(&self) -> Option<SystemTime> {
        self.0.borrow().over
    }

    /// Notes that Postgres knows that we are drained under the mark of this epoch.
    pub fn confirmed(&self, epoch: i64) {
        self.0.send_modify(|state| {
            if let Some(standing) = state.mark.as_mut().filter(|standing| standing.mark.epoch == epoch) {
                standing.mark.drained = true;
            }
        });
    }

    /// Returns whether a mark is set, so that no job is taken.
    pub fn is_set(&self) -> bool {
        self.0.borrow().mark.is_some()
    }

    /// Returns whether a mark is set and nothing is held here any more.
    pub fn is_drained(&self) -> bool {
        self.0.borrow().drained().is_some()
    }

    /// Resolves when a mark is set.
    pub async fn until_set(&self) {
        self.wait(|state| state.mark.is_some()).await;
    }

    /// Resolves when no mark is set.
    pub async fn until_cleared(&self) {
        self.wait(|state| state.mark.is_none()).await;
    }

    /// Resolves with the mark's epoch when we are drained and the ledger does not know it.
    pub async fn unconfirmed(&self) -> i64 {
        loop {
            self.wait(|state| state.unconfirmed().is_some()).await;
            if let Some(epoch) = self.0.borrow().unconfirmed() {
                return epoch;
            }
        }
    }

    /// Parks a slot: it takes nothing and holds nothing for as long as the returned value lives.
    pub fn park(&self) -> Parked {
        self.0.send_modify(|state| state.parked += 1);
        Parked(self.clone())
    }

    async fn wait(&self, until: impl Fn(&State) -> bool) {
        // This fails only without a sender, and the sender is ours.
        let _ = self.0.subscribe().wait_for(until).await;
    }
}

/// See [`Mark::park`].
pub struct Parked(Mark);

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.parked -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn by(epoch: i64) -> Option<DrainMark> {
        Some(DrainMark { epoch, drained: false, until: SystemTime::UNIX_EPOCH, left: MARK_FOR })
    }

    #[test]
    fn a_step_of_postgres_clock_neither_ends_a_mark_nor_prolongs_it() {
        let (mark, start) = (Mark::none(1), Instant::now());
        let (soon, late) = (start + MARK_FOR / 2, start + MARK_FOR);
        mark.set_at(by(7), start);
        let ahead = by(7).map(|mark| DrainMark { left: Duration::ZERO, ..mark });
        assert!(!mark.set_at(ahead, soon) && mark.is_set(), "an hour ahead");
        let back = by(7).map(|mark| DrainMark { left: HOUR, ..mark });
        assert!(!mark.set_at(back, soon) && mark.is_set() && mark.over().is_none(), "an hour back");
        assert!(mark.set_at(back, late) && !mark.is_set());
        assert_eq!(mark.over(), back.map(|mark| mark.until), "Postgres must be asked to drop it");
        assert!(!mark.set_at(back, late) && !mark.is_set(), "it is the same one");

        let until = |later| SystemTime::UNIX_EPOCH + later * MARK_FOR;
        let renewed = by(7).map(|mark| DrainMark { until: until(1), ..mark });
        assert!(mark.set_at(renewed, late) && mark.is_set() && mark.over().is_none());
        assert!(mark.set_at(None, late) && !mark.is_set(), "taken back");
        let lapsed = ahead.map(|mark| DrainMark { until: until(2), ..mark });
        assert!(!mark.set_at(lapsed, late) && mark.over().is_none(), "never seen while it was valid");

        let mark = Mark::none(1);
        assert!(mark.set_at(back, start) && mark.is_set(), "first seen when the clock had gone back");
        assert!(mark.set_at(back, late) && !mark.is_set() && mark.over().is_some());
    }

    fn unconfirmed(mark: &Mark) -> Option<i64> {
        mark.0.borrow().unconfirmed()
    }

    #[test]
    fn drained_is_a_mark_with_all_slots_parked() {
        let mark = Mark::none(2);
        let first = mark.park();
        assert!(mark.set(by(7)));
        assert!(mark.is_set() && !mark.is_drained(), "one slot still holds something");
        let second = mark.park();
        assert!(mark.is_drained());
        drop(second);
        assert!(!mark.is_drained());
        assert!(mark.set(None));
        drop(first);
        assert!(!mark.is_set());
    }

    #[test]
    fn the_ledger_gets_a_mark_once_and_again_when_it_has_lost_it() {
        let mark = Mark::none(1);
        let _parked = mark.park();
        mark.set(by(7));
        assert_eq!(unconfirmed(&mark), Some(7));
        mark.confirmed(7);
        assert_eq!(unconfirmed(&mark), None);
        assert!(!mark.set(by(8)), "the mark has only changed hands");
        mark.confirmed(7);
        assert_eq!(unconfirmed(&mark), Some(8), "that was about another mark");
        mark.confirmed(8);
        // The mark has lapsed and was set again, between two checks.
        mark.set(by(8).map(|mark| DrainMark { until: SystemTime::UNIX_EPOCH + MARK_FOR, ..mark }));
        assert_eq!(unconfirmed(&mark), Some(8));
    }
}
