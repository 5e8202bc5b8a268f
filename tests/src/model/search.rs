//! Visits every state of a scope, nearest first, so that the first path to a broken promise is a shortest one.
//!
//! This is our own code, although `stateright` exists. Its search (0.31) reports the last of the broken states that it
//! meets in one step, not the nearest. It keeps a copy of the path to every state. And "from here the end can be
//! reached" is not among its properties.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use super::action::Action;
use super::broken::Broken;
use super::fleet::Fleet;
use super::promise::Promise;
use super::row::JOBS;
use super::scope::Scope;

/// More states than a search should take. A mistake that makes the model endless shows here.
const MOST_STATES: usize = 50_000_000;

/// The result of a search.
pub struct Found {
    /// The number of states visited.
    pub states: usize,
    /// A promise that breaks, and a shortest path there.
    pub broken: Option<(Promise, Vec<Action>)>,
}

/// Explores a scope until one of these promises breaks.
pub fn explore(broken: Broken, scope: &Scope, promises: &[Promise]) -> Found {
    let mut search =
        Search { broken, hashing: RandomState::new(), seen: HashSet::new(), ending: HashSet::new() };
    let start = Fleet::new(scope);
    search.seen.insert(search.fingerprint(&start));
    // For each state, the state and the action that led to it. The first state comes from itself.
    let mut ways = vec![(0, None)];
    let mut ahead = VecDeque::from([(0, start)]);
    let mut actions = Vec::new();
    while let Some((at, fleet)) = ahead.pop_front() {
        actions.clear();
        fleet.possible(broken, scope, &mut actions);
        for action in &actions {
            let Some(next) = fleet.after(broken, *action, &mut |_, _| {}) else { continue };
            if !search.seen.insert(search.fingerprint(&next)) {
                continue;
            }
            ways.push((at, Some(*action)));
            if let Some(promise) = promises.iter().find(|promise| !search.keeps(**promise, &next)) {
                let way = way_back(&ways);
                return Found { states: ways.len(), broken: Some((*promise, way)) };
            }
            assert!(ways.len() < MOST_STATES, "{}: the search does not end", scope.name);
            ahead.push_back((ways.len() - 1, next));
        }
    }
    Found { states: ways.len(), broken: None }
}

/// Returns the actions that led to the last state.
pub(crate) fn way_back<A: Copy>(ways: &[(usize, Option<A>)]) -> Vec<A> {
    let mut way = Vec::new();
    let mut at = ways.len() - 1;
    while let (before, Some(action)) = ways[at] {
        way.push(action);
        at = before;
    }
    way.reverse();
    way
}

struct Search {
    broken: Broken,
    /// States are distinguished by 64 bits. Among a million states, two collide once in 40 million searches.
    hashing: RandomState,
    seen: HashSet<u64>,
    /// States from which all jobs end.
    ending: HashSet<u64>,
}

impl Search {
    fn fingerprint(&self, fleet: &Fleet) -> u64 {
        self.hashing.hash_one(fleet)
    }

    fn keeps(&mut self, promise: Promise, fleet: &Fleet) -> bool {
        match promise {
            Promise::EveryJobEnds => self.ends(fleet),
            _ => promise.holds_in(&fleet.ledger),
        }
    }

    /// Whether the fair order leads to a state in which all accepted jobs have ended.
    fn ends(&mut self, from: &Fleet) -> bool {
        let mut way = HashSet::new();
        let mut at = *from;
        loop {
            let fingerprint = self.fingerprint(&at);
            if self.ending.contains(&fingerprint) {
                break;
            }
            // It has reached the same state again, and would go round for ever.
            if !way.insert(fingerprint) {
                return false;
            }
            let after = at.fair(self.broken).and_then(|action| at.after(self.broken, action, &mut |_, _| {}));
            match after {
                Some(next) => at = next,
                None if (0..JOBS).all(|job| !at.accepted[job] || at.ledger.ends[job].is_some()) => break,
                None => return false,
            }
        }
        self.ending.extend(way);
        true
    }
}
