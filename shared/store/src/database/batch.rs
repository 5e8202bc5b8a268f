//! Group commit: calls that arrive while a transaction is under way share the next one.
//!
//! Under light load each call is a transaction of its own. Under heavy load, recognised by the size of the
//! previous batch, a batch waits a few milliseconds for more calls, because a transaction costs as much for
//! one call as for many. For the same reason a batch waits for the transaction before it, but only briefly,
//! so that one that is stuck does not hold up the others.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use job::Change;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::changes::Changes;
use crate::StoreError;

/// How long a batch waits for more calls under heavy load.
const LINGER: Duration = Duration::from_millis(3);
/// How long a batch waits for the transaction under way. About as long as a full one takes.
const TIMEOUT: Duration = Duration::from_millis(25);
/// A batch of at least this many calls counts as heavy load.
const MANY: usize = 8;

/// A call that can share a transaction with others of its kind.
pub(crate) trait Batched: Send + Sync + Sized + 'static {
    /// What each caller gets.
    type Answer: Send + 'static;
    /// The maximum number of calls in one transaction.
    const MAX_ROWS: usize = 256;
    /// The maximum size of one transaction in bytes. A single call that is larger goes alone. Every connection keeps two buffers as
    /// large as the largest transaction that it has sent, and a larger batch saves little: its cost is in its bytes.
    const MAX_BYTES: usize = 1024 * 1024;
    /// How many transactions can run side by side, so that a slow one does not block the next.
    const LANES: usize = 2;

    /// Estimates how many bytes the call adds to a transaction.
    fn bytes(&self) -> usize;

    /// Returns the call's key. Two calls of the same key must not share a batch.
    fn key(&self) -> u128;

    /// Returns further keys, for which the same holds.
    fn more_keys(&self) -> impl Iterator<Item = u128> {
        std::iter::empty()
    }

    /// Runs the transaction. The answers are in the order of the calls.
    fn commit(
        pool: &Pool,
        batch: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;

    /// Adds the jobs that the call has changed, as its answer says.
    fn changed(&self, answer: &Self::Answer, changes: &mut Vec<Change>);
}

type Call<T> = (T, oneshot::Sender<Result<<T as Batched>::Answer, StoreError>>);

pub(crate) struct Batcher<T: Batched> {
    calls: mpsc::Sender<Call<T>>,
}

impl<T: Batched> Clone for Batcher<T> {
    fn clone(&self) -> Self {
        Batcher { calls: self.calls.clone() }
    }
}

impl<T: Batched> Batcher<T> {
    /// Starts the lanes; they end with the last clone.
    pub(crate) fn start(pool: Pool, changes: Changes) -> Self {
        let (calls, queue) = mpsc::channel(4 * T::MAX_ROWS);
        let queue = Arc::new(Mutex::new(Queue { calls: queue, held: None, many: false }));
        let turn = Arc::new(Mutex::new(()));
        for _ in 0..T::LANES {
            let (pool, queue, turn, changes) = (pool.clone(), queue.clone(), turn.clone(), changes.clone());
            tokio::spawn(async move {
                loop {
                    let mut queue = queue.lock().await;
                    let Some(first) = queue.first().await else { return };
                    let _turn = timeout(TIMEOUT, turn.lock()).await;
                    let batch = queue.gather(first).await;
                    drop(queue);
                    run(&pool, &changes, batch).await;
                }
            });
        }
        Batcher { calls }
    }

    pub(crate) async fn call(&self, call: T) -> Result<T::Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.calls.send((call, reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

struct Queue<T: Batched> {
    calls: mpsc::Receiver<Call<T>>,
    /// A call that was taken from the channel but did not fit into the previous batch.
    held: Option<Call<T>>,
    /// Whether the previous batch showed heavy load.
    many: bool,
}

impl<T: Batched> Queue<T> {
    /// Waits for a call; `None` when all callers are gone.
    async fn first(&mut self) -> Option<Call<T>> {
        match self.held.take() {
            Some(call) => Some(call),
            None => self.calls.recv().await,
        }
    }

    /// Adds the calls that have already arrived, as far as they fit.
    async fn gather(&mut self, first: Call<T>) -> Vec<Call<T>> {
        let mut bytes = first.0.bytes();
        let mut keys: HashSet<u128> = first.0.more_keys().chain([first.0.key()]).collect();
        let mut batch = vec![first];
        if self.many {
            sleep(LINGER).await;
        }
        while batch.len() < T::MAX_ROWS {
            let Ok(call) = self.calls.try_recv() else { break };
            bytes += call.0.bytes();
            let is_in_batch = call.0.more_keys().chain([call.0.key()]).any(|key| !keys.insert(key));
            if bytes > T::MAX_BYTES || is_in_batch {
                self.held = Some(call);
                break;
            }
            batch.push(call);
        }
        self.many = batch.len() >= MANY;
        batch
    }
}

/// Commits a batch. If it fails for a reason that may lie in one of its calls, every call is tried alone, so
/// that only the culprit fails. The smallest come first, because a large one may be the culprit and take its
/// time.
async fn run<T: Batched>(pool: &Pool, changes: &Changes, batch: Vec<Call<T>>) {
    let (calls, replies): (Vec<T>, Vec<_>) = batch.into_iter().unzip();
    match commit(pool, changes, &calls).await {
        Ok(answers) => {
            for (reply, answer) in replies.into_iter().zip(answers) {
                // A caller that no longer waits (its job was stopped) needs no answer.
                let _ = reply.send(Ok(answer));
            }
        }
        Err(error) if calls.len() > 1 && error.may_lie_in_one_call() => {
            let mut alone: Vec<Call<T>> = calls.into_iter().zip(replies).collect();
            alone.sort_by_key(|(call, _)| call.bytes());
            for (call, reply) in alone {
                let _ = reply.send(alone_in_its_batch(pool, changes, &call).await);
            }
        }
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

/// Runs the transaction of these calls, and notes what it has changed.
pub(crate) async fn commit<T: Batched>(
    pool: &Pool,
    changes: &Changes,
    calls: &[T],
) -> Result<Vec<T::Answer>, StoreError> {
    let answers = T::commit(pool, calls).await?;
    changes.note(|| {
        let mut changed = Vec::new();
        for (call, answer) in calls.iter().zip(&answers) {
            call.changed(answer, &mut changed);
        }
        changed
    });
    Ok(answers)
}

/// Runs a call in a transaction of its own.
pub(crate) async fn alone_in_its_batch<T: Batched>(
    pool: &Pool,
    changes: &Changes,
    call: &T,
) -> Result<T::Answer, StoreError> {
    let mut answers = commit(pool, changes, std::slice::from_ref(call)).await?;
    Ok(answers.remove(0))
}
