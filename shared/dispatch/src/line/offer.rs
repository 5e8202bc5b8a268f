//! Which lines are offered a turn, where there are more than can be looked at for each.
//!
//! Each lane has a page of its own: so lanes keep the ratio of their shares, and jobs that have begun are always first.
//! In a page, each tenant has a line before one has two. The next page begins behind as many tenants, and
//! in each tenant behind as many lines, as had a turn: so one that had none is offered again soon.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included};

use store::{LinePlace, LineTake};

use super::turns::{LANES, LineId};
use super::view::Line;

/// Lines of a lane that are offered a turn at a time.
const OFFERED: usize = 1_024;

/// Where the next pages begin.
#[derive(Debug, Default)]
pub(super) struct Offers {
    /// By lane, behind this tenant.
    tenants: [Option<String>; LANES],
    /// By lane and tenant, behind the line with these limit keys.
    lines: HashMap<(i16, String), String>,
}

impl Offers {
    /// The lines that are offered a turn now, of those that are wanted.
    pub(super) fn of(
        &self,
        lines: &BTreeMap<LineId, Line>,
        wanted: impl Fn(&LineId) -> bool,
    ) -> Vec<LinePlace> {
        let lanes = self.tenants.iter().zip(0..);
        lanes.flat_map(|(behind, lane)| self.page(lines, lane, behind.as_deref(), &wanted)).collect()
    }

    fn page(
        &self,
        lines: &BTreeMap<LineId, Line>,
        lane: i16,
        behind: Option<&str>,
        wanted: &impl Fn(&LineId) -> bool,
    ) -> Vec<LinePlace> {
        let mut page = Vec::new();
        let mut tenants: Vec<_> = Vec::new();
        for tenant in tenants_behind(lines, lane, behind) {
            let mut own = self.lines_of(lines, lane, tenant).filter(|(line, _)| wanted(line));
            if let Some(first) = own.next() {
                page.push(place(first));
                tenants.push(own);
            }
            if page.len() == OFFERED {
                break;
            }
        }
        while page.len() < OFFERED && !tenants.is_empty() {
            tenants.retain_mut(|own| match own.next() {
                Some(next) if page.len() < OFFERED => {
                    page.push(place(next));
                    true
                }
                _ => false,
            });
        }
        page
    }

    /// The lines of a tenant: behind the one at which the last page ended, and then from the first up to it.
    fn lines_of<'a>(
        &self,
        lines: &'a BTreeMap<LineId, Line>,
        lane: i16,
        tenant: &str,
    ) -> impl Iterator<Item = (&'a LineId, &'a Line)> + use<'a> {
        let of = |keys: &str| (lane, tenant.to_owned(), keys.to_owned());
        let end = (lane, after(tenant), String::new());
        let last = self.lines.get(&(lane, tenant.to_owned())).map(|keys| of(keys));
        let from = last.clone().map_or(Included(of("")), Excluded);
        let first = last.map(|last| lines.range((Included(of("")), Included(last))));
        lines.range((from, Excluded(end))).chain(first.into_iter().flatten())
    }

    /// Notes which of the lines that were offered have a turn.
    pub(super) fn note(&mut self, offered: &[LinePlace], takes: &[LineTake]) {
        let mut turns: HashMap<(i16, &str), usize> = HashMap::new();
        for LineTake { place, .. } in takes {
            *turns.entry((place.lane, &place.tenant)).or_default() += 1;
        }
        let mut tenants = [0; LANES];
        for (lane, _) in turns.keys() {
            tenants[usize::try_from(*lane).unwrap_or(0)] += 1;
        }
        let (mut passed, mut passed_tenants) = (HashMap::<(i16, &str), usize>::new(), [0; LANES]);
        for place in offered {
            let (lane, tenant) = (usize::try_from(place.lane).unwrap_or(0), (place.lane, &*place.tenant));
            let lines = passed.entry(tenant).or_default();
            *lines += 1;
            if turns.get(&tenant) == Some(lines) {
                self.lines.insert((place.lane, place.tenant.clone()), place.line.clone());
            }
            if *lines == 1 {
                passed_tenants[lane] += 1;
                if passed_tenants[lane] == tenants[lane] {
                    self.tenants[lane] = Some(place.tenant.clone());
                }
            }
        }
    }

    /// Forgets where pages of tenants begin, if most of them wait no longer.
    pub(super) fn forget(&mut self, waiting: usize) {
        if self.lines.len() > 2 * waiting + 1_000 {
            self.lines.clear();
        }
    }
}

