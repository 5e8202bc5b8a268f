//! What an admitter remembers of a pool's line: which lines have jobs, and how far each was read.
//!
//! Reading goes on behind the last job that was looked at, so it passes nothing that has left. A line that was not found from the
//! first one to the last has no jobs, and is forgotten: it would have turns for nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::time::Duration;

use job::{Name, Trouble};
use store::{AdmittedJob, HeldKeys, LineCount, LinePlace, LineTake, PoolSeen, Store, StoreError};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use super::find::{ByTime, Walk};
use super::offer::Offers;
use super::turns::{Held, LineId, Places, Turns, id};

/// Up to this lane jobs are wanted soon: they are found for themselves.
const SOON: i16 = 1;
const LAST: i16 = 3;
/// Lines that are counted at a time; and how many jobs are counted in these.
const COUNTED: usize = 2_000;
const COUNTED_JOBS: i64 = 10_000;
/// Lines that the limit of a key holds back, of those that are noted by name.
const HELD_KEYS: usize = 5;

/// While one transaction's jobs are sent, those of the next one are admitted.
const SENDING: usize = 2;
/// How long a pool rests on which a statement has failed, while the others go on.
const RESTS: Duration = Duration::from_secs(1);
/// A pool in which nothing waited is asked about what has entered since, and for as long as any of our transactions takes before. It
/// is looked through whole again after this.
const ENTERS_WITHIN: Duration = Duration::from_secs(15);
const WHOLE_AGAIN: Duration = Duration::from_secs(60);

/// What is remembered.
#[derive(Debug)]
pub(super) struct LineView {
    lines: BTreeMap<LineId, Line>,
    soon: Walk,
    rest: Walk,
    by_time: ByTime,
    turns: Turns,
    offers: Offers,
    counted: Option<LineId>,
    /// Since when nothing has waited here: when all of it was looked through, and when it was looked at last.
    empty: Option<(Instant, Instant)>,
    /// What was admitted is on its way to the broker.
    sending: Vec<JoinHandle<()>>,
    /// Whether there may have been more, when turns were given last, than a transaction takes.
    may_have_more: bool,
    /// Jobs that came before their turn in their session are being blocked.
    blocking: Option<JoinHandle<()>>,
    /// Whether the last note says that jobs wait here.
    noted: bool,
    trouble: Trouble,
    rests_until: Option<Instant>,
}

impl Default for LineView {
    fn default() -> LineView {
        LineView {
            lines: BTreeMap::new(),
            soon: Walk::over((0, SOON)),
            rest: Walk::over((SOON + 1, LAST)),
            by_time: ByTime::default(),
            turns: Turns::default(),
            offers: Offers::default(),
            counted: None,
            empty: None,
            sending: Vec::new(),
            may_have_more: false,
            blocking: None,
            noted: false,
            trouble: Trouble::default(),
            rests_until: None,
        }
    }
}

/// A line that has jobs.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The place behind which it is read.
    pub(super) behind: i64,
    /// The round in which it was found.
    pub(super) round: u64,
    /// What it had when it was counted last, without what had its turn since. A line that was not counted yet has a job.
    count: Option<LineCount>,
}

const ONE_JOB: LineCount = LineCount { jobs: 1, heads: 1, oldest_ms: 0 };

impl LineView {
    /// Whether so much is on its way to the broker that no more is admitted. A queue that does not confirm holds up its own pool.
    pub(super) fn is_sending(&mut self) -> bool {
        self.sending.retain(|sending| !sending.is_finished());
        self.sending.len() >= SENDING
    }

    /// Whether no line is known.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Notes that something is on its way.
    pub(super) fn sends(&mut self, sending: JoinHandle<()>) {
        self.sending.push(sending);
    }

    /// What is on its way, if more would be admitted at once without it.
    pub(super) fn in_the_way(&mut self) -> impl Iterator<Item = &mut JoinHandle<()>> {
        let is_full = self.is_sending() && self.may_have_more;
        self.sending.iter_mut().filter(move |_| is_full)
    }

    /// Waits until nothing is on its way. What has been waited for before must not be polled again.
    pub(super) async fn sent(&mut self) {
        for sending in self.sending.drain(..).filter(|sending| !sending.is_finished()) {
            // It logs what goes wrong.
            let _ = sending.await;
        }
    }

