//! A queue with two bounds: entries, and their bytes together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Where entries are offered; clones share the queue.
pub struct BoundedQueue<T> {
    entries: mpsc::Sender<Held<T>>,
    room: Arc<Semaphore>,
}

impl<T> Clone for BoundedQueue<T> {
    fn clone(&self) -> Self {
        BoundedQueue { entries: self.entries.clone(), room: self.room.clone() }
    }
}

/// An entry, whose bytes count until its room is dropped.
pub struct Held<T> {
    pub entry: T,
    pub room: OwnedSemaphorePermit,
}

impl<T> BoundedQueue<T> {
    /// A queue for so many entries and bytes, and its other end.
    pub fn new(entries: usize, bytes: usize) -> (BoundedQueue<T>, mpsc::Receiver<Held<T>>) {
        let (sender, receiver) = mpsc::channel(entries);
        (BoundedQueue { entries: sender, room: Arc::new(Semaphore::new(bytes)) }, receiver)
    }

    /// Takes an entry of this size, if there is room for it.
    pub fn offer(&self, entry: T, bytes: usize) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else { return false };
        let Ok(room) = self.room.clone().try_acquire_many_owned(bytes) else { return false };
        self.entries.try_send(Held { entry, room }).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn neither_entries_nor_bytes_exceed_their_bound_and_what_is_done_makes_room() {
        let (queue, mut waiting) = BoundedQueue::new(3, 10);
        assert!(queue.offer("large", 8));
        assert!(!queue.offer("too large beside it", 3));
        assert!(queue.offer("fits", 2) && queue.offer("nothing", 0));
        assert!(!queue.offer("one too many", 0));
        let Held { entry, room } = waiting.recv().await.expect("an entry");
        assert_eq!(entry, "large");
        // What is taken out is not done yet.
        assert!(!queue.offer("large", 8));
        drop(room);
        assert!(queue.offer("large", 8));
        assert!(!queue.offer("larger than all", usize::MAX));
    }
}