/// The tenants of a lane: behind this one, and then from the first up to it.
fn tenants_behind<'a>(
    lines: &'a BTreeMap<LineId, Line>,
    lane: i16,
    behind: Option<&str>,
) -> impl Iterator<Item = &'a str> {
    let next = move |from: String| {
        let first = lines.range((lane, from, String::new())..).next();
        first.filter(|((found, ..), _)| *found == lane).map(|((_, tenant, _), _)| tenant.as_str())
    };
    let walk =
        move |from: String| std::iter::successors(next(from), move |tenant: &&'a str| next(after(tenant)));
    let last = behind.unwrap_or_default().to_owned();
    let up_to = behind.map(str::to_owned);
    let first = up_to
        .into_iter()
        .flat_map(move |last| walk(String::new()).take_while(move |tenant| **tenant <= *last));
    walk(if behind.is_some() { after(&last) } else { last }).chain(first)
}

/// The first text behind this one.
fn after(text: &str) -> String {
    format!("{text}\0")
}

fn place(((lane, tenant, line), Line { behind, .. }): (&LineId, &Line)) -> LinePlace {
    LinePlace { lane: *lane, tenant: tenant.clone(), line: line.clone(), behind: *behind }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use job::Name;
    use store::LineBounds;

    use super::super::turns::{Places, Turns, id};
    use super::*;

    fn known<'a>(lines: impl IntoIterator<Item = (i16, &'a str, String)>) -> BTreeMap<LineId, Line> {
        lines
            .into_iter()
            .map(|(lane, tenant, line)| ((lane, tenant.to_owned(), line), Line::default()))
            .collect()
    }

    /// Gives so many turns one after the other, each to a line that ends its job at once. Returns who had them.
    fn turns(lines: &BTreeMap<LineId, Line>, times: usize, room: u64) -> Vec<LineTake> {
        let (mut offers, mut turns) = (Offers::default(), Turns::default());
        let (pool, bounds): (Name, _) = ("p".parse().unwrap(), LineBounds::default());
        let mut all = Vec::new();
        for _ in 0..times {
            let offered = offers.of(lines, |_| true);
            let takes = turns.choose(room, &offered, &mut Places::new(&pool, &[], &bounds));
            offers.note(&offered, &takes);
            all.extend(takes);
        }
        all
    }

    fn jobs(takes: &[LineTake], of: impl Fn(&LinePlace) -> bool) -> u32 {
        takes.iter().filter(|take| of(&take.place)).map(|take| take.most).sum()
    }

    fn many(lane: i16, count: usize) -> impl Iterator<Item = (i16, &'static str, String)> {
        (0..count).map(move |n| (lane, "a", format!("k{n:05}")))
    }

    #[test]
    fn lanes_keep_their_ratio_with_ten_thousand_lines_in_each_and_one_turn_at_a_time() {
        let lines = known((1..=3).flat_map(|lane| many(lane, 10_000)));
        let takes = turns(&lines, 32, 1);
        let of = |lane: i16| jobs(&takes, |place| place.lane == lane);
        assert_eq!([of(1), of(2), of(3)], [24, 6, 2]);
    }

    #[test]
    fn a_job_that_has_begun_is_first_beside_ten_thousand_high_lines() {
        let lines = known(many(1, 10_000).chain([(0, "z", String::new())]));
        let takes = turns(&lines, 10, 1);
        assert_eq!(jobs(&takes, |place| place.lane == 0), 10);
    }

    #[test]
    fn each_of_many_lines_has_one_turn_before_any_has_two() {
        let tenants: Vec<String> = (0..1_500).map(|n| format!("t{n:04}")).collect();
        let of_tenants = known(tenants.iter().map(|tenant| (2, tenant.as_str(), String::new())));
        for lines in [known(many(2, 1_500)), of_tenants] {
            for room in [1, 100] {
                let takes = turns(&lines, 1_500 / room as usize, room);
                let had: HashSet<LineId> = takes.iter().map(|take| id(&take.place)).collect();
                assert_eq!((had.len(), takes.len()), (1_500, 1_500), "{room} at a time");
            }
        }
    }

    #[test]
    fn a_tenant_with_one_line_has_every_other_turn_beside_one_with_ten_thousand() {
        let lines = known(many(2, 10_000).chain([(2, "b", String::new())]));
        let takes = turns(&lines, 20, 1);
        assert_eq!(jobs(&takes, |place| place.tenant == "b"), 10);
    }

    #[test]
    fn what_is_not_wanted_takes_nobodys_place() {
        let lines = known(many(2, 10_000).chain([(2, "b", "x".to_owned())]));
        let offered = Offers::default().of(&lines, |(_, tenant, keys)| tenant == "b" || keys == "k09999");
        let of: Vec<&str> = offered.iter().map(|place| place.line.as_str()).collect();
        assert_eq!(of, ["k09999", "x"]);
    }
}
