//! The ledger as a source: the demand of each pool's jobs, and the capacity of its workers.

use std::sync::Arc;
use std::time::Duration;

use job::Name;
use store::{Clock, Durations, PoolDemand, Store, StoreError};

use crate::decide::{Demand, ServiceTime};

/// A pool to be observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its name.
    pub pool: Name,
    /// Jobs that come due within this time count as due soon.
    pub due_horizon: Duration,
}

/// The pools, grouped as the ledger is asked about them.
pub(super) struct WatchedPools {
    store: Store,
    names: Vec<Name>,
    groups: Vec<Group>,
}

/// Pools with the same horizon, which share a query. As a rule these are all pools.
struct Group {
    due_horizon: Duration,
    /// Their places among all pools.
    places: Vec<usize>,
    names: Vec<Name>,
}

impl WatchedPools {
    pub(super) fn new(store: Store, pools: &[Watched]) -> WatchedPools {
        let mut groups: Vec<Group> = Vec::new();
        for (place, Watched { pool, due_horizon }) in pools.iter().enumerate() {
            let known = groups.iter().position(|group| group.due_horizon == *due_horizon);
            let at = known.unwrap_or_else(|| {
                groups.push(Group { due_horizon: *due_horizon, places: Vec::new(), names: Vec::new() });
                groups.len() - 1
            });
            groups[at].places.push(place);
            groups[at].names.push(pool.clone());
        }
        WatchedPools { store, names: pools.iter().map(|watched| watched.pool.clone()).collect(), groups }
    }

    /// Reads Postgres's clock, and the demand of all pools in their order, without service times.
    pub(super) async fn demand(self: Arc<Self>) -> Result<(Clock, Vec<Demand>), String> {
        let clock = self.store.clock().await.map_err(text)?;
        let mut demands = vec![Demand::default(); self.names.len()];
        for group in &self.groups {
            let read = self.store.demand(&group.names, group.due_horizon).await.map_err(text)?;
            for (place, demand) in group.places.iter().zip(read) {
                demands[*place] = of_pool(demand);
            }
        }
        Ok((clock, demands))
    }

    /// Reads how long recent jobs ran, by pool, in their order; `None` if none ended.
    pub(super) async fn durations(self: Arc<Self>) -> Result<Vec<Option<ServiceTime>>, String> {
        let read = self.store.service_times(&self.names).await.map_err(text)?;
        Ok(read.iter().map(service_time).collect())
    }
}

fn of_pool(read: PoolDemand) -> Demand {
    Demand {
        running: read.running,
        blocked: read.blocked,
        due_soon: read.due_soon,
        oldest_waiting_ms: read.oldest_waiting_ms,
        in_line: read.in_line,
        line_is_old: read.line_is_old,
        oldest_in_line_ms: read.oldest_in_line_ms,
        workers: read.workers,
        slots: read.slots,
        busy_workers: read.busy_workers,
        draining_workers: read.draining_workers,
        arrivals_per_s: read.starts_per_s,
        service: None,
    }
}

fn service_time(durations: &Durations) -> Option<ServiceTime> {
    (!durations.is_empty()).then(|| ServiceTime {
        jobs: durations.runs(),
        mean_ms: durations.mean_ms(),
        p50_ms: durations.quantile_ms(0.5),
        p95_ms: durations.quantile_ms(0.95),
    })
}

/// Formats an error with its causes, on one line.
fn text(error: StoreError) -> String {
    service::with_causes(&error)
}
