//! Whose turn it is, as a pure function of what waits, what is in flight, and what operators have set.
//!
//! First come jobs that have begun before, because a session and what was paid wait with them. Then the lanes, in the ratio
//! of their shares: the lane with the lowest virtual time is next, as in start-time fair queueing (Goyal, Vin and Cheng, 1996),
//! and one that comes back does not make up for the time when it had nothing. Within a lane the tenant with the fewest jobs in
//! flight for its weight is next, and of equal ones the one that waited longest for its turn; within a tenant its lines take
//! turns.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, VecDeque};

use job::{Lane, Name};
use store::{InFlight, LineBounds, LinePlace, LineTake};

/// Number of lanes, with the one of jobs that have begun.
pub(super) const LANES: usize = Lane::ALL.len() + 1;
/// What a turn costs a lane in virtual time is this divided by its share.
const COST: u64 = 12;

/// The places that are taken, and the bounds that hold: whether one more may be given.
#[derive(Clone, Debug)]
pub(super) struct Places<'a> {
    bounds: &'a LineBounds,
    /// In this pool, for the order; and over all pools, for `max_running`.
    here: HashMap<&'a str, u64>,
    everywhere: HashMap<&'a str, u64>,
    keys: HashMap<(&'a str, &'a str), u64>,
}

/// Why a job has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Its tenant has as many as it may.
    ByTenant,
    /// One of its keys does.
    ByLimit,
}

impl<'a> Places<'a> {
    pub(super) fn new(pool: &Name, in_flight: &'a [InFlight], bounds: &'a LineBounds) -> Places<'a> {
        let mut places =
            Places { bounds, here: HashMap::new(), everywhere: HashMap::new(), keys: HashMap::new() };
        for jobs in in_flight {
            if jobs.pool == pool.as_str() {
                places.take(&jobs.tenant, &jobs.line, jobs.jobs);
            } else {
                *places.everywhere.entry(&jobs.tenant).or_default() += jobs.jobs;
            }
        }
        places
    }

    /// How many more jobs of this line may have a place, and what says so; `None` for as many as there are.
    pub(super) fn left(&self, tenant: &str, line: &str) -> Option<(u64, Held)> {
        let taken = |of: Option<&u64>| of.copied().unwrap_or(0);
        let bound = self.bounds.max_running.get(tenant);
        let by_tenant =
            bound.map(|most| (most.saturating_sub(taken(self.everywhere.get(tenant))), Held::ByTenant));
        let by_key = keys(line).filter_map(|key| {
            let most = self.bounds.limits.get(&(tenant.to_owned(), key.to_owned()))?;
            Some((most.saturating_sub(taken(self.keys.get(&(tenant, key)))), Held::ByLimit))
        });
        by_tenant.into_iter().chain(by_key).min_by_key(|(left, _)| *left)
    }

    /// Whether something bounds the tenant's jobs over all pools.
    pub(super) fn is_bounded(&self, tenant: &str) -> bool {
        self.bounds.max_running.contains_key(tenant)
    }

    /// Gives places here.
    pub(super) fn take(&mut self, tenant: &'a str, line: &'a str, jobs: u64) {
        *self.here.entry(tenant).or_default() += jobs;
        *self.everywhere.entry(tenant).or_default() += jobs;
        for key in keys(line) {
            *self.keys.entry((tenant, key)).or_default() += jobs;
        }
    }

    /// What a tenant has in flight here, for its weight.
    fn share(&self, tenant: &str) -> u64 {
        let weight = self.bounds.weights.get(tenant).copied().unwrap_or(1).max(1);
        self.here.get(tenant).copied().unwrap_or(0).saturating_mul(1_000_000) / u64::from(weight)
    }
}

/// The keys of a line.
fn keys(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').filter(|key| !key.is_empty())
}

/// How far the lanes of a pool are, and when its tenants and lines had their last turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    /// The virtual time of each lane.
    lanes: [u64; LANES],
    /// That of the last turn that was given.
    now: u64,
    tick: u64,
    tenants: HashMap<String, u64>,
    lines: HashMap<LineId, u64>,
}

