//! The drain mark, as this process knows it: while it stands, no slot takes a job, and once all have parked nothing is held.
//!
//! Postgres alone says that a mark is there or is over; no clock of ours takes part. A worker that cannot reach Postgres
//! stays as it is, and could not claim anything either.

use std::sync::Arc;

use store::DrainMark;
use tokio::sync::watch;

use crate::metrics::METRICS;

/// The mark and the slots; clones share it.
#[derive(Clone)]
pub struct Mark(Arc<watch::Sender<State>>);

struct State {
    /// As Postgres told it last.
    mark: Option<DrainMark>,
    /// Slots without a consumer and without a delivery.
    parked: u32,
    slots: u32,
}

impl State {
    /// The mark under which nothing is held and nothing taken.
    fn drained(&self) -> Option<DrainMark> {
        self.mark.filter(|_| self.parked == self.slots)
    }

    /// The epoch of the mark under which we are drained and the ledger does not know it.
    fn unconfirmed(&self) -> Option<i64> {
        self.drained().filter(|mark| !mark.drained).map(|mark| mark.epoch)
    }
}

impl Mark {
    /// No mark, for a worker with so many slots.
    pub fn none(slots: u32) -> Mark {
        Mark(Arc::new(watch::Sender::new(State { mark: None, parked: 0, slots })))
    }

    /// What Postgres says. Whether a mark has come or gone by this; another epoch of the same is neither.
    pub fn set(&self, mark: Option<DrainMark>) -> bool {
        let mut turned = false;
        self.0.send_if_modified(|state| {
            turned = state.mark.is_some() != mark.is_some();
            let changed = state.mark != mark;
            state.mark = mark;
            changed
        });
        METRICS.drain_marked.set(i64::from(mark.is_some()));
        turned
    }

    /// Postgres has it now that we are drained, by the mark of this epoch.
    pub fn confirmed(&self, epoch: i64) {
        self.0.send_modify(|state| {
            if let Some(mark) = state.mark.as_mut().filter(|mark| mark.epoch == epoch) {
                mark.drained = true;
            }
        });
    }

    /// Whether no job is to be taken.
    pub fn stands(&self) -> bool {
        self.0.borrow().mark.is_some()
    }

    /// Whether a mark stands and nothing is held here any more.
    pub fn is_drained(&self) -> bool {
        self.0.borrow().drained().is_some()
    }

    /// Resolves when a mark stands.
    pub async fn set_up(&self) {
        self.wait(|state| state.mark.is_some()).await;
    }

    /// Resolves when none stands.
    pub async fn lifted(&self) {
        self.wait(|state| state.mark.is_none()).await;
    }

    /// Resolves when we are drained and the ledger does not know it, with the mark's epoch.
    pub async fn unconfirmed(&self) -> i64 {
        loop {
            self.wait(|state| state.unconfirmed().is_some()).await;
            if let Some(epoch) = self.0.borrow().unconfirmed() {
                return epoch;
            }
        }
    }

    /// A slot that takes nothing and holds nothing, for as long as this lives.
    pub fn park(&self) -> Parked {
        self.0.send_modify(|state| state.parked += 1);
        Parked(self.clone())
    }

    async fn wait(&self, until: impl Fn(&State) -> bool) {
        // It fails only without a sender, which is ourselves.
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
    use super::*;

    fn by(epoch: i64) -> Option<DrainMark> {
        Some(DrainMark { epoch, drained: false })
    }

    fn unconfirmed(mark: &Mark) -> Option<i64> {
        mark.0.borrow().unconfirmed()
    }

    #[test]
    fn drained_is_a_mark_with_all_slots_parked() {
        let mark = Mark::none(2);
        let first = mark.park();
        assert!(mark.set(by(7)));
        assert!(mark.stands() && !mark.is_drained(), "one slot still holds something");
        let second = mark.park();
        assert!(mark.is_drained());
        drop(second);
        assert!(!mark.is_drained());
        assert!(mark.set(None));
        drop(first);
        assert!(!mark.stands());
    }

    #[test]
    fn the_ledger_is_told_once_per_mark_and_again_when_it_has_forgotten() {
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
        // Lapsed and set up anew, between two looks.
        mark.set(by(8));
        assert_eq!(unconfirmed(&mark), Some(8));
    }
}
