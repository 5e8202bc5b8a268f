//! What the supervisor, publishers and slots of one connection share.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::link::Link;
use crate::refusals::Refusals;
use crate::{BrokerConfig, QueueError, topology};

/// The status of the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerStatus {
    /// There is no connection. Another attempt runs or waits.
    Connecting {
        /// Why the last connection or attempt ended. `None` before the first one has ended.
        reason: Option<String>,
    },
    /// Connected, with the topology declared.
    Ready {
        /// Counts the connections, from 1.
        generation: u64,
    },
    /// Closed for good.
    Closed {
        /// Why.
        reason: String,
    },
}

/// What the supervisor, publishers and slots share.
pub(crate) struct Shared {
    pub(crate) config: BrokerConfig,
    pub(crate) stop: CancellationToken,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Cancelled when the sending task has ended and every publish is answered.
    pub(crate) answered: CancellationToken,
    /// The tasks that announce and listen. Each closes its channel before the connection is closed.
    pub(crate) announcing: TaskTracker,
    pub(crate) pools: Mutex<Vec<job::Name>>,
    /// Pools whose queue was deleted or missing, and exists again.
    pub(crate) redeclared: watch::Sender<BTreeMap<job::Name, Instant>>,
    pub(crate) status: watch::Sender<BrokerStatus>,
    pub(crate) blocked: watch::Sender<Option<String>>,
    pub(crate) link: watch::Sender<Option<Arc<Link>>>,
    pub(crate) refusals: Refusals,
    /// The number of slots that want to consume and do not do so yet.
    pub(crate) seeking: AtomicUsize,
}

impl Shared {
    /// Waits for a link and returns it.
    pub(crate) async fn live_link(&self, within: Duration) -> Result<Arc<Link>, QueueError> {
        match timeout(within, self.next_link()).await {
            Ok(Some(link)) => Ok(link),
            Ok(None) => Err(QueueError::Closed { reason: self.reason() }),
            Err(_) => Err(QueueError::Unavailable { reason: self.reason() }),
        }
    }

    /// Waits for a link that works. Returns `None` if there will be none any more.
    pub(crate) async fn next_link(&self) -> Option<Arc<Link>> {
        let mut links = self.link.subscribe();
        let usable = |link: &Option<Arc<Link>>| link.as_ref().is_some_and(|link| link.is_usable());
        tokio::select! {
            biased;
            link = links.wait_for(usable) => link.ok()?.clone(),
            () = self.stop.cancelled() => None,
        }
    }

    /// Declares a pool's queue if it is missing, and notes that it was.
    pub(crate) async fn declare_missing(&self, link: &Link, pool: &job::Name) -> Result<(), QueueError> {
        if link.declare_missing(pool).await? {
            self.note_redeclared([(pool.clone(), Instant::now())]);
        }
        Ok(())
    }

    /// Notes pools whose queue was missing, and until when.
    pub(crate) fn note_redeclared(&self, pools: impl IntoIterator<Item = (job::Name, Instant)>) {
        self.redeclared.send_if_modified(|redeclared| {
            let before = redeclared.len();
            redeclared.extend(pools);
            redeclared.len() > before
        });
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.borrow().is_some()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.link.borrow().as_ref().is_some_and(|link| link.is_usable())
    }

    /// Adds a pool whose queue is declared at every connect.
    pub(crate) fn keep(&self, pool: &job::Name) {
        let mut pools = self.pools();
        if !pools.contains(pool) {
            pools.push(pool.clone());
        }
    }

    /// Returns the pool that a queue belongs to, if it is one of those we declare.
    pub(crate) fn pool_of(&self, queue: &str) -> Option<job::Name> {
        self.pools().iter().find(|pool| topology::jobs_queue(pool) == queue).cloned()
    }

    /// Returns the status as text, for an error.
    pub(crate) fn reason(&self) -> String {
        match &*self.status.borrow() {
            BrokerStatus::Connecting { reason: Some(reason) } | BrokerStatus::Closed { reason } => {
                reason.clone()
            }
            BrokerStatus::Connecting { reason: None } => "not connected yet".to_owned(),
            BrokerStatus::Ready { .. } => match &*self.blocked.borrow() {
                Some(reason) => format!("the broker blocks this connection ({reason})"),
                None => {
                    let refused = self.refusals.any();
                    refused.unwrap_or_else(|| "connected, but the broker does not answer".to_owned())
                }
            },
        }
    }

    pub(crate) fn pools(&self) -> std::sync::MutexGuard<'_, Vec<job::Name>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the supervision when its last clone is dropped.
pub(crate) type Alive = Arc<DropGuard>;

/// Returns a number from 0 to 1 that differs in every process and at every call, because the standard library's hash
/// keys are random.
pub(crate) fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}
