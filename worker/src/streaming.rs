//! Streaming: what running jobs write and note, on its way to those who follow them.
//!
//! What a job writes within 25 ms is one message; a note is one of its own. None of it is part of the job: without a
//! follower it goes nowhere, and what is too much is dropped and counted. A job never waits for it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dispatch::Dispatch;
use harness::Event;
use job::{JobId, Json, Note, SessionKey, TextPiece};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long it gathers.
const GATHERED_FOR: Duration = Duration::from_millis(25);
/// The most bytes of one job that gather: 2.5 MB a second.
const MOST: usize = 64 << 10;
/// A note counts for at least so many, because it is a message.
const NOTE: usize = 4 << 10;

/// What all jobs that run here stream, until it is sent.
pub struct Streaming {
    dispatch: Dispatch,
    is_enabled: bool,
    gathered: Mutex<HashMap<JobId, Gathered>>,
    begun: Notify,
}

/// What a job has streamed since the last messages.
#[derive(Default)]
struct Gathered {
    pieces: Vec<TextPiece>,
    bytes: usize,
}

impl Streaming {
    /// Sends it if that is enabled (`ENABLE_STREAMING`), and drops it otherwise.
    pub fn new(dispatch: Dispatch, is_enabled: bool) -> Streaming {
        Streaming { dispatch, is_enabled, gathered: Mutex::default(), begun: Notify::new() }
    }

    /// Adds what a job has written.
    pub fn add(&self, job_id: JobId, session: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        self.gather(job_id, text.len(), |pieces| {
            match pieces.last_mut().filter(|last| last.note.is_none()) {
                Some(last) => last.text.push_str(text),
                None => pieces.push(piece(job_id, session, text.to_owned(), None)),
            }
        });
    }

    /// Adds what a job's harness shows beside its text.
    pub fn note(&self, job_id: JobId, session: &str, event: Event) {
        // What no text can hold was refused where it was read.
        let Ok(data) = Json::from_value(&event.data) else { return };
        let piece = piece(job_id, session, String::new(), Some(Note { name: event.name, data }));
        self.gather(job_id, piece.bytes().max(NOTE), |pieces| pieces.push(piece));
    }

    fn gather(&self, job_id: JobId, bytes: usize, add: impl FnOnce(&mut Vec<TextPiece>)) {
        if !self.is_enabled {
            return;
        }
        let mut all = self.lock();
        let gathered = all.entry(job_id).or_default();
        if gathered.bytes + bytes > MOST {
            self.dispatch.text_dropped();
            return;
        }
        gathered.bytes += bytes;
        add(&mut gathered.pieces);
        drop(all);
        self.begun.notify_one();
    }

    /// Sends what a job has streamed so far: its end is about to be recorded, and comes after it.
    pub fn flush(&self, job_id: JobId) {
        let gathered = self.lock().remove(&job_id);
        self.send(gathered);
    }

    /// Sends what has gathered until `end` is cancelled.
    pub async fn keep(&self, end: CancellationToken) {
        let sending = async {
            loop {
                self.begun.notified().await;
                sleep(GATHERED_FOR).await;
                let all = std::mem::take(&mut *self.lock());
                self.send(all.into_values());
            }
        };
        end.run_until_cancelled(sending).await.unwrap_or(())
    }

    fn send(&self, all: impl IntoIterator<Item = Gathered>) {
        let pieces = all.into_iter().flat_map(|gathered| gathered.pieces);
        pieces.for_each(|piece| self.dispatch.announce_text(&piece));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Gathered>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn piece(job_id: JobId, session: &str, text: String, note: Option<Note>) -> TextPiece {
    TextPiece { job_id, session: SessionKey::of_ledger(session), text, note }
}
