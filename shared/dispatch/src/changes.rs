//! Sends which jobs this process's transactions have changed to those who follow jobs: one message for each transaction.

use std::time::Duration;

use job::{CHANGES, TEXT, TextPiece, encode_changes, encode_text};
use queue::{Announced, Announcer};
use store::ChangeReceiver;
use tokio::time::timeout;

use crate::Dispatch;
use crate::metrics::ANNOUNCEMENTS_DROPPED;

/// Changes in one message. A batch of jobs over HTTP is one transaction of thousands.
const TOGETHER: usize = 1_000;
/// How often what was dropped is counted while nothing changes.
const COUNTED_EVERY: Duration = Duration::from_secs(5);

/// Sends until the ledger's handles are gone.
pub(crate) async fn send(mut changes: ChangeReceiver, announcer: Announcer) {
    loop {
        let next = timeout(COUNTED_EVERY, changes.next()).await;
        ANNOUNCEMENTS_DROPPED.inc_by(changes.dropped() + announcer.dropped());
        match next {
            Ok(Some(changed)) => {
                for changed in changed.chunks(TOGETHER) {
                    announcer.announce(Announced::Changes, CHANGES, encode_changes(changed));
                }
            }
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

impl Dispatch {
    /// Sends text that a job streams to those who follow it, if there are any. It may get lost.
    pub fn announce_text(&self, piece: &TextPiece) {
        let to = Announced::Text { shard: piece.session.shard() };
        self.announcer.announce(to, TEXT, encode_text(piece));
    }

    /// Counts text that was too much to be sent.
    pub fn text_dropped(&self) {
        ANNOUNCEMENTS_DROPPED.inc();
    }
}
