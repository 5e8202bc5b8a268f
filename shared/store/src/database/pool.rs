//! Connections to Postgres, as `postgres` opens them.

use std::time::Duration;

use deadpool_postgres::{
    Connect, Manager, ManagerConfig, Pool, PoolBuilder, QueueMode, RecyclingMethod, Runtime, Timeouts,
};
use postgres::{Address, SetBy};

use super::batch::Batcher;
use super::connect::{ForBeats, ForWork, Places};
use crate::StoreError;
use crate::jobs::{CheckpointRow, ClaimRequest, Conclusion};
use crate::workers::BEAT_BOUND;

/// How to reach the ledger.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    address: Address,
    pool_size: usize,
}

impl StoreConfig {
    /// At most `pool_size` connections are opened, one of them for heartbeats and leases alone.
    pub fn new(address: Address, pool_size: usize) -> Result<StoreConfig, String> {
        if pool_size < 2 {
            return Err(format!("a pool of {pool_size} connections is too small, expected at least 2"));
        }
        Ok(StoreConfig { address, pool_size })
    }

    /// Where Postgres is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    fn pool(&self, connect: impl Connect + 'static, size: usize, bound: Duration) -> PoolBuilder {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let bound = Some(bound);
        Pool::builder(Manager::from_connect(self.address.config().clone(), connect, recycling))
            .max_size(size)
            .runtime(Runtime::Tokio1)
            // The connection used last has the warmest caches.
            .queue_mode(QueueMode::Lifo)
            .timeouts(Timeouts { wait: bound, create: bound, recycle: bound })
    }
}

fn built(pool: PoolBuilder) -> Pool {
    pool.build().expect("timeouts come with a runtime")
}

/// A handle on the ledger; clones share its connections and batches.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: Pool,
    /// Heartbeats must not wait behind work, nor go without a connection because work has them all.
    pub(crate) beats: Pool,
    /// What a connection is set to is kept only where this says so.
    pub(crate) set_by: SetBy,
    pub(crate) claims: Batcher<ClaimRequest>,
    pub(crate) checkpoints: Batcher<CheckpointRow>,
    pub(crate) conclusions: Batcher<Conclusion>,
}

impl Store {
    /// Opens nothing yet: connections are made when they are needed, and made anew when they break.
    ///
    /// Must be called within a tokio runtime; the batches run as tasks until the last clone is dropped.
    pub fn new(config: &StoreConfig) -> Store {
        let places = Places::default();
        let work = ForWork(config.address.clone(), places.clone());
        let work = config.pool(work, config.pool_size - 1, Duration::from_secs(10));
        let pool = built(work.pre_recycle(places.look_before_use()));
        places.made_by(&pool);
        let beats = ForBeats(config.address.clone(), places);
        Store {
            claims: Batcher::start(pool.clone()),
            checkpoints: Batcher::start(pool.clone()),
            conclusions: Batcher::start(pool.clone()),
            set_by: config.address.set_by(),
            beats: built(config.pool(beats, 1, BEAT_BOUND)),
            pool,
        }
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let client = self.pool.get().await?;
        client.simple_query("SELECT 1").await.map_err(|error| StoreError::from_pg("ping", error))?;
        Ok(())
    }

    /// Closes all connections; calls under way finish, later ones fail.
    pub fn close(&self) {
        self.pool.close();
        self.beats.close();
    }
}
