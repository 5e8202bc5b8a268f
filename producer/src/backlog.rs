//! How much waits, so that no more is taken in than the bounds allow.
//!
//! Rows are counted: a counter beside them would drift. Counting takes a twentieth of the time at most, and a request
//! does not wait for it, except for the first of a tenant. In between, what this process has taken in is added. So a
//! bound may be exceeded by what other processes take in between two counts: half a second, and twenty times as long as
//! the last count took (a million rows: about a second).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use job::{Tenant, Trouble};
use store::{Store, StoreError};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The pause between two counts, at least.
const EVERY: Duration = Duration::from_millis(500);
/// The pause is at least so many times as long as the counts took.
const REST: u32 = 20;
/// A count that takes longer is given up.
const COUNTED_WITHIN: Duration = Duration::from_secs(10);
/// A tenant that has submitted nothing for so long is not counted.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// What waits, as far as it was counted; clones of the owner's `Arc` share it.
pub struct Backlog {
    store: Store,
    /// The most unfinished jobs; `None` is no bound.
    most: Option<u32>,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    all: Count,
    tenants: HashMap<Tenant, Waiting>,
}

/// A count of rows, and what was taken in since it was begun.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    rows: u64,
    since: u64,
}

struct Waiting {
    count: Count,
    most: u32,
    asked: Instant,
}

/// Why no more is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// So many jobs of the tenant wait, which is its bound.
    Tenant(u32),
    /// So many jobs have not ended, which is the bound of all.
    All(u32),
}

impl Count {
    fn room(self, most: u32) -> u64 {
        u64::from(most).saturating_sub(self.rows + self.since)
    }

    /// A new count, which was begun when `since` was so high.
    fn counted(&mut self, rows: u64, begun: u64) {
        *self = Count { rows, since: self.since.saturating_sub(begun) };
    }
}

impl Backlog {
    /// Nothing is counted yet.
    pub fn new(store: Store, most: Option<u32>) -> Backlog {
        Backlog { store, most, counted: Mutex::default() }
    }

    /// How many of so many jobs may be taken in, and why not more.
    pub async fn room(
        &self,
        tenant: &Tenant,
        max_waiting: Option<u32>,
        wanted: u32,
    ) -> Result<(u32, Option<Full>), StoreError> {
        let of_tenant = match max_waiting {
            Some(most) => Some((self.room_of(tenant, most).await?, Full::Tenant(most))),
            None => None,
        };
        let of_all = self.most.map(|most| (self.lock().all.room(most), Full::All(most)));
        let tightest = of_all.into_iter().chain(of_tenant).min_by_key(|(room, _)| *room);
        Ok(match tightest {
            Some((room, full)) if room < u64::from(wanted) => (room as u32, Some(full)),
            _ => (wanted, None),
        })
    }

    async fn room_of(&self, tenant: &Tenant, most: u32) -> Result<u64, StoreError> {
        if let Some(waiting) = self.lock().tenants.get_mut(tenant) {
            (waiting.most, waiting.asked) = (most, Instant::now());
            return Ok(waiting.count.room(most));
        }
        let rows = self.store.count_waiting_of(tenant, most).await?;
        let waiting = Waiting { count: Count { rows, since: 0 }, most, asked: Instant::now() };
        let mut counted = self.lock();
        Ok(counted.tenants.entry(tenant.clone()).or_insert(waiting).count.room(most))
    }

    /// Notes that so many jobs of a tenant were taken in.
    pub fn taken_in(&self, tenant: &Tenant, count: usize) {
        let mut counted = self.lock();
        counted.all.since += count as u64;
        if let Some(waiting) = counted.tenants.get_mut(tenant) {
            waiting.count.since += count as u64;
        }
    }

    /// Counts again and again until `end` is cancelled.
    pub async fn keep(&self, end: CancellationToken) {
        let mut trouble = Trouble::default();
        let counting = async {
            loop {
                let begun = Instant::now();
                match timeout(COUNTED_WITHIN, self.count()).await {
                    Ok(Ok(())) => drop(trouble.ends()),
                    Ok(Err(cause)) if trouble.begins() => {
                        warn!(cause = cause.as_dyn(), "what waits cannot be counted, trying again");
                    }
                    Ok(Err(_)) => {}
                    Err(_) if trouble.begins() => {
                        warn!(
                            "what waits was not counted within {} s, trying again",
                            COUNTED_WITHIN.as_secs()
                        );
                    }
                    Err(_) => {}
                }
                sleep(EVERY.max(begun.elapsed() * REST)).await;
            }
        };
        end.run_until_cancelled(counting).await.unwrap_or(())
    }

    async fn count(&self) -> Result<(), StoreError> {
        if let Some(most) = self.most {
            let begun = self.lock().all.since;
            let rows = self.store.count_unfinished(most).await?;
            self.lock().all.counted(rows, begun);
        }
        let bounded: Vec<(Tenant, u32, u64)> = {
            let mut counted = self.lock();
            counted.tenants.retain(|_, waiting| waiting.asked.elapsed() < FORGOTTEN_AFTER);
            let of =
                |(tenant, waiting): (&Tenant, &Waiting)| (tenant.clone(), waiting.most, waiting.count.since);
            counted.tenants.iter().map(of).collect()
        };
        for (tenant, most, begun) in bounded {
            let rows = self.store.count_waiting_of(&tenant, most).await?;
            if let Some(waiting) = self.lock().tenants.get_mut(&tenant) {
                waiting.count.counted(rows, begun);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
