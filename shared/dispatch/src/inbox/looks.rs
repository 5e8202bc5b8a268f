//! Where the looks at the inbox are: for each tenant at a place of its own, so that none is passed by for what another one
//! has, and a tenant's jobs are taken in their order.
//!
//! Mostly a look goes over all tenants from the beginning, which finds at once what commits late, at an earlier place. Where
//! a snapshot is held elsewhere, rows that were taken stay in its way. When they make it slow, it is made once a second, and
//! the looks in between go on where the last one was: of the tenants of which there is more, each behind its place, and for
//! others behind the last row of all that was seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::time::Duration;

use job::Tenant;
use store::{InboxBounds, InboxRow, Store, StoreError};
use tokio::time::Instant;
use tracing::warn;

use super::InboxRules;
use crate::Dispatch;
use crate::tick::{REST, rest};

/// A look for all tenants that takes longer is slow.
const SLOW: Duration = Duration::from_millis(5);
/// Then it is made no more often.
const FROM_THE_BEGINNING: Duration = Duration::from_secs(1);
/// How long a count of a tenant's waiting jobs holds.
const COUNTED_FOR: Duration = Duration::from_millis(250);
/// When a row that the ledger has failed on is tried again.
const APART_FOR: Duration = Duration::from_secs(10);
const OF_EACH: i64 = 256;
const MOST: i64 = 1_024;
const MOST_BYTES: i64 = 16 << 20;

/// Where the looks are.
#[derive(Default)]
pub(super) struct Looks {
    /// The tenants of which there may be more to read, each with the place that its next rows are behind.
    places: BTreeMap<Tenant, i64>,
    /// Behind this place are tenants that are not known yet.
    seen: i64,
    /// The tenant that was read last. The next look goes on behind it.
    last: Option<Tenant>,
    /// When all tenants are looked for again, if that is slow.
    all_again: Option<Instant>,
    /// The places of rows that the ledger has failed on, and when.
    apart: HashMap<i64, Instant>,
    /// How many more of a tenant's jobs may wait, and when that was counted.
    room: HashMap<Tenant, (Instant, Option<u64>)>,
}

impl Looks {
    /// Takes what one look finds. Returns the pause after that: a rest from what finding took. To take jobs in is their own cost,
    /// and no reason to let the next ones wait.
    pub(super) async fn look(
        &mut self,
        dispatch: &Dispatch,
        rules: &InboxRules,
    ) -> Result<Duration, StoreError> {
        let begun = Instant::now();
        let pause = rest(self.find(&dispatch.store).await?);
        let turns = self.turns();
        if turns.is_empty() {
            return Ok(pause);
        }
        let bounds =
            InboxBounds { of_each: OF_EACH, most: MOST, largest: rules.largest(), most_bytes: MOST_BYTES };
        let asked: Vec<(&Tenant, i64)> = turns.iter().map(|(tenant, place)| (tenant, *place)).collect();
        let now = Instant::now();
        self.apart.retain(|_, since| now - *since < APART_FOR);
        let apart: Vec<i64> = self.apart.keys().copied().collect();
        let mut rows = dispatch.store.read_inbox(&asked, &apart, bounds).await?;
        self.note(&turns, &rows);
        let bytes: i64 = rows.iter().map(|row| (row.bytes as i64).min(bounds.largest)).sum();
        let more = rows.len() as i64 >= OF_EACH || bytes >= MOST_BYTES;
        self.keep_within_bounds(dispatch, &mut rows).await?;
        if rows.is_empty() {
            // Nothing can be taken in, and finding that out may take long.
            return Ok(rest(begun.elapsed()));
        }
        for (row, cause) in dispatch.take_in(&rows, rules).await? {
            let (job_id, cause) = (row.job_id, cause.as_dyn());
            warn!(%job_id, tenant = row.tenant.unless_default(), cause, "a job enqueued by SQL cannot be taken in, trying again later");
            self.apart.insert(row.seq, now);
        }
        // They are in order, so the last one of each tenant stays.
        self.places.extend(rows.into_iter().map(|row| (row.tenant, row.seq)));
        Ok(if more { Duration::ZERO } else { pause })
    }

