//! How an admitter finds the lines of a pool that have jobs.
//!
//! It walks from one line to the next, which costs what there is. Where there are many lines, or where many jobs have
//! left whose rows Postgres cannot remove yet (a long snapshot elsewhere), a walk takes long: then it goes a part at a
//! time, with rests, beside the looks. Meanwhile new jobs are found by when they entered their line, which costs what
//! has come since.

use std::collections::BTreeMap;
use std::ops::Bound::Excluded;
use std::time::Duration;

use job::{Name, Trouble};
use store::{Entered, LinePlace, Since, Store, StoreError};
use tokio::time::Instant;

use super::question::{Answer, Question};
use super::turns::{LineId, id};
use super::view::Line;
use crate::tick::{REST, note};

/// Lines of one question, at most and at least; and after one that has failed.
const PAGE: (i32, i32) = (1_000, 16);
const SMALLEST_PAGE: i32 = 1;
/// A question that takes longer is followed by a rest, and by a smaller one.
pub(super) const SLOW: Duration = Duration::from_millis(5);
/// Jobs of one reading by time.
const ENTERED: i64 = 2_000;
/// What entered a line carries the begin of its transaction, and is there when that commits. What takes longer is found
/// by the walk.
const MARGIN_US: i64 = 1_000_000;
/// The width of a reading by time, in microseconds: at least the margin and as much, so that each reaches into the
/// present.
const WIDTH_US: (i64, i64) = (2 * MARGIN_US, 100 * 366 * 24 * 3_600 * 1_000_000);

/// The walk over some lanes.
#[derive(Debug)]
pub(super) struct Walk {
    lanes: (i16, i16),
    /// From the first line to the last is a round.
    round: u64,
    behind: Option<LinePlace>,
    page: i32,
    again: Option<Instant>,
    question: Question<Vec<LinePlace>>,
    trouble: Trouble,
}

impl Walk {
    /// A walk from one of these lanes to the other.
    pub(super) fn over(lanes: (i16, i16)) -> Walk {
        Walk {
            lanes,
            round: 1,
            behind: None,
            page: PAGE.0,
            again: None,
            question: Question::default(),
            trouble: Trouble::default(),
        }
    }

    /// The round in which lines of these lanes are found.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// Finds the next lines, from the first again after the last. Returns whether it has found all with this one
    /// question, at once.
    pub(super) async fn find(
        &mut self,
        store: &Store,
        pool: &Name,
        lines: &mut BTreeMap<LineId, Line>,
    ) -> Result<bool, StoreError> {
        let was_open = self.question.is_open();
        let first = LinePlace { lane: self.lanes.0, tenant: String::new(), line: String::new(), behind: 0 };
        let begins = self.behind.is_none();
        let behind = self.behind.clone().unwrap_or(first);
        if !was_open {
            if self.again.is_some_and(|again| Instant::now() < again) {
                return Ok(false);
            }
            let (store, pool, behind) = (store.clone(), pool.clone(), behind.clone());
            let (up_to, page) = (self.lanes.1, self.page);
            self.question.ask(async move { store.find_lines(&pool, Some(&behind), up_to, page).await });
        }
        let Some(answer) = self.question.answer().await else { return Ok(false) };
        self.take(answer, &id(&behind), lines)?;
        Ok(begins && !was_open && self.behind.is_none() && self.again.is_none())
    }

