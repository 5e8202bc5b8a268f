//! A pool's account for people: what is known, and why the rest is unknown.

use job::Name;
use serde::Serialize;

use super::Observer;
use crate::decide::Demand;

/// What is known of a pool.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The pool.
    pub pool: Name,
    /// Messages ready in its queue.
    pub ready: Option<u64>,
    /// Why that is not known, or not as of now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_unknown: Option<String>,
    /// What the ledger knows.
    pub ledger: Option<Demand>,
    /// Why that is not known, or not as of now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger_unknown: Option<String>,
    /// Messages ready by the management API, if that is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed_ready: Option<u64>,
    /// Why that is not known, or not as of now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed_unknown: Option<String>,
}

impl Account {
    /// Whether everything is known.
    pub fn is_complete(&self) -> bool {
        [&self.ready_unknown, &self.ledger_unknown, &self.managed_unknown].iter().all(|why| why.is_none())
    }
}

impl Observer {
    /// Returns the account of a pool after the last round; `None` for a pool that is not observed.
    pub fn account(&self, name: &Name) -> Option<Account> {
        let seen = self.seen();
        let pool = seen.pool(name)?;
        let health = &seen.health;
        Some(Account {
            pool: name.clone(),
            ready: pool.ready().map(|ready| ready.value),
            ready_unknown: pool.why_ready_is_unknown(&health.queue),
            ledger: pool
                .demand
                .as_ref()
                .map(|demand| Demand { service: pool.service, ..demand.value.clone() }),
            ledger_unknown: health.ledger.error.clone(),
            managed_ready: pool.managed.as_ref().map(|managed| managed.value),
            managed_unknown: health.management.error.clone(),
        })
    }
}