/// A line, however far it was read.
pub(super) type LineId = (i16, String, String);

pub(super) fn id(place: &LinePlace) -> LineId {
    (place.lane, place.tenant.clone(), place.line.clone())
}

/// A tenant within a lane, while turns are given. In a heap, the one whose turn is next is the greatest.
struct Waiting<'a> {
    /// What it has in flight for its weight, when it had its last turn, and its next line.
    order: Reverse<(u64, u64, usize)>,
    tenant: &'a str,
    lines: VecDeque<usize>,
}

impl PartialEq for Waiting<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Waiting<'_> {}

impl PartialOrd for Waiting<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }
}

/// The tenants of each lane.
type Heaps<'a> = [BinaryHeap<Waiting<'a>>; LANES];

impl Turns {
    /// Gives turns: how many jobs of each of these lines are next, `room` in all. It is taken for granted that each line has
    /// as many; what was not there is given again at the next look.
    pub(super) fn choose<'a>(
        &mut self,
        room: u64,
        lines: &'a [LinePlace],
        places: &mut Places<'a>,
    ) -> Vec<LineTake> {
        let mut lanes = self.sorted(lines, places);
        let mut takes = vec![0u32; lines.len()];
        for _ in 0..room {
            let Some(line) = self.next(&mut lanes, lines, places) else { break };
            takes[line] += 1;
        }
        let taken = takes.into_iter().zip(lines).filter(|(most, _)| *most > 0);
        taken.map(|(most, place)| LineTake { place: place.clone(), most }).collect()
    }

    /// Notes that this line had fewer jobs than were its turn, by so many.
    pub(super) fn refund(&mut self, place: &LinePlace, jobs: u64) {
        if let Some(cost) = cost(place.lane) {
            let lane = &mut self.lanes[lane(place)];
            *lane = lane.saturating_sub(cost * jobs);
        }
    }

    /// Forgets when tenants and lines had their last turn, if most of them wait no longer: there are so many that do.
    pub(super) fn forget(&mut self, waiting: usize) {
        if self.lines.len() > 2 * waiting + 1_000 {
            self.lines.clear();
            self.tenants.clear();
        }
    }

    /// When one that has had no turn counts as if it had: just behind the one that waits the longest. So others have their
    /// turns also where new ones come as fast as turns are given.
    fn behind(&self, longest: Option<u64>) -> u64 {
        longest.map_or(self.tick, |longest| longest + 1)
    }

    /// The tenants of each lane, the next one first.
    fn sorted<'a>(&mut self, lines: &'a [LinePlace], places: &Places<'_>) -> Heaps<'a> {
        let mut tenants: HashMap<(usize, &str), Vec<usize>> = HashMap::new();
        for (at, place) in lines.iter().enumerate() {
            tenants.entry((lane(place), &place.tenant)).or_default().push(at);
        }
        let mut next_of_lane = [None::<u64>; LANES];
        for (lane, tenant) in tenants.keys() {
            next_of_lane[*lane] = earlier(next_of_lane[*lane], self.tenants.get(*tenant).copied());
        }
        let mut lanes = Heaps::default();
        for ((lane, tenant), own) in tenants {
            let known = own.iter().filter_map(|at| self.lines.get(&id(&lines[*at])).copied()).min();
            let new = self.behind(known);
            let mut own: Vec<(u64, usize)> =
                own.into_iter().map(|at| (*self.lines.entry(id(&lines[at])).or_insert(new), at)).collect();
            own.sort_unstable();
            let lines: VecDeque<usize> = own.into_iter().map(|(_, at)| at).collect();
            let new = self.behind(next_of_lane[lane]);
            let last = match self.tenants.get(tenant) {
                Some(last) => *last,
                None => *self.tenants.entry(tenant.to_owned()).or_insert(new),
            };
            let order = Reverse((places.share(tenant), last, lines[0]));
            lanes[lane].push(Waiting { order, tenant, lines });
        }
        for (lane, waiting) in lanes.iter().enumerate().skip(1) {
            if !waiting.is_empty() {
                self.lanes[lane] = self.lanes[lane].max(self.now);
            }
        }
        lanes
    }

    /// Gives one turn.
    fn next<'a>(
        &mut self,
        lanes: &mut Heaps<'a>,
        lines: &'a [LinePlace],
        places: &mut Places<'a>,
    ) -> Option<usize> {
        loop {
            let waiting = |lane: &usize| !lanes[*lane].is_empty();
            let begun = Some(0).filter(waiting);
            let lane = begun.or_else(|| (1..LANES).filter(waiting).min_by_key(|lane| self.lanes[*lane]))?;
            let mut tenant = lanes[lane].pop()?;
            let Reverse((was, last, first)) = tenant.order;
            let share = places.share(tenant.tenant);
            // It had a turn in another lane meanwhile.
            if share > was {
                lanes[lane].push(Waiting { order: Reverse((share, last, first)), ..tenant });
                continue;
            }
            let Some(line) = tenant.lines.pop_front() else { continue };
            let LinePlace { tenant: name, line: keys, .. } = &lines[line];
            if places.left(name, keys).is_some_and(|(left, _)| left == 0) {
                if let Some(next) = tenant.lines.front() {
                    lanes[lane].push(Waiting { order: Reverse((share, last, *next)), ..tenant });
                }
                continue;
            }
            places.take(name, keys, 1);
            self.tick += 1;
            self.tenants.insert(name.clone(), self.tick);
            self.lines.insert(id(&lines[line]), self.tick);
            if let Some(cost) = cost(lines[line].lane) {
                self.now = self.lanes[lane];
                self.lanes[lane] += cost;
            }
            tenant.lines.push_back(line);
            let order = Reverse((places.share(name), self.tick, tenant.lines[0]));
            lanes[lane].push(Waiting { order, ..tenant });
            return Some(line);
        }
    }
}

