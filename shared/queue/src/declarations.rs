//! What a connection knows of queues, and how long one must have been missing before it is declared again.
//!
//! When a quorum queue is deleted, each channel that used it hears of its end by itself. A channel that finds a queue of
//! that name when it does (the old one, whose deletion is not over, or a new one that another client was quick to declare)
//! subscribes its consumers to that one without a word to the client, and forgets right afterwards what it knows of them
//! (`rabbit_channel:handle_consuming_queue_down_or_eol`, seen in 3.10.8). Messages for such a consumer are dropped, or returned
//! until the delivery limit makes dead letters of them; and a publisher that the same happens to numbers its messages from 1
//! again, which the new queue takes for duplicates: it confirms and drops them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::QueueError;

/// How long a queue must have been missing before it is declared again. Deleting takes milliseconds, and as long as the files
/// of a large queue take to delete.
pub(crate) const DELETION_TIME: Duration = Duration::from_secs(1);

/// What a connection knows of queues.
#[derive(Default)]
pub(crate) struct Declarations {
    /// Queues that were there when last looked at, and when that was.
    known: Mutex<HashMap<String, Instant>>,
    /// Who declares a queue holds its lock: a thousand messages that come back for want of a queue declare it once, or are
    /// refused together. In it is the last refusal.
    declaring: Mutex<HashMap<String, Arc<Declaring>>>,
}

pub(crate) type Declaring = tokio::sync::Mutex<Option<(Instant, QueueError)>>;

impl Declarations {
    /// A queue is there.
    pub(crate) fn note(&self, queue: &str) {
        self.known().insert(queue.to_owned(), Instant::now());
    }

    pub(crate) fn lock(&self, queue: &str) -> Arc<Declaring> {
        let mut declaring = self.declaring.lock().unwrap_or_else(PoisonError::into_inner);
        declaring.entry(queue.to_owned()).or_default().clone()
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