    /// Notes what the question behind this line has found. After one that has failed, the walk goes on from the same
    /// place by single lines, and beyond where even the next one cannot be found.
    fn take(
        &mut self,
        (found, took): Answer<Vec<LinePlace>>,
        behind: &LineId,
        lines: &mut BTreeMap<LineId, Line>,
    ) -> Result<(), StoreError> {
        note(&found, &mut self.trouble, "lines of a pool cannot be found");
        self.again = (took > SLOW || found.is_err()).then(|| Instant::now() + took * REST);
        match found {
            Ok(found) => {
                let is_last = found.len() < self.page as usize;
                self.behind = found.last().filter(|_| !is_last).cloned();
                self.page = match took > SLOW {
                    true => (self.page / 2).max(PAGE.1.min(self.page)),
                    false => (self.page * 2).min(PAGE.0),
                };
                for place in found {
                    let line = lines.entry(id(&place)).or_default();
                    (line.behind, line.round) = (place.behind, self.round);
                }
            }
            Err(error) if !error.may_lie_in_one_call() => return Err(error),
            Err(_) if self.page > SMALLEST_PAGE => {
                self.page = SMALLEST_PAGE;
                return Ok(());
            }
            Err(_) => self.go_beyond(behind, lines),
        }
        if self.behind.is_none() {
            let first = |lane| (lane, String::new(), String::new());
            let of_these = first(self.lanes.0)..first(self.lanes.1 + 1);
            lines.extract_if(of_these, |_, line| line.round != self.round).for_each(drop);
            self.round += 1;
        }
        Ok(())
    }

    /// Goes to the next line that is known. What lies between is found by time, or by a later round.
    fn go_beyond(&mut self, behind: &LineId, lines: &mut BTreeMap<LineId, Line>) {
        let end = (self.lanes.1 + 1, String::new(), String::new());
        let next = lines.range_mut::<LineId, _>((Excluded(behind), Excluded(&end))).next();
        self.behind = next.map(|((lane, tenant, name), line)| {
            line.round = self.round;
            LinePlace { lane: *lane, tenant: tenant.clone(), line: name.clone(), behind: line.behind }
        });
    }
}

/// The reading by time.
#[derive(Debug)]
pub(super) struct ByTime {
    /// By Postgres's clock, in microseconds since 1970: until then all lines are known.
    from: i64,
    width: i64,
    /// When a walk found all lines at once: what had entered by then is known, too.
    all_known: Option<Instant>,
    again: Option<Instant>,
    question: Question<Entered>,
    trouble: Trouble,
}

impl Default for ByTime {
    fn default() -> ByTime {
        ByTime {
            from: 0,
            width: WIDTH_US.1,
            all_known: None,
            again: None,
            question: Question::default(),
            trouble: Trouble::default(),
        }
    }
}

impl ByTime {
    /// Notes that a walk that began at this time has found all lines at once.
    pub(super) fn knows_all(&mut self, at: Instant) {
        self.all_known = Some(at);
    }