    /// Blocks jobs in the background, unless others are being blocked: then these are found again.
    pub(super) fn blocks(&mut self, blocking: impl Future<Output = ()> + Send + 'static) {
        if self.blocking.as_ref().is_none_or(JoinHandle::is_finished) {
            self.blocking = Some(tokio::spawn(blocking));
        }
    }

    /// Notes a failure that may lie in this pool alone: it rests, and the others go on. Any other one is returned.
    pub(super) fn fails(&mut self, error: StoreError, pool: &Name) -> Result<(), StoreError> {
        if !error.may_lie_in_one_call() {
            return Err(error);
        }
        self.rests_until = Some(Instant::now() + RESTS);
        if self.trouble.begins() {
            warn!(%pool, cause = error.as_dyn(), "jobs that wait in this pool's line cannot be admitted, retrying");
        }
        Ok(())
    }

    /// Whether more would be admitted at once if less were on its way.
    pub(super) fn may_have_more(&self) -> bool {
        self.may_have_more
    }

    /// Notes that the statements of this pool work, and whether there may be more than a transaction takes.
    pub(super) fn works(&mut self, may_have_more: bool) {
        self.may_have_more = may_have_more;
        self.rests_until = None;
        self.trouble.ends();
    }

    pub(super) fn rests(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the last note says that jobs wait here.
    pub(super) fn is_noted(&self) -> bool {
        self.noted
    }

    /// For how long nothing may have waited here, if that is known and was found not too long ago by looking through all of it.
    pub(super) fn unseen(&self) -> Option<Duration> {
        let (whole, last) = self.empty?;
        (whole.elapsed() < WHOLE_AGAIN).then(|| last.elapsed() + ENTERS_WITHIN)
    }

    /// Notes that nothing waited here at this time; if not all of it was looked through, that was known from before.
    pub(super) fn is_seen_empty(&mut self, at: Instant, is_whole: bool) {
        self.empty = match self.empty {
            Some((whole, _)) if !is_whole => Some((whole, at)),
            _ => Some((at, at)),
        };
    }

    /// Notes that something waits here, or may.
    pub(super) fn is_seen_waiting(&mut self) {
        self.empty = None;
    }

    /// Finds lines that have jobs.
    pub(super) async fn find(&mut self, store: &Store, pool: &Name) -> Result<(), StoreError> {
        let begun = Instant::now();
        let soon = self.soon.find(store, pool, &mut self.lines).await?;
        let rest = self.rest.find(store, pool, &mut self.lines).await?;
        if soon && rest {
            self.by_time.knows_all(begun);
            return Ok(());
        }
        for place in self.by_time.find(store, pool).await? {
            let round = if place.lane <= SOON { self.soon.round() } else { self.rest.round() };
            let new = || Line { behind: place.behind, round, count: None };
            let line = self.lines.entry(id(&place)).or_insert_with(new);
            line.behind = line.behind.min(place.behind);
        }
        Ok(())
    }

    /// How many jobs of which lines have their turn now. A pool without workers gets no place that is missing in another one.
    pub(super) fn choose(&mut self, room: u64, places: &Places<'_>, has_workers: bool) -> Vec<LineTake> {
        // What a bound holds back stands in nobody's way.
        let may_run = |(_, tenant, line): &LineId| {
            (has_workers || !places.is_bounded(tenant))
                && places.left(tenant, line).is_none_or(|(left, _)| left > 0)
        };
        let offered = self.offers.of(&self.lines, may_run);
        let takes = self.turns.choose(room, &offered, &mut places.clone());
        self.offers.note(&offered, &takes);
        takes
    }

    /// Notes what the lines had. Returns whether one of them had less than its turns, so that others may have these.
    pub(super) fn note(&mut self, takes: &[LineTake], looked_at: &[AdmittedJob]) -> bool {
        let mut one_had_less = false;
        let mut got = vec![(0u64, 0u64); takes.len()];
        for job in looked_at {
            let Some(LineTake { place, .. }) = takes.get(job.line) else { continue };
            got[job.line].0 += 1;
            got[job.line].1 += u64::from(job.admitted);
            if let Some(line) = self.lines.get_mut(&id(place)) {
                line.behind = job.seq;
            }
        }
        for (take, (looked_at, admitted)) in takes.iter().zip(got) {
            self.turns.refund(&take.place, u64::from(take.most) - admitted);
            one_had_less |= admitted < u64::from(take.most);
            if looked_at < u64::from(take.most) {
                self.lines.remove(&id(&take.place));
            } else if let Some(count) =
                self.lines.get_mut(&id(&take.place)).and_then(|line| line.count.as_mut())
            {
                count.jobs = count.jobs.saturating_sub(admitted).max(1);
                count.heads = count.heads.saturating_sub(admitted).max(1);
            }
        }
        self.turns.forget(self.lines.len());
        self.offers.forget(self.lines.len());
        one_had_less
    }

    /// Notes that nothing waits here.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.noted = false;
    }

