//! What waits for one follower: bounded in entries and in bytes, and given back at once when the follower is cut off.
//!
//! A follower holds its mailbox, and so does its place in the list. Followers of the same topic share what was read.
//! Its bytes count once, until the last of them has taken it.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::News;

/// What waits for one follower: so many readings and pieces of text, and so many bytes. One that waits alone may be
/// larger.
const WAITING: usize = 128;
const WAITING_BYTES: usize = 1 << 20;

/// Something that waits for followers, whose bytes count until the last one has taken it.
#[derive(Debug)]
pub struct Counted<T> {
    value: T,
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl<T> Counted<T> {
    /// Counts so many bytes in `total`.
    pub fn new(value: T, bytes: usize, total: &Arc<AtomicUsize>) -> Counted<T> {
        total.fetch_add(bytes, Ordering::Relaxed);
        Counted { value, bytes, total: total.clone() }
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What waits for one follower.
#[derive(Default)]
pub struct Mailbox {
    held: Mutex<Held>,
    arrived: Notify,
}

#[derive(Default)]
struct Held {
    news: VecDeque<News>,
    bytes: usize,
    /// Nothing more comes.
    is_closed: bool,
}

impl Mailbox {
    /// Adds this, or returns false if the follower does not keep up.
    pub fn offer(&self, news: News) -> bool {
        let mut held = self.lock();
        // That nothing waits is untrue from now on.
        if let Some(News::Quiet) = held.news.front() {
            held.news.pop_front();
        }
        let bytes = news.bytes();
        let is_full = held.news.len() >= WAITING || held.bytes + bytes > WAITING_BYTES;
        if held.is_closed || (is_full && !held.news.is_empty()) {
            return false;
        }
        held.bytes += bytes;
        held.news.push_back(news);
        self.arrived.notify_one();
        true
    }

    /// Says that nothing waits, where that is so.
    pub fn say_quiet(&self) {
        let mut held = self.lock();
        if held.news.is_empty() && !held.is_closed {
            held.news.push_back(News::Quiet);
            self.arrived.notify_one();
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().news.is_empty()
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Lets nothing more come. What waits is still taken.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// Lets nothing more come, and drops what waits.
    pub fn cut_off(&self) {
        *self.lock() = Held { is_closed: true, ..Held::default() };
        self.arrived.notify_one();
    }

    /// The same, but this still comes.
    pub fn cut_off_with(&self, last: News) {
        *self.lock() = Held { news: [last].into(), bytes: 0, is_closed: true };
        self.arrived.notify_one();
    }

    /// Waits for what comes next; `None` when nothing comes any more. There is one caller.
    pub async fn next(&self) -> Option<News> {
        loop {
            {
                let mut held = self.lock();
                if let Some(news) = held.news.pop_front() {
                    held.bytes -= news.bytes();
                    if held.news.is_empty() {
                        // Thousands lie idle, so that none keeps its room.
                        held.news = VecDeque::new();
                    }
                    return Some(news);
                }
                if held.is_closed {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    /// Its size in memory, about.
    fn bytes(&self) -> usize {
        match self {
            News::Seen(seen) => seen.bytes,
            News::Text(piece) => piece.bytes,
            News::Quiet | News::Unreadable | News::Stopping => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use job::TextPiece;

    use super::*;

    fn text(bytes: usize, total: &Arc<AtomicUsize>) -> News {
        let piece = TextPiece {
            job_id: job::JobId::now(),
            session: job::SessionKey::of_ledger("s"),
            text: String::new(),
            note: None,
        };
        News::Text(Arc::new(Counted::new(piece, bytes, total)))
    }

    #[tokio::test]
    async fn what_waits_is_bounded_counted_once_and_given_back() {
        let total = Arc::default();
        let (one, other) = (Mailbox::default(), Mailbox::default());
        let shared = text(WAITING_BYTES + 1, &total);
        assert!(one.offer(shared.clone()) && other.offer(shared), "one alone may be larger");
        assert_eq!(total.load(Ordering::Relaxed), WAITING_BYTES + 1);
        assert!(!one.offer(text(1, &total)), "it is full");
        assert!(one.next().await.is_some());
        assert!(one.offer(text(1, &total)));
        assert_eq!(total.load(Ordering::Relaxed), WAITING_BYTES + 2);
        other.cut_off();
        assert!(other.next().await.is_none());
        assert_eq!(total.load(Ordering::Relaxed), 1);
        one.close();
        assert!(one.next().await.is_some() && one.next().await.is_none());
        assert_eq!(total.load(Ordering::Relaxed), 0);
        let idle = Mailbox::default();
        idle.say_quiet();
        idle.say_quiet();
        assert!(idle.offer(text(WAITING_BYTES + 1, &total)), "that nothing waits takes no place");
        idle.say_quiet();
        assert!(matches!(idle.next().await, Some(News::Text(_))));
        idle.say_quiet();
        assert!(matches!(idle.next().await, Some(News::Quiet)) && idle.is_empty());
        let many = Mailbox::default();
        assert_eq!((0..2 * WAITING).filter(|_| many.offer(text(0, &total))).count(), WAITING);
    }
}
