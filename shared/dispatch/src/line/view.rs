//! What an admitter remembers of a pool's line: which lines have jobs, and how far each was read.
//!
//! Lines are found by going from one to the next. Where there are many, or where many jobs have left whose rows Postgres cannot
//! remove yet (a long snapshot elsewhere), that takes long: then a part at a time, and with rests. Reading goes on behind the
//! last job that was looked at, so it pays for neither.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};
use std::ops::RangeBounds;
use std::time::Duration;

use job::Name;
use store::{AdmittedJob, LinePlace, LineTake, PoolSeen, Store, StoreError};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::turns::{Held, LineId, Places, Turns, id};
use crate::tick::REST;

/// Lines of one question, at most and at least.
const PAGE: (i32, i32) = (1_000, 16);
/// A question that takes longer is followed by a rest, and by a smaller one.
pub(super) const SLOW: Duration = Duration::from_millis(5);
/// Up to this lane jobs are wanted soon: they are found for themselves.
const SOON: i16 = 1;
const LAST: i16 = 3;
/// Lines that are offered a turn at a time, and that are counted; and how many jobs are counted in all.
const OFFERED: usize = 4_096;
const COUNTED: usize = 2_000;
const COUNTED_JOBS: i64 = 10_000;

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct LineView {
    /// The places behind which the lines are read.
    lines: BTreeMap<LineId, i64>,
    soon: Finder,
    rest: Finder,
    turns: Turns,
    /// The lines that were offered a turn last, of those that are wanted soon and of the rest.
    offered_soon: Option<LineId>,
    offered: Option<LineId>,
    counted: Option<LineId>,
    /// What was admitted last is on its way to the broker.
    sending: Option<JoinHandle<()>>,
}

/// How far the lines were found.
#[derive(Debug)]
struct Finder {
    behind: Option<LinePlace>,
    page: i32,
    again: Option<Instant>,
}

impl Default for Finder {
    fn default() -> Finder {
        Finder { behind: None, page: PAGE.0, again: None }
    }
}

impl Finder {
    /// Finds the next lines of these lanes, from the first again after the last.
    async fn find(
        &mut self,
        store: &Store,
        pool: &Name,
        lanes: (i16, i16),
        lines: &mut BTreeMap<LineId, i64>,
    ) -> Result<(), StoreError> {
        let begun = Instant::now();
        if self.again.is_some_and(|again| begun < again) {
            return Ok(());
        }
        let first = || LinePlace { lane: lanes.0, tenant: String::new(), line: String::new(), behind: 0 };
        let behind = self.behind.take().unwrap_or_else(first);
        let found = store.find_lines(pool, Some(&behind), lanes.1, self.page).await?;
        let took = begun.elapsed();
        self.behind = found.last().filter(|_| found.len() >= self.page as usize).cloned();
        self.page = match took > SLOW {
            true => (self.page / 2).max(PAGE.1),
            false => (self.page * 2).min(PAGE.0),
        };
        self.again = (took > SLOW).then(|| begun + took * REST);
        lines.extend(found.into_iter().map(|place| (id(&place), place.behind)));
        Ok(())
    }
}

