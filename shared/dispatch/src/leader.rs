//! Leader: of several processes, the one that has the lease row in Postgres does what must be done once.
//!
//! Postgres's clock decides whose lease it is. All that a leader writes into the ledger carries its epoch,
//! and is refused when there is a higher one. So a leader that was paused past its lease changes nothing.

use std::time::Duration;

use job::Trouble;
use store::{Leadership, Store, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// Called after each try with whether this process leads, or with `None` if Postgres did not answer.
pub type Heard = fn(Option<bool>);

/// One contender for a lease.
#[derive(Debug)]
pub struct Leader {
    name: String,
    holder: String,
    lease: Duration,
    heard: Heard,
    present: watch::Sender<Option<Leadership>>,
}

impl Leader {
    /// Makes a contender for the lease of this name, under an id that is new with each start.
    pub fn new(name: String, lease: Duration, heard: Heard) -> Leader {
        Leader { name, holder: Uuid::new_v4().to_string(), lease, heard, present: watch::Sender::new(None) }
    }

    /// Returns the leadership while it is valid.
    pub fn leadership(&self) -> Option<Leadership> {
        self.present.borrow().clone().filter(|leadership| !leadership.left().is_zero())
    }

    /// Gives the leadership up at once, because the ledger has refused its epoch.
    pub fn step_down(&self, epoch: i64) {
        if self.forget(epoch) {
            (self.heard)(Some(false));
            warn!(epoch, lease = self.name, "another process leads; this one stops deciding at once");
        }
    }

    /// Renews the lease, or tries to get it, until asked to stop. Then it gives the lease back.
    pub async fn keep(&self, store: &Store, stop: &CancellationToken) {
        self.keep_while(store, stop, || true).await;
    }

    /// As [`Leader::keep`], where this process may be unable to do what a leader does. When it was for as long as a lease lasts,
    /// it gives the lease back again and again, for two beats of the others: one that is able keeps it.
    pub async fn keep_while(&self, store: &Store, stop: &CancellationToken, is_able: impl Fn() -> bool) {
        let (mut able_at, mut leaves_until, mut inability) = (Instant::now(), None, Trouble::default());
        let mut beat = interval(self.lease / 5);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trouble = Trouble::default();
        while stop.run_until_cancelled(beat.tick()).await.is_some() {
            if is_able() {
                (able_at, leaves_until) = (Instant::now(), None);
                inability.ends();
            } else if able_at.elapsed() >= self.lease && self.leadership().is_some() {
                if inability.begins() {
                    warn!(lease = self.name, "cannot do what its lease is for, and leaves that to others");
                }
                self.resign(store).await;
                leaves_until = Some(Instant::now() + self.lease / 5 * 2);
            }
            if leaves_until.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            match self.contend(store).await {
                Ok(()) => drop(trouble.ends()),
                Err(cause) => {
                    (self.heard)(None);
                    if trouble.begins() {
                        warn!(
                            cause = cause.as_dyn(),
                            "the leader's lease cannot be renewed; when it has run out, nothing is decided here"
                        );
                    }
                }
            }
        }
        self.resign(store).await;
    }

    /// Tries once to renew the lease or to get it.
    pub async fn contend(&self, store: &Store) -> Result<(), StoreError> {
        let present = store.lead(&self.name, &self.holder, self.lease).await?;
        (self.heard)(Some(present.is_some()));
        let is = present.as_ref().map(|leadership| leadership.epoch);
        let was = self.present.send_replace(present).map(|leadership| leadership.epoch);
        match (was, is) {
            (was, Some(epoch)) if was != Some(epoch) => {
                info!(epoch, lease = self.name, "leads: decides from now on");
            }
            (Some(epoch), None) => {
                warn!(epoch, lease = self.name, "leads no more: another process has the lease");
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives up this leadership in the ledger and then here, so that nothing counts any more which was sent under its epoch and
    /// comes late. This process leads again under another one, unless a second one is quicker.
    pub async fn begin_anew(&self, store: &Store) -> Result<(), StoreError> {
        let Some(leadership) = self.present.borrow().clone() else { return Ok(()) };
        store.resign(&leadership).await?;
        self.forget(leadership.epoch);
        Ok(())
    }

    fn forget(&self, epoch: i64) -> bool {
        self.present
            .send_if_modified(|present| present.take_if(|leadership| leadership.epoch == epoch).is_some())
    }

    /// Gives the lease back, so that the next leader need not wait for its end.
    pub async fn resign(&self, store: &Store) {
        (self.heard)(Some(false));
        if let Some(leadership) = self.present.send_replace(None)
            && let Err(cause) = store.resign(&leadership).await
        {
            warn!(
                cause = cause.as_dyn(),
                "the leader's lease could not be given back; it runs out by itself"
            );
        }
    }
}
