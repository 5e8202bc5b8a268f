//! A question to Postgres that a look waits for only a moment: if it takes longer, it goes on beside the looks.

use std::time::Duration;

use store::StoreError;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// How long a look waits for an answer.
const PATIENCE: Duration = Duration::from_millis(20);
/// Questions of all pools at a time: each takes a connection, which others need as well.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// At most one question at a time.
#[derive(Debug)]
pub(super) struct Question<T> {
    open: Option<JoinHandle<Answer<T>>>,
    was_waited_for: bool,
}

/// The answer, and how long it took.
pub(super) type Answer<T> = (Result<T, StoreError>, Duration);

impl<T> Default for Question<T> {
    fn default() -> Question<T> {
        Question { open: None, was_waited_for: false }
    }
}

impl<T: Send + 'static> Question<T> {
    /// Whether there is an answer to come.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn ask(&mut self, asking: impl Future<Output = Result<T, StoreError>> + Send + 'static) {
        self.was_waited_for = false;
        self.open = Some(tokio::spawn(async move {
            // It is never closed.
            let _permit = AT_ONCE.acquire().await;
            let begun = Instant::now();
            let answer = asking.await;
            (answer, begun.elapsed())
        }));
    }

    /// Waits a moment, the first time. Without an answer the question stays open.
    pub(super) async fn answer(&mut self) -> Option<Answer<T>> {
        let patience = if self.was_waited_for { Duration::ZERO } else { PATIENCE };
        self.was_waited_for = true;
        let answer = timeout(patience, self.open.as_mut()?).await.ok()?;
        self.open = None;
        answer.ok()
    }
}
