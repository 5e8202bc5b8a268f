//! How much waits, so that no more is taken in than the bounds allow.
//!
//! Rows are counted: a counter beside them would drift. In between, what this process has taken in is added, and what has
//! ended meanwhile is not known. So nothing is refused by such a sum: where it leaves no room, the rows are counted anew,
//! and a refusal is by a count that began after the request had come.
//!
//! Each count is made again after a pause of its own, the one that is due the longest first, so that mostly no request waits
//! for one. One count is made at a time for each tenant, for all requests that wait for it, and rests afterwards for as long
//! as it took; after one that found no room for a tenth of a second, so that refusals are cheap.
//!
//! A bound may be exceeded by what other processes take in between two counts (half a second, or twenty times as long as
//! the last one took: for a million rows about a second), and by what is taken in while one is made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use job::{Tenant, Trouble};
use store::{Store, StoreError};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The pause between two counts of the same rows, at least.
const EVERY: Duration = Duration::from_millis(500);
/// The pause is at least so many times as long as the count took.
const REST: u32 = 20;
/// The pause behind a count that found no room, where requests wait for the next one.
const FULL_EVERY: Duration = Duration::from_millis(100);
/// How often a request counts anew before it decides. After the last time it decides by the rows alone.
const RECOUNTS: u32 = 3;
/// A count that takes longer is given up.
const COUNTED_WITHIN: Duration = Duration::from_secs(10);
/// A tenant that has submitted nothing for so long is not counted.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// What waits, as far as it was counted; clones of the owner's `Arc` share it.
pub struct Backlog {
    store: Store,
    /// All unfinished jobs; `None` is no bound.
    all: Option<Arc<Counter>>,
    tenants: Mutex<HashMap<Tenant, Arc<Counter>>>,
}

/// Why no more is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// So many jobs of the tenant wait, which is its bound.
    Tenant(u32),
    /// So many jobs have not ended, which is the bound of all.
    All(u32),
}

/// The rows of a tenant, or all, and how they are counted.
struct Counter {
    /// `None`: of all.
    tenant: Option<Tenant>,
    state: Mutex<State>,
    /// Held while they are counted.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    last: Option<Count>,
    /// What was taken in since the last count began.
    since: u64,
    /// Rows beyond this are not counted.
    most: u32,
    asked: Instant,
    /// After a count that failed.
    not_before: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    rows: u64,
    most: u32,
    begun: Instant,
    took: Duration,
}

impl State {
    fn new(most: u32, now: Instant) -> State {
        State { last: None, since: 0, most, asked: now, not_before: now }
    }

    /// How many of so many there is room for, for a request that came then; `None` where only a new count can say so.
    fn room(&self, wanted: u32, came: Instant) -> Option<u64> {
        let count = self.last.filter(|count| count.most >= self.most)?;
        let most = u64::from(self.most);
        let room = most.saturating_sub(count.rows + self.since);
        let is_certain = count.begun >= came && (self.since == 0 || count.rows >= most);
        (room >= u64::from(wanted) || is_certain).then_some(room)
    }

    /// When the rows are to be counted again.
    fn due(&self) -> Option<Instant> {
        let due = self.last.map(|count| count.begun + count.took + EVERY.max(count.took * REST));
        due.map(|due| due.max(self.not_before))
    }
}

impl Counter {
    fn new(tenant: Option<Tenant>, most: u32) -> Arc<Counter> {
        let state = Mutex::new(State::new(most, Instant::now()));
        Arc::new(Counter { tenant, state, counting: tokio::sync::Mutex::default() })
    }

    /// How many of so many there is room for.
    async fn room(&self, store: &Store, wanted: u32) -> Result<u64, StoreError> {
        let came = Instant::now();
        let mut after = came;
        for _ in 0..RECOUNTS {
            if let Some(room) = self.state().room(wanted, came) {
                return Ok(room);
            }
            self.count(store, after).await?;
            after = Instant::now();
        }
        // What was taken in while the rows were counted may be among them.
        let state = *self.state();
        Ok(u64::from(state.most).saturating_sub(state.last.map_or(0, |count| count.rows)))
    }

