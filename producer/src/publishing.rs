//! Publishing behind the answer: a caller that has its 202 waits for no broker.
//!
//! The row is what was promised. What is not published here, because the broker is away or too much waits already,
//! stays `publishing` in the ledger, and a relay publishes it seconds later. So this has bounds and no retries.

use std::sync::Arc;
use std::time::Duration;

use dispatch::Dispatch;
use service::with_causes;
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
/// Submissions whose messages go together, so that noting their confirms is one transaction.
const TOGETHER: usize = 256;
/// Such groups on their way at a time.
const GROUPS: usize = 8;
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
        loop {
            let mut group = Vec::new();
            let next = async {
                let slot = slots.clone().acquire_owned().await.ok()?;
                let count = self.waiting.recv_many(&mut group, TOGETHER).await;
                (count > 0).then_some(slot)
            };
            let Some(Some(slot)) = end.run_until_cancelled(next).await else { break };
            // Without a broker a publish would wait for one. The rows are found later.
            if self.dispatch.broker.held_up().is_some() {
                continue;
            }
            let dispatch = self.dispatch.clone();
            groups.spawn(async move {
                publish(&dispatch, group).await;
                drop(slot);
            });
        }
        self.waiting.close();
        let mut rest = Vec::new();
        while let Ok(submitted) = self.waiting.try_recv() {
            rest.push(submitted);
        }
        if !rest.is_empty() && self.dispatch.broker.held_up().is_none() {
            let dispatch = self.dispatch.clone();
            groups.spawn(async move { publish(&dispatch, rest).await });
        }
        groups.close();
        let _ = timeout(LAST_PUBLISHES, groups.wait()).await;
    }
}

async fn publish(dispatch: &Dispatch, group: Vec<Held<Submitted>>) {
    let (group, _rooms): (Vec<Submitted>, Vec<OwnedSemaphorePermit>) =
        group.into_iter().map(|held| (held.entry, held.room)).unzip();
    if let Err(error) = submit::publish(dispatch, group).await {
        warn!("jobs are accepted and not noted as queued: {}", with_causes(error.as_ref()));
    }
}