    /// Finds tenants that have rows: all, or those that are new. Returns what counts for the rest after it: what it took, or
    /// nothing if the next walk over all of them was put off for it.
    async fn find(&mut self, store: &Store) -> Result<Duration, StoreError> {
        let begun = Instant::now();
        let mut has_rest = false;
        let found = if self.all_again.is_none_or(|again| begun >= again) {
            let all = store.find_in_inbox().await?;
            let took = begun.elapsed();
            has_rest = took > SLOW;
            self.all_again = has_rest.then(|| begun + FROM_THE_BEGINNING.max(took * REST));
            self.places.clear();
            all
        } else {
            store.find_new_in_inbox(self.seen, MOST).await?
        };
        for turn in found {
            self.seen = self.seen.max(turn.last);
            self.places.entry(turn.tenant).or_insert(turn.place);
        }
        Ok(if has_rest { Duration::ZERO } else { begun.elapsed() })
    }

    /// The tenants that are read next, but not those that had no room a moment ago.
    fn turns(&mut self) -> Vec<(Tenant, i64)> {
        let now = Instant::now();
        self.room.retain(|_, (counted, _)| now - *counted < COUNTED_FOR);
        let has_room = |tenant: &Tenant| !matches!(self.room.get(tenant), Some((_, Some(0))));
        let behind = self.last.as_ref().map_or(Unbounded, Excluded);
        let rest = self.places.range::<Tenant, _>((behind, Unbounded));
        let first =
            self.last.iter().flat_map(|last| self.places.range::<Tenant, _>((Unbounded, Included(last))));
        let turns = rest.chain(first).filter(|(tenant, _)| has_room(tenant));
        turns.take(MOST as usize).map(|(tenant, place)| (tenant.clone(), *place)).collect()
    }

    /// Notes what was read. Those before the last one of which nothing was read have nothing more.
    fn note(&mut self, turns: &[(Tenant, i64)], rows: &[InboxRow]) {
        let last = rows.last().map(|row| &row.tenant);
        let read: BTreeSet<&Tenant> = rows.iter().map(|row| &row.tenant).collect();
        let reached = turns.iter().map(|(tenant, _)| tenant).take_while(|tenant| Some(*tenant) != last);
        for tenant in reached.filter(|tenant| !read.contains(tenant)) {
            self.places.remove(tenant);
        }
        self.last = last.cloned().or(self.last.take());
    }

    /// Leaves out what is more than its tenant's bound.
    async fn keep_within_bounds(
        &mut self,
        dispatch: &Dispatch,
        rows: &mut Vec<InboxRow>,
    ) -> Result<(), StoreError> {
        let tenants: BTreeSet<&Tenant> = rows.iter().map(|row| &row.tenant).collect();
        let uncounted = tenants.into_iter().filter(|tenant| !self.room.contains_key(*tenant));
        let uncounted: Vec<Tenant> = uncounted.cloned().collect();
        let bounds = match uncounted.is_empty() {
            true => HashMap::new(),
            false => dispatch.store.max_waiting(&uncounted).await?,
        };
        for tenant in uncounted {
            let room = match bounds.get(&tenant) {
                Some(most) => {
                    let waiting = dispatch.store.count_waiting_of(&tenant, *most).await?;
                    Some(u64::from(*most).saturating_sub(waiting))
                }
                None => None,
            };
            self.room.insert(tenant, (Instant::now(), room));
        }
        rows.retain(|row| match self.room.get_mut(&row.tenant) {
            Some((_, Some(0))) => false,
            Some((_, Some(room))) => {
                *room -= 1;
                true
            }
            Some((_, None)) | None => true,
        });
        Ok(())
    }
}
