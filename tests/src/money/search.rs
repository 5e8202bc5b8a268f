//! Visits every state, nearest first.

use std::collections::{HashSet, VecDeque};

use super::action::Action;
use super::broken::Broken;
use super::promise::Promise;
use super::world::World;
use crate::model::search::way_back;

/// The result of a search.
pub struct Found {
    /// The number of states visited.
    pub states: usize,
    /// A promise that breaks, and a shortest path there.
    pub broken: Option<(Promise, Vec<Action>)>,
}

/// Explores everything that can happen with this many mishaps, until one of these promises breaks.
pub fn explore(broken: Broken, mishaps: u8, promises: &[Promise]) -> Found {
    let start = World::new(mishaps);
    let mut seen = HashSet::from([start]);
    // For each state, the state and the action that led to it.
    let mut ways: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut ahead = VecDeque::from([(0, start)]);
    while let Some((from, world)) = ahead.pop_front() {
        for action in world.possible(broken) {
            let next = world.after(broken, action);
            if !seen.insert(next) {
                continue;
            }
            ways.push((from, Some(action)));
            if let Some(promise) = promises.iter().find(|promise| !promise.holds_in(&next, broken)) {
                return Found { states: ways.len(), broken: Some((*promise, way_back(&ways))) };
            }
            ahead.push_back((ways.len() - 1, next));
        }
    }
    Found { states: ways.len(), broken: None }
}
