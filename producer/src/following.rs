//! Following: callers that wait for jobs' ends share one question to Postgres, however many they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use job::{JobId, JobState, Trouble};
use store::{Store, StoreError};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The pause between two questions, while someone waits.
const EVERY: Duration = Duration::from_millis(100);
/// The pause is at least so many times as long as the question took: where many wait, Postgres has other work as well.
const REST: u32 = 5;
/// Jobs that are asked for at once.
const CHUNK: usize = 5_000;
/// A question that takes longer is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

type Waiting = HashMap<JobId, Vec<oneshot::Sender<JobState>>>;

/// The callers that wait, by job; clones share them.
#[derive(Clone, Default)]
pub struct Following {
    waiting: Arc<Mutex<Waiting>>,
    begun: Arc<Notify>,
}

impl Following {
    /// Waits until this job has ended, but not longer than this; `None` when it has not. A job that the ledger does
    /// not know yet is waited for as well.
    pub async fn end_of(&self, job_id: JobId, until: Instant) -> Option<JobState> {
        let (sender, ended) = oneshot::channel();
        self.lock().entry(job_id).or_default().push(sender);
        self.begun.notify_one();
        timeout_at(until, ended).await.ok()?.ok()
    }

    /// Asks Postgres while someone waits, until `end` is cancelled.
    pub async fn run(self, store: Store, end: CancellationToken) {
        let mut trouble = Trouble::default();
        let asking = async {
            loop {
                let jobs = self.still_waiting();
                if jobs.is_empty() {
                    self.begun.notified().await;
                    continue;
                }
                let begun = Instant::now();
                for chunk in jobs.chunks(CHUNK) {
                    let answer = timeout(ANSWER_WITHIN, store.ended_among(chunk)).await;
                    match answer.unwrap_or_else(|_| Err(StoreError::unavailable("no answer in time"))) {
                        Ok(ended) => {
                            trouble.ends();
                            self.note(&ended);
                        }
                        Err(error) if trouble.begins() => {
                            warn!(
                                cause = error.as_dyn(),
                                "jobs that callers wait for cannot be read, retrying"
                            );
                        }
                        Err(_) => {}
                    }
                }
                sleep(EVERY.max(begun.elapsed() * REST)).await;
            }
        };
        end.run_until_cancelled(asking).await.unwrap_or(())
    }

    /// Forgets the callers that wait no more.
    fn still_waiting(&self) -> Vec<JobId> {
        let mut waiting = self.lock();
        waiting.retain(|_, callers| {
            callers.retain(|caller| !caller.is_closed());
            !callers.is_empty()
        });
        waiting.keys().copied().collect()
    }

    fn note(&self, ended: &[(JobId, JobState)]) {
        let mut waiting = self.lock();
        for (job_id, state) in ended {
            for caller in waiting.remove(job_id).into_iter().flatten() {
                // It may have stopped waiting just now.
                let _ = caller.send(*state);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