    /// Counts, unless that was begun after this moment.
    async fn count(&self, store: &Store, after: Instant) -> Result<(), StoreError> {
        let _counting = self.counting.lock().await;
        let last = self.state().last;
        if let Some(last) = last {
            if last.begun >= after {
                return Ok(());
            }
            let rest = if last.rows >= last.most.into() { FULL_EVERY } else { Duration::ZERO };
            sleep_until(last.begun + rest.max(2 * last.took)).await;
        }
        let (begun, before) = (Instant::now(), *self.state());
        let rows = match &self.tenant {
            Some(tenant) => store.count_waiting_of(tenant, before.most).await?,
            None => store.count_unfinished(before.most).await?,
        };
        let mut state = self.state();
        state.last = Some(Count { rows, most: before.most, begun, took: begun.elapsed() });
        state.since = state.since.saturating_sub(before.since);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backlog {
    /// Nothing is counted yet.
    pub fn new(store: Store, most: Option<u32>) -> Backlog {
        let all = most.map(|most| Counter::new(None, most));
        Backlog { store, all, tenants: Mutex::default() }
    }

    /// How many of so many jobs may be taken in, and why not more.
    pub async fn room(
        &self,
        tenant: &Tenant,
        max_waiting: Option<u32>,
        wanted: u32,
    ) -> Result<(u32, Option<Full>), StoreError> {
        let mut tightest = None;
        if let Some(most) = max_waiting {
            let counter = self.counter(tenant, most);
            tightest = Some((counter.room(&self.store, wanted).await?, Full::Tenant(most)));
        }
        if let Some(all) = &self.all {
            let room = all.room(&self.store, wanted).await?;
            let most = all.state().most;
            tightest = tightest.into_iter().chain([(room, Full::All(most))]).min_by_key(|(room, _)| *room);
        }
        Ok(match tightest {
            Some((room, full)) if room < u64::from(wanted) => (room as u32, Some(full)),
            _ => (wanted, None),
        })
    }

    fn counter(&self, tenant: &Tenant, most: u32) -> Arc<Counter> {
        let mut tenants = self.tenants();
        let counter =
            tenants.entry(tenant.clone()).or_insert_with(|| Counter::new(Some(tenant.clone()), most));
        let mut state = counter.state();
        (state.most, state.asked) = (most, Instant::now());
        drop(state);
        counter.clone()
    }

    /// Notes that so many jobs of a tenant were taken in.
    pub fn taken_in(&self, tenant: &Tenant, count: usize) {
        let of_tenant = self.tenants().get(tenant).cloned();
        for counter in self.all.iter().chain(&of_tenant) {
            counter.state().since += count as u64;
        }
    }

    /// Counts again and again until `end` is cancelled.
    pub async fn keep(&self, end: CancellationToken) {
        let mut trouble = Trouble::default();
        let counting = async {
            loop {
                let Some((due, counter)) = self.next_due() else {
                    sleep(EVERY).await;
                    continue;
                };
                // Another one may be due before that.
                sleep_until(due.min(Instant::now() + EVERY)).await;
                if due > Instant::now() {
                    continue;
                }
                let begun = Instant::now();
                match timeout(COUNTED_WITHIN, counter.count(&self.store, due)).await {
                    Ok(Ok(())) => {
                        _ = trouble.ends();
                        continue;
                    }
                    Ok(Err(cause)) if trouble.begins() => {
                        warn!(cause = cause.as_dyn(), "what waits cannot be counted, trying again");
                    }
                    Ok(Err(_)) => {}
                    Err(_) if trouble.begins() => {
                        let within_s = COUNTED_WITHIN.as_secs();
                        warn!("what waits was not counted within {within_s} s, trying again");
                    }
                    Err(_) => {}
                }
                counter.state().not_before = Instant::now() + EVERY.max(begun.elapsed() * REST);
            }
        };
        end.run_until_cancelled(counting).await.unwrap_or(())
    }

    /// The rows that are to be counted next, and when. The first time is a request's; after that they are kept counted.
    fn next_due(&self) -> Option<(Instant, Arc<Counter>)> {
        let mut tenants = self.tenants();
        tenants.retain(|_, counter| counter.state().asked.elapsed() < FORGOTTEN_AFTER);
        let counters = self.all.iter().chain(tenants.values());
        let due = counters.filter_map(|counter| Some((counter.state().due()?, counter)));
        due.min_by_key(|(due, _)| *due).map(|(due, counter)| (due, counter.clone()))
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<Tenant, Arc<Counter>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_refusal_is_by_a_count_that_began_after_the_request_and_says_so(
            most in 0_u32..50,
            rows in 0_u64..60,
            since in 0_u64..60,
            wanted in 1_u32..10,
            later_ms in 0_u64..3,
        ) {
            let (begun, rows, all) = (Instant::now(), rows.min(most.into()), u64::from(most));
            let last = Some(Count { rows, most, begun, took: Duration::from_millis(1) });
            let state = State { last, since, ..State::new(most, begun) };
            match state.room(wanted, begun + Duration::from_millis(later_ms)) {
                Some(room) if room < u64::from(wanted) => {
                    prop_assert_eq!(later_ms, 0, "an older count refuses");
                    prop_assert_eq!(room, all - rows, "a sum refuses");
                }
                Some(room) => prop_assert!(room + rows + since <= all),
                None => prop_assert!(rows + since + u64::from(wanted) > all),
            }
        }
    }

    #[test]
    fn a_slow_count_leaves_the_pauses_of_the_others_as_they_are() {
        let begun = Instant::now();
        let due = |took| {
            State { last: Some(Count { rows: 1, most: 9, begun, took }), ..State::new(9, begun) }.due()
        };
        assert_eq!(due(Duration::from_millis(1)), Some(begun + Duration::from_millis(501)));
        assert_eq!(due(Duration::from_millis(100)), Some(begun + Duration::from_millis(2_100)));
    }
}