impl LineView {
    /// Whether what was admitted last is on its way to the broker yet. A queue that does not confirm holds up its own pool.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.as_ref().is_some_and(|sending| !sending.is_finished())
    }

    /// Whether no line is known.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Notes that something is on its way.
    pub(super) fn sends(&mut self, sending: JoinHandle<()>) {
        self.sending = Some(sending);
    }

    /// Waits until nothing is on its way.
    pub(super) async fn sent(&mut self) {
        if let Some(sending) = self.sending.take() {
            // It logs what goes wrong.
            let _ = sending.await;
        }
    }

    /// Finds lines that have jobs.
    pub(super) async fn find(&mut self, store: &Store, pool: &Name) -> Result<(), StoreError> {
        self.soon.find(store, pool, (0, SOON), &mut self.lines).await?;
        self.rest.find(store, pool, (SOON + 1, LAST), &mut self.lines).await
    }

    /// How many jobs of which lines have their turn now.
    pub(super) fn choose(&mut self, room: u64, places: &Places<'_>) -> Vec<LineTake> {
        // What a bound holds back stands in nobody's way.
        let may_run = |(_, tenant, line): &LineId| places.left(tenant, line).is_none_or(|(left, _)| left > 0);
        let (first, not_soon) = ((0, String::new(), String::new()), (SOON + 1, String::new(), String::new()));
        let mut offered = self.page(&first..&not_soon, self.offered_soon.as_ref(), OFFERED / 2, may_run);
        self.offered_soon = offered.last().map(id);
        let rest = self.page(&not_soon.., self.offered.as_ref(), OFFERED - offered.len(), may_run);
        self.offered = rest.last().map(id);
        offered.extend(rest);
        self.turns.choose(room, &offered, &mut places.clone())
    }

    /// Notes what the lines had. Returns whether one of them may have more.
    pub(super) fn note(&mut self, takes: &[LineTake], looked_at: &[AdmittedJob]) -> bool {
        let mut may_have_more = false;
        let mut got = vec![(0u64, 0u64); takes.len()];
        for job in looked_at {
            let Some(LineTake { place, .. }) = takes.get(job.line) else { continue };
            got[job.line].0 += 1;
            got[job.line].1 += u64::from(job.admitted);
            self.lines.insert(id(place), job.seq);
        }
        for (take, (looked_at, admitted)) in takes.iter().zip(got) {
            self.turns.refund(&take.place, u64::from(take.most) - admitted);
            if looked_at < u64::from(take.most) {
                self.lines.remove(&id(&take.place));
            } else {
                may_have_more = true;
            }
        }
        self.turns.forget(self.lines.len());
        may_have_more
    }

    /// Counts what waits, and what of it could run.
    pub(super) async fn count(
        &mut self,
        store: &Store,
        pool: &Name,
        mut places: Places<'_>,
    ) -> Result<PoolSeen, StoreError> {
        let all = (0, String::new(), String::new());
        let lines = self.page(&all.., self.counted.as_ref(), COUNTED, |_| true);
        self.counted = lines.last().map(id);
        let mut seen = PoolSeen { lines: self.lines.len() as u64, ..PoolSeen::default() };
        if lines.is_empty() {
            return Ok(seen);
        }
        let of_each = COUNTED_JOBS / lines.len() as i64 + 1;
        let counts = store.count_lines(pool, &lines, of_each).await?;
        for (LinePlace { lane, tenant, line, .. }, count) in lines.iter().zip(&counts) {
            *match lane {
                0 => &mut seen.begun,
                1 => &mut seen.high,
                2 => &mut seen.normal,
                _ => &mut seen.low,
            } += count.jobs;
            seen.held_by_session += count.jobs - count.sessions.min(count.jobs);
            let left = places.left(tenant, line);
            let run = left.map_or(count.sessions, |(left, _)| left.min(count.sessions));
            match left {
                Some((_, Held::ByTenant)) => seen.held_by_tenant += count.sessions - run,
                Some((_, Held::ByLimit)) => seen.held_by_limit += count.sessions - run,
                None => {}
            }
            seen.could_run += run;
            if run > 0 {
                seen.oldest_ms = seen.oldest_ms.max(count.oldest_ms);
            }
            places.take(tenant, line, run);
        }
        Ok(seen)
    }

    /// Some lines of these: behind this one, and then from the first up to it.
    fn page<'a>(
        &self,
        of: impl RangeBounds<&'a LineId>,
        behind: Option<&LineId>,
        most: usize,
        wanted: impl Fn(&LineId) -> bool,
    ) -> Vec<LinePlace> {
        let (start, end) = (of.start_bound().cloned(), of.end_bound().cloned());
        let rest = self.lines.range::<LineId, _>((behind.map_or(start, Excluded), end));
        let first =
            behind.into_iter().flat_map(|last| self.lines.range::<LineId, _>((start, Included(last))));
        let place = |((lane, tenant, line), behind): (&LineId, &i64)| LinePlace {
            lane: *lane,
            tenant: tenant.clone(),
            line: line.clone(),
            behind: *behind,
        };
        rest.chain(first).filter(|(line, _)| wanted(line)).take(most).map(place).collect()
    }
}
