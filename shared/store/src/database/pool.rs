//! Connections to Postgres, as `postgres` opens them.

use std::time::Duration;

use deadpool_postgres::{
    Connect, Manager, ManagerConfig, Pool, PoolBuilder, QueueMode, RecyclingMethod, Runtime, Timeouts,
};
use postgres::Address;

use super::connect::{ForBeats, ForWork, Places};

/// The time limit of a heartbeat. One that is lost in the network must not keep the next ones from arriving
/// within the lease.
pub(crate) const BEAT_BOUND: Duration = Duration::from_secs(3);

/// How to reach the ledger.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    address: Address,
    pool_size: usize,
}

impl StoreConfig {
    /// Allows at most `pool_size` connections, one of them for heartbeats and leases alone.
    pub fn new(address: Address, pool_size: usize) -> Result<StoreConfig, String> {
        if pool_size < 2 {
            return Err(format!("a pool of {pool_size} connections is too small, expected at least 2"));
        }
        Ok(StoreConfig { address, pool_size })
    }

    /// Returns where Postgres is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns the pool for work and the pool for heartbeats.
    pub(crate) fn pools(&self) -> (Pool, Pool) {
        let places = Places::default();
        let work = ForWork(self.address.clone(), places.clone());
        let work = self.pool(work, self.pool_size - 1, Duration::from_secs(10));
        let work = built(work.pre_recycle(places.look_before_use()));
        places.made_by(&work);
        let beats = ForBeats(self.address.clone(), places);
        (work, built(self.pool(beats, 1, BEAT_BOUND)))
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