/// The earlier of two times, as far as they are known.
fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

fn lane(place: &LinePlace) -> usize {
    usize::try_from(place.lane).unwrap_or(0).min(LANES - 1)
}

/// What a turn of a lane costs; nothing for jobs that have begun.
fn cost(number: i16) -> Option<u64> {
    let lane = Lane::ALL.into_iter().find(|lane| lane.number() == number)?;
    Some(COST / u64::from(lane.share()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(lane: i16, tenant: &str, line: &str) -> LinePlace {
        LinePlace { lane, tenant: tenant.to_owned(), line: line.to_owned(), behind: 0 }
    }

    fn at_work(tenant: &str, line: &str, jobs: u64) -> InFlight {
        InFlight {
            pool: "p".to_owned(),
            tenant: tenant.to_owned(),
            line: line.to_owned(),
            running: true,
            jobs,
        }
    }

    /// How many of each line have their turn.
    fn chosen(
        turns: &mut Turns,
        room: u64,
        lines: &[LinePlace],
        in_flight: &[InFlight],
        bounds: &LineBounds,
    ) -> Vec<u32> {
        let pool = "p".parse().unwrap();
        let takes = turns.choose(room, lines, &mut Places::new(&pool, in_flight, bounds));
        let most =
            |place: &LinePlace| takes.iter().find(|take| take.place == *place).map_or(0, |take| take.most);
        lines.iter().map(most).collect()
    }

    #[test]
    fn what_waits_has_its_turn_although_new_lines_and_tenants_come_as_fast_as_turns() {
        let new_line = |n: usize| line(2, "a", &format!("k{n:05}"));
        let new_tenant = |n: usize| line(2, &format!("t{n:05}"), "");
        for new in [&new_line as &dyn Fn(usize) -> LinePlace, &new_tenant] {
            let (mut turns, bounds) = (Turns::default(), LineBounds::default());
            // It has had a turn, and waits again.
            chosen(&mut turns, 1, &[line(2, "a", "")], &[], &bounds);
            let had: u32 =
                (0..100).map(|n| chosen(&mut turns, 1, &[new(n), line(2, "a", "")], &[], &bounds)[1]).sum();
            assert!(had >= 33, "{had} of 100");
        }
    }

    #[test]
    fn lanes_have_turns_in_the_ratio_of_their_shares_however_few_at_a_time() {
        let lines = [line(1, "a", ""), line(2, "a", ""), line(3, "a", "")];
        for room in [1, 16, 160] {
            let (mut turns, mut sums) = (Turns::default(), [0; 3]);
            for _ in 0..320 / room {
                let chosen = chosen(&mut turns, room, &lines, &[], &LineBounds::default());
                sums.iter_mut().zip(chosen).for_each(|(sum, one)| *sum += one);
            }
            assert_eq!(sums, [240, 60, 20], "{room} at a time");
        }
    }

    #[test]
    fn a_lane_that_comes_back_makes_up_for_nothing_and_what_has_begun_is_first() {
        let mut turns = Turns::default();
        let (high, low) = (line(1, "a", ""), line(3, "a", ""));
        chosen(&mut turns, 1_000, std::slice::from_ref(&low), &[], &LineBounds::default());
        let both = [high, low];
        assert_eq!(chosen(&mut turns, 14, &both, &[], &LineBounds::default()), [13, 1]);
        let begun = [line(0, "b", ""), both[0].clone()];
        assert_eq!(chosen(&mut turns, 5, &begun, &[], &LineBounds::default()), [5, 0]);
    }

    #[test]
    fn the_tenant_with_the_fewest_at_work_for_its_weight_is_next() {
        let lines = [line(2, "a", ""), line(2, "b", ""), line(2, "c", "")];
        let bounds = LineBounds { weights: [("c".to_owned(), 2)].into(), ..LineBounds::default() };
        let in_flight = [at_work("a", "", 10)];
        // Up to 10 for a, 10 for b and 20 for c; then in the ratio of the weights.
        assert_eq!(chosen(&mut Turns::default(), 30, &lines, &in_flight, &bounds), [0, 10, 20]);
        assert_eq!(chosen(&mut Turns::default(), 34, &lines, &in_flight, &bounds), [1, 11, 22]);
    }

    #[test]
    fn of_equal_tenants_and_lines_each_has_its_turn() {
        let mut turns = Turns::default();
        let lines: Vec<LinePlace> = (0..10).map(|n| line(2, &format!("t{n}"), "")).collect();
        let mut sums = vec![0; 10];
        for _ in 0..20 {
            // Their jobs end at once.
            let chosen = chosen(&mut turns, 1, &lines, &[], &LineBounds::default());
            sums.iter_mut().zip(chosen).for_each(|(sum, one)| *sum += one);
        }
        assert_eq!(sums, [2; 10]);
        let keys = [line(2, "a", "x"), line(2, "a", "y")];
        assert_eq!(chosen(&mut turns, 6, &keys, &[], &LineBounds::default()), [3, 3]);
    }

    #[test]
    fn nobody_passes_a_bound_and_the_others_have_the_rest() {
        let lines = [line(1, "a", "k"), line(2, "a", "j,k"), line(2, "b", "k"), line(3, "c", "")];
        let bounds = LineBounds {
            limits: [(("a".to_owned(), "k".to_owned()), 3), (("b".to_owned(), "other".to_owned()), 0)].into(),
            max_running: [("c".to_owned(), 2)].into(),
            ..LineBounds::default()
        };
        let in_flight = [at_work("a", "k", 1), InFlight { pool: "q".to_owned(), ..at_work("c", "", 1) }];
        let given = chosen(&mut Turns::default(), 100, &lines, &in_flight, &bounds);
        assert_eq!((given[0] + given[1], given[2], given[3]), (2, 97, 1), "{given:?}");
        // A limit that was lowered below what is at work.
        let full = [at_work("a", "k", 9)];
        assert_eq!(chosen(&mut Turns::default(), 5, &lines[..2], &full, &bounds), [0, 0]);
    }
}
