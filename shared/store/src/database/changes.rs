//! What committed transactions have changed, on its way out of the ledger.
//!
//! A transaction never waits for those who want to know: what the channel cannot take is dropped and counted. While
//! no receiver was asked for, nothing is gathered. The ledger does not know who receives it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use job::Change;
use tokio::sync::mpsc;

/// Transactions whose changes wait to be received.
const WAITING: usize = 256;

/// Where transactions note what they have changed; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Changes {
    sender: Arc<OnceLock<mpsc::Sender<Vec<Change>>>>,
    dropped: Arc<AtomicU64>,
}

/// Receives what was changed, one list for each transaction.
pub struct ChangeReceiver {
    receiver: mpsc::Receiver<Vec<Change>>,
    dropped: Arc<AtomicU64>,
}

impl Changes {
    /// Notes the changes of a transaction that was committed just now.
    pub(crate) fn note<I: IntoIterator<Item = Change>>(&self, changes: impl FnOnce() -> I) {
        let Some(sender) = self.sender.get() else { return };
        let changes: Vec<Change> = changes().into_iter().collect();
        if !changes.is_empty() && sender.try_send(changes).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the receiver, once.
    pub(crate) fn receiver(&self) -> Option<ChangeReceiver> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.sender.set(sender).ok()?;
        Some(ChangeReceiver { receiver, dropped: self.dropped.clone() })
    }
}

impl ChangeReceiver {
    /// Waits for the changes of the next transaction; `None` when the ledger's handles are gone.
    pub async fn next(&mut self) -> Option<Vec<Change>> {
        self.receiver.recv().await
    }

    /// Returns how many transactions' changes were dropped since the last call.
    pub fn dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}
