//! What a connection knows about queues, and how long a queue must have been missing before it is declared again.
//!
//! When a quorum queue is deleted, each channel that used it learns of that by itself. At that moment the channel may
//! find a queue of the same name: the old one, whose deletion is not finished, or a new one that another client has
//! already declared. It then subscribes its consumers to that queue without notifying the client, and right afterwards
//! forgets what it knows of them (`rabbit_channel:handle_consuming_queue_down_or_eol`, seen in 3.10.8). Messages for
//! such a consumer are dropped, or returned until the delivery limit makes dead letters of them. A publisher to which
//! the same happens numbers its messages from 1 again. The new queue takes these for duplicates, confirms them and
//! drops them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::QueueError;

/// How long a queue must have been missing before it is declared again. Deleting takes milliseconds, plus the time to
/// delete the files of a large queue.
pub(crate) const DELETION_TIME: Duration = Duration::from_secs(1);

/// What a connection knows about queues.
#[derive(Default)]
pub(crate) struct Declarations {
    /// Queues that existed when last looked at, and when that was.
    known: Mutex<HashMap<String, Instant>>,
    /// The task that declares a queue holds the queue's lock, so that a thousand messages returned for want of a queue
    /// declare it once, or are refused together. The lock holds the last refusal.
    declaring: Mutex<HashMap<String, Arc<Declaring>>>,
}

pub(crate) type Declaring = tokio::sync::Mutex<Option<(Instant, QueueError)>>;

impl Declarations {
    /// Records that a queue exists.
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
