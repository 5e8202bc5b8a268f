//! Which pools are served: a job for another one would make a queue that no worker reads.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use job::Name;
use store::{Store, StoreError};

/// How long the ledger's word counts.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// The pools that were seen to be served lately.
#[derive(Default)]
pub struct Served(Mutex<HashMap<Name, Instant>>);

impl Served {
    /// Whether a worker serves this pool or has served it lately. The pool `default` is always there.
    pub async fn has(&self, store: &Store, pool: &Name) -> Result<bool, StoreError> {
        if *pool == Name::default() || self.is_known(pool) {
            return Ok(true);
        }
        let served = store.pool_is_served(pool).await?;
        if served {
            self.lock().insert(pool.clone(), Instant::now());
        }
        Ok(served)
    }

    fn is_known(&self, pool: &Name) -> bool {
        let mut known = self.lock();
        known.retain(|_, since| since.elapsed() < KNOWN_FOR);
        known.contains_key(pool)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