    /// Returns the lines of jobs that have entered since the last reading.
    pub(super) async fn find(&mut self, store: &Store, pool: &Name) -> Result<Vec<LinePlace>, StoreError> {
        if !self.question.is_open() {
            if self.again.is_some_and(|again| Instant::now() < again) {
                return Ok(Vec::new());
            }
            let ago = |at: Instant| i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX);
            let ago = self.all_known.map_or(i64::MAX, |at| ago(at).saturating_add(MARGIN_US));
            let since = Since { from: self.from, ago: ago.min(WIDTH_US.1), width: self.width };
            let (store, pool) = (store.clone(), pool.clone());
            self.question.ask(async move { store.entered_lines(&pool, since, ENTERED).await });
        }
        let Some((found, took)) = self.question.answer().await else { return Ok(Vec::new()) };
        note(&found, &mut self.trouble, "what has entered a pool's line cannot be found");
        self.again = (took > SLOW || found.is_err()).then(|| Instant::now() + took * REST);
        match found {
            Ok(found) => {
                self.go_on(&found, took);
                Ok(found.lines)
            }
            Err(error) if !error.may_lie_in_one_call() => Err(error),
            Err(_) => {
                // What cannot be read in the shortest time is left to the walk.
                if self.width == WIDTH_US.0 {
                    self.from += self.width - MARGIN_US;
                }
                self.width = (self.width / 2).max(WIDTH_US.0);
                Ok(Vec::new())
            }
        }
    }

    /// Decides where the next reading begins, and how wide it is.
    fn go_on(&mut self, found: &Entered, took: Duration) {
        let reached = match found.last.filter(|_| found.jobs >= ENTERED) {
            Some(last) => last.max(found.since + 1),
            None => found.since.saturating_add(self.width).min(found.now - MARGIN_US),
        };
        self.from = self.from.max(reached);
        self.width = match took > SLOW {
            true => (self.width.min(found.now - found.since) / 2).max(WIDTH_US.0),
            false => self.width.saturating_mul(2).min(WIDTH_US.1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(1);

    fn place(lane: i16, tenant: &str) -> LinePlace {
        LinePlace { lane, tenant: tenant.to_owned(), line: String::new(), behind: 7 }
    }

    fn too_much() -> StoreError {
        StoreError::Refused { sqlstate: "57014".to_owned(), message: "it takes too long".to_owned() }
    }

    fn known(lines: &BTreeMap<LineId, Line>) -> Vec<&str> {
        lines.keys().map(|(_, tenant, _)| tenant.as_str()).collect()
    }

    #[test]
    fn a_walk_that_fails_goes_on_where_it_was_and_past_what_cannot_be_passed() {
        let (mut walk, mut lines) = (Walk::over((2, 3)), BTreeMap::new());
        let all = ["a", "b", "m"].map(|tenant| place(2, tenant));
        let start = (2, String::new(), String::new());
        walk.take((Ok(all.to_vec()), FAST), &start, &mut lines).unwrap();
        assert!(walk.behind.is_none() && known(&lines) == ["a", "b", "m"], "a round is over");

        // The next round: two lines, and then it takes too long.
        walk.page = 2;
        walk.take((Ok(all[..2].to_vec()), FAST), &start, &mut lines).unwrap();
        let (at, page) = (walk.behind.clone(), walk.page);
        assert_eq!((at.as_ref(), page), (Some(&all[1]), 4));
        walk.take((Err(too_much()), SLOW), &id(&all[1]), &mut lines).unwrap();
        assert_eq!((&walk.behind, walk.page), (&at, SMALLEST_PAGE), "from the same place");
        assert!(walk.again.is_some());
        walk.take((Err(too_much()), SLOW), &id(&all[1]), &mut lines).unwrap();
        assert_eq!(
            walk.behind.as_ref().map(id),
            Some(id(&all[2])),
            "beyond what lies before the next known line"
        );
        walk.take((Ok(vec![place(3, "z")]), FAST), &id(&all[2]), &mut lines).unwrap();
        walk.take((Ok(vec![]), FAST), &(3, "z".to_owned(), String::new()), &mut lines).unwrap();
        assert_eq!(known(&lines), ["a", "b", "m", "z"], "nothing known was forgotten");

        // A round in which a line is found no more.
        walk.take((Ok(vec![place(2, "m")]), FAST), &start, &mut lines).unwrap();
        assert_eq!(known(&lines), ["m"]);
    }

    #[test]
    fn a_reading_by_time_ends_in_the_present_however_slow_it_was() {
        let (mut by_time, now) = (ByTime::default(), 1_800_000_000_000_000);
        let empty = |since| Entered { since, now, ..Entered::default() };
        by_time.go_on(&empty(0), FAST);
        assert_eq!(by_time.from, now - MARGIN_US);
        by_time.go_on(&empty(by_time.from), SLOW * 2);
        assert_eq!(by_time.width, WIDTH_US.0);
        assert!(by_time.from + by_time.width > now, "the next one looks up to now");

        // So many in a time that is too wide: it goes on behind them.
        let mut by_time = ByTime::default();
        by_time.go_on(&Entered { jobs: ENTERED, last: Some(5_000), ..empty(0) }, SLOW * 2);
        assert_eq!((by_time.from, by_time.width), (5_000, now / 2));
        by_time.go_on(&Entered { jobs: ENTERED, last: Some(5_000), ..empty(5_000) }, FAST);
        assert_eq!(by_time.from, 5_001, "never from the same place");
    }
}
