//! Which pools are served, or were: a job for another one would make a queue that no worker reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use job::Name;
use store::{Store, StoreError};

/// How long the ledger's word counts.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// The pools that the ledger has known lately.
#[derive(Default)]
pub struct Served(Mutex<HashMap<Name, Instant>>);

impl Served {
    /// Returns those of these pools that no worker serves or has ever served. The ledger is asked for all of them at once.
    pub async fn unserved(
        &self,
        store: &Store,
        mut pools: BTreeSet<Name>,
    ) -> Result<BTreeSet<Name>, StoreError> {
        self.lock().retain(|pool, since| {
            let known = since.elapsed() < KNOWN_FOR;
            if known {
                pools.remove(pool);
            }
            known
        });
        if pools.is_empty() {
            return Ok(pools);
        }
        for pool in store.served_pools(&pools).await? {
            pools.remove(&pool);
            self.lock().insert(pool, Instant::now());
        }
        Ok(pools)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
