//! Publishing behind the answer: a caller that has its 202 waits for no broker.
//!
//! The row is what was promised. What is not published here, because the broker is away, comes due again in a second, for a relay
//! that has one: until then it would stand in the way of others in its pool's line. Where too much waits already it stays
//! `publishing` in the ledger, and comes due later. So this has bounds and no retries.
//!
//! Nothing waits for the note that the broker has confirmed a job. So it is written a moment later, for many jobs at a
//! time, and most jobs that a worker could take at once have begun by then: they need no note, and no change of them is
//! announced.

use std::sync::Arc;
use std::time::Duration;

use dispatch::{Dispatch, Sent};
use job::Trouble;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::bounded_queue::{BoundedQueue, Held};
use crate::submit::{self, Submitted};

/// Submissions that wait or are on their way, and the bytes of their messages.
const WAITING: usize = 4_096;
const WAITING_BYTES: usize = 64 << 20;
/// Submissions whose messages go together.
const TOGETHER: usize = 256;
/// Such groups on their way at a time.
const GROUPS: usize = 8;
/// How long the broker's answers gather before they are noted, and how many jobs one note is about, or a few more.
const NOTED_AFTER: Duration = Duration::from_millis(50);
const NOTED_TOGETHER: usize = 1_024;
/// How long the end of the process waits for what is on its way.
const LAST_PUBLISHES: Duration = Duration::from_secs(3);

/// Where submissions are handed over.
#[derive(Clone)]
pub struct Publishing {
    submissions: BoundedQueue<Submitted>,
}

impl Publishing {
    /// What is handed over, and what publishes it: to be run beside.
    pub fn new(dispatch: Dispatch) -> (Publishing, Publisher) {
        let (submissions, waiting) = BoundedQueue::new(WAITING, WAITING_BYTES);
        (Publishing { submissions }, Publisher { dispatch, waiting })
    }

    /// Publishes these soon, or leaves them to a relay.
    pub fn hand_over(&self, submitted: Submitted) {
        let bytes = submitted.bytes();
        if !self.submissions.offer(submitted, bytes) {
            debug!("too much waits to be published: a relay publishes it");
        }
    }
}

/// Publishes what is handed over.
pub struct Publisher {
    dispatch: Dispatch,
    waiting: mpsc::Receiver<Held<Submitted>>,
}

impl Publisher {
    /// Publishes until `end` is cancelled, and then what is on its way.
    pub async fn run(mut self, end: CancellationToken) {
        let (groups, slots) = (TaskTracker::new(), Arc::new(Semaphore::new(GROUPS)));
        let (answers, answered) = mpsc::channel(WAITING);
        let noting = tokio::spawn(note(self.dispatch.clone(), answered));
        loop {
            let mut group = Vec::new();
            let next = async {
                let slot = slots.clone().acquire_owned().await.ok()?;
                let count = self.waiting.recv_many(&mut group, TOGETHER).await;
                (count > 0).then_some(slot)
            };
            let Some(Some(slot)) = end.run_until_cancelled(next).await else { break };
            // Without a broker a publish would wait for one.
            if self.dispatch.broker.held_up().is_some() {
                let _ = answers.send(unsent(&group)).await;
                continue;
            }
            let (dispatch, answers) = (self.dispatch.clone(), answers.clone());
            groups.spawn(async move {
                publish(&dispatch, group, &answers).await;
                drop(slot);
            });
        }
        self.waiting.close();
        let mut rest = Vec::new();
        while let Ok(submitted) = self.waiting.try_recv() {
            rest.push(submitted);
        }
        let last = async {
            if self.dispatch.broker.held_up().is_some() {
                let _ = answers.send(unsent(&rest)).await;
            } else if !rest.is_empty() {
                publish(&self.dispatch, rest, &answers).await;
            }
            drop(answers);
            groups.close();
            groups.wait().await;
            let _ = noting.await;
        };
        let _ = timeout(LAST_PUBLISHES, last).await;
    }
}

async fn publish(dispatch: &Dispatch, group: Vec<Held<Submitted>>, answers: &mpsc::Sender<Sent>) {
    let (group, _rooms): (Vec<Submitted>, Vec<OwnedSemaphorePermit>) =
        group.into_iter().map(|held| (held.entry, held.room)).unzip();
    // It is received until all senders are gone.
    let _ = answers.send(submit::send(dispatch, group).await).await;
}

fn unsent(group: &[Held<Submitted>]) -> Sent {
    Sent::none_of(group.iter().flat_map(|held| held.entry.due()))
}

/// Notes the broker's answers until nothing more comes.
async fn note(dispatch: Dispatch, mut answered: mpsc::Receiver<Sent>) {
    let mut trouble = Trouble::default();
    while let Some(sent) = gather(&mut answered).await {
        match dispatch.note(&sent).await {
            Ok(_) => {
                trouble.ends();
            }
            Err(cause) if trouble.begins() => {
                warn!(cause = cause.as_dyn(), "jobs are accepted and not noted as queued");
            }
            Err(_) => {}
        }
    }
}

/// Waits for the next answers, and for those that come soon after them; `None` when nothing more comes.
async fn gather(answered: &mut mpsc::Receiver<Sent>) -> Option<Sent> {
    let mut sent = answered.recv().await?;
    let more = async {
        while sent.jobs() < NOTED_TOGETHER {
            match answered.recv().await {
                Some(more) => sent.add(more),
                None => break,
            }
        }
    };
    let _ = timeout(NOTED_AFTER, more).await;
    Some(sent)
}

#[cfg(test)]
mod tests {
    use job::JobId;

    use super::*;

    fn confirmed() -> Sent {
        Sent { confirmed: vec![JobId::now()], refused: Vec::new() }
    }

    #[tokio::test]
    async fn answers_that_come_together_are_noted_together() {
        let (sender, mut answered) = mpsc::channel(2 * NOTED_TOGETHER);
        for _ in 0..3 {
            sender.try_send(confirmed()).expect("room");
        }
        assert_eq!(gather(&mut answered).await.expect("answers").jobs(), 3);
        for _ in 0..NOTED_TOGETHER + 2 {
            sender.try_send(confirmed()).expect("room");
        }
        assert_eq!(gather(&mut answered).await.expect("answers").jobs(), NOTED_TOGETHER);
        drop(sender);
        assert_eq!(gather(&mut answered).await.expect("the rest").jobs(), 2);
        assert!(gather(&mut answered).await.is_none());
    }
}
