//! Observe: one look at a pool, each source on its own. What cannot be read is unknown, never zero.

use job::Name;
use queue::Broker;
use serde::Serialize;
use store::{FleetCounts, Store};

/// What is known of a pool at one moment.
#[derive(Debug, Serialize)]
pub struct Observation {
    /// The pool.
    pub pool: Name,
    /// Messages that wait in its queue; `None` when the broker cannot tell or there is no such queue.
    pub ready: Option<u64>,
    /// Why `ready` is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_unknown: Option<String>,
    /// Jobs, workers and the age of the backlog; `None` when the ledger cannot tell.
    pub ledger: Option<FleetCounts>,
    /// Why `ledger` is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger_unknown: Option<String>,
}

impl Observation {
    /// Whether both windows could be looked through.
    pub fn is_complete(&self) -> bool {
        self.ready.is_some() && self.ledger.is_some()
    }
}

/// Looks at a pool through both windows at once.
pub async fn observe(broker: &Broker, store: &Store, pool: &Name) -> Observation {
    let queue = queue::jobs_queue(pool);
    let (depth, ledger) = tokio::join!(broker.depth(&queue), store.fleet_counts(Some(pool)));
    let (ready, ready_unknown) = match depth {
        Ok(Some(depth)) => (Some(depth.ready), None),
        Ok(None) => (None, Some(format!("there is no queue {queue}"))),
        Err(error) => (None, Some(error.to_string())),
    };
    let (ledger, ledger_unknown) = match ledger {
        Ok(counts) => (Some(counts), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Observation { pool: pool.clone(), ready, ready_unknown, ledger, ledger_unknown }
}