    /// Finds lines, and counts what waits.
    pub(super) async fn see(
        &mut self,
        store: &Store,
        pool: &Name,
        places: Places<'_>,
    ) -> Result<PoolSeen, StoreError> {
        self.find(store, pool).await?;
        self.count(store, pool, places).await
    }

    /// Counts what waits, and what of it could run. Of many lines some are counted anew, and the others are as they were.
    async fn count(
        &mut self,
        store: &Store,
        pool: &Name,
        mut places: Places<'_>,
    ) -> Result<PoolSeen, StoreError> {
        let lines = self.page(self.counted.as_ref(), COUNTED);
        self.counted = lines.last().map(id);
        let mut seen = PoolSeen { lines: self.lines.len() as u64, ..PoolSeen::default() };
        if !lines.is_empty() {
            let of_each = COUNTED_JOBS / lines.len() as i64 + 1;
            let counts = store.count_lines(pool, &lines, of_each).await?;
            for (place, count) in lines.iter().zip(counts) {
                if let Some(line) = self.lines.get_mut(&id(place)) {
                    line.count = Some(count);
                }
            }
        }
        let mut held = Vec::new();
        for ((lane, tenant, line), Line { count, .. }) in &self.lines {
            let count = count.as_ref().unwrap_or(&ONE_JOB);
            *match lane {
                0 => &mut seen.begun,
                1 => &mut seen.high,
                2 => &mut seen.normal,
                _ => &mut seen.low,
            } += count.jobs;
            seen.held_by_session += count.jobs - count.heads.min(count.jobs);
            let left = places.left(tenant, line);
            let run = left.map_or(count.heads, |(left, _)| left.min(count.heads));
            match left {
                Some((_, Held::ByTenant)) => seen.held_by_tenant += count.heads - run,
                Some((_, Held::ByLimit)) => {
                    let jobs = count.heads - run;
                    seen.held_by_limit += jobs;
                    if jobs > 0 {
                        held.push((jobs, tenant, line));
                    }
                }
                None => {}
            }
            seen.could_run += run;
            if run > 0 {
                seen.oldest_ms = seen.oldest_ms.max(count.oldest_ms);
            }
            places.take(tenant, line, run);
        }
        held.sort_unstable_by_key(|(jobs, ..)| Reverse(*jobs));
        held.truncate(HELD_KEYS);
        let named = |(jobs, tenant, keys): (u64, &String, &String)| HeldKeys {
            tenant: tenant.clone(),
            keys: keys.clone(),
            jobs,
        };
        seen.held_keys = held.into_iter().map(named).collect();
        self.noted = seen.waiting() > 0;
        Ok(seen)
    }

    /// Some lines: behind this one, and then from the first up to it.
    fn page(&self, behind: Option<&LineId>, most: usize) -> Vec<LinePlace> {
        let rest = self.lines.range::<LineId, _>((behind.map_or(Unbounded, Excluded), Unbounded));
        let first =
            behind.into_iter().flat_map(|last| self.lines.range::<LineId, _>((Unbounded, Included(last))));
        let place = |((lane, tenant, line), Line { behind, .. }): (&LineId, &Line)| LinePlace {
            lane: *lane,
            tenant: tenant.clone(),
            line: line.clone(),
            behind: *behind,
        };
        rest.chain(first).take(most).map(place).collect()
    }
}
