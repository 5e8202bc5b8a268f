//! Streaming: the text that running jobs write, on its way to those who follow them.
//!
//! What a job writes within 25 ms is one message. It is no part of the job: without a follower it goes nowhere, and
//! what is too much is dropped and counted. A job never waits for it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dispatch::Dispatch;
use job::{JobId, SessionKey, TextPiece};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long text gathers.
const GATHERED_FOR: Duration = Duration::from_millis(25);
/// The most bytes of one job that gather: 2.5 MB a second.
const MOST: usize = 64 << 10;

/// The text of all jobs that run here, until it is sent.
pub struct Streaming {
    dispatch: Dispatch,
    is_enabled: bool,
    gathered: Mutex<HashMap<JobId, TextPiece>>,
    begun: Notify,
}

impl Streaming {
    /// Sends text if that is enabled (`ENABLE_STREAMING`), and drops it otherwise.
    pub fn new(dispatch: Dispatch, is_enabled: bool) -> Streaming {
        Streaming { dispatch, is_enabled, gathered: Mutex::default(), begun: Notify::new() }
    }

    /// Adds what a job has written.
    pub fn add(&self, job_id: JobId, session: &str, text: &str) {
        if !self.is_enabled || text.is_empty() {
            return;
        }
        let mut gathered = self.lock();
        let piece = gathered.entry(job_id).or_insert_with(|| {
            let session = SessionKey::of_ledger(session);
            TextPiece { job_id, session, text: String::new() }
        });
        if piece.text.len() + text.len() > MOST {
            self.dispatch.text_dropped();
            return;
        }
        piece.text.push_str(text);
        drop(gathered);
        self.begun.notify_one();
    }

    /// Sends what a job has written so far: its end is about to be recorded, and comes after it.
    pub fn flush(&self, job_id: JobId) {
        let piece = self.lock().remove(&job_id);
        if let Some(piece) = piece {
            self.dispatch.announce_text(&piece);
        }
    }

    /// Sends what has gathered until `end` is cancelled.
    pub async fn keep(&self, end: CancellationToken) {
        let sending = async {
            loop {
                self.begun.notified().await;
                sleep(GATHERED_FOR).await;
                let pieces = std::mem::take(&mut *self.lock());
                for piece in pieces.into_values() {
                    self.dispatch.announce_text(&piece);
                }
            }
        };
        end.run_until_cancelled(sending).await.unwrap_or(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, TextPiece>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
