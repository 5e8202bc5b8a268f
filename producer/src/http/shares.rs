//! Bounds that callers share: so much of something in all, and so much of it for one of them, so that one caller at its
//! bound leaves room for the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::metrics;
use super::problem::{Kind, Problem};

/// What is taken, in all and by each.
pub struct Shares<K> {
    most: usize,
    most_of_one: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    of: HashMap<K, usize>,
}

/// The bound that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Of one caller.
    One(usize),
    /// Of all together.
    All(usize),
}

impl Full {
    /// Returns the answer to a caller that has met the bound, and counts it by the bound's name.
    pub fn problem(
        self,
        name: &'static str,
        of_one: Kind,
        (one, all): (impl FnOnce(usize) -> String, impl FnOnce(usize) -> String),
    ) -> Problem {
        metrics::met_bound(name);
        match self {
            Full::One(most) => Problem::new(of_one, one(most)),
            Full::All(most) => Problem::new(Kind::Busy, all(most)),
        }
    }
}

/// What a caller has taken. It is given back when this is dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    taken: Arc<Mutex<Taken<K>>>,
    of: Option<K>,
    amount: usize,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Shares { taken: self.taken.clone(), ..*self }
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// So much in all, and for one caller.
    pub fn new(most: usize, most_of_one: usize) -> Shares<K> {
        Shares { most, most_of_one, taken: Arc::new(Mutex::new(Taken { all: 0, of: HashMap::new() })) }
    }

    /// How much a caller may have.
    pub fn most_of_one(&self) -> usize {
        self.most_of_one
    }

    /// How much more this caller may take of what is its own; `None` if it has nothing.
    pub fn left(&self, of: &K) -> Option<usize> {
        let taken = lock(&self.taken);
        taken.of.get(of).map(|own| self.most_of_one.saturating_sub(*own))
    }

    /// Takes a part for this caller; without one it counts in all alone. What is larger than a caller's part takes the
    /// whole of it.
    pub fn take(&self, of: Option<&K>, amount: usize) -> Result<Share<K>, Full> {
        let amount = amount.min(self.most).min(if of.is_some() { self.most_of_one } else { usize::MAX });
        let mut taken = lock(&self.taken);
        let own = of.and_then(|of| taken.of.get(of)).copied().unwrap_or_default();
        if of.is_some() && own + amount > self.most_of_one {
            return Err(Full::One(self.most_of_one));
        }
        if taken.all + amount > self.most {
            return Err(Full::All(self.most));
        }
        Ok(self.give(&mut taken, of, amount))
    }

    /// Takes as much of this as is left, which may be nothing.
    pub fn take_what_is_left(&self, of: Option<&K>, amount: usize) -> Share<K> {
        let mut taken = lock(&self.taken);
        let own = of.and_then(|of| taken.of.get(of)).copied().unwrap_or_default();
        let of_own = if of.is_some() { self.most_of_one.saturating_sub(own) } else { usize::MAX };
        let amount = amount.min(of_own).min(self.most.saturating_sub(taken.all));
        self.give(&mut taken, of, amount)
    }

    fn give(&self, taken: &mut Taken<K>, of: Option<&K>, amount: usize) -> Share<K> {
        taken.all += amount;
        if let Some(of) = of {
            *taken.of.entry(of.clone()).or_default() += amount;
        }
        Share { taken: self.taken.clone(), of: of.cloned(), amount }
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all -= self.amount;
        if let Some(of) = &self.of
            && let Some(own) = taken.of.get_mut(of)
        {
            *own -= self.amount;
            if *own == 0 {
                taken.of.remove(of);
            }
        }
    }
}

fn lock<K>(taken: &Mutex<Taken<K>>) -> MutexGuard<'_, Taken<K>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_its_bound_leaves_room_for_others_and_what_is_given_back_can_be_taken() {
        let shares = Shares::new(10, 4);
        let first = shares.take(Some(&"a"), 3).expect("room");
        assert_eq!(shares.take(Some(&"a"), 2).err(), Some(Full::One(4)));
        let whole = shares.take(Some(&"b"), 99).expect("its whole part");
        assert_eq!(shares.take(Some(&"c"), 4).err(), Some(Full::All(10)));
        let rest = shares.take_what_is_left(Some(&"a"), 9);
        assert_eq!([shares.left(&"a"), shares.left(&"b"), shares.left(&"c")], [Some(0), Some(0), None]);
        drop(rest);
        let _rest = shares.take(None, 3).expect("what is left");
        drop(whole);
        assert!(shares.take(Some(&"a"), 1).is_ok());
        drop(first);
        assert!(shares.take(Some(&"a"), 4).is_ok());
        assert!(lock(&shares.taken).of.is_empty(), "nothing is kept of callers without a share");
    }
}
