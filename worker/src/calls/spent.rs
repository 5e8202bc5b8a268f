//! Why calls had no room, as people read it.

use std::fmt;

use job::Usd;
use model::WithoutRoom;

/// More calls without room than a program has at a time. Of more the oldest are forgotten.
const MOST: usize = 64;

/// The calls of an attempt that had no room. Where a limit is spent, a smaller call that has room says nothing about them: a program
/// may have many under way, and end by the one that was refused. Where others hold the room, any call that has some undoes it:
/// such an attempt costs none, and a program that goes on with other calls would never come to its end.
#[derive(Debug, Default)]
pub struct Missed(Vec<(Option<[u8; 32]>, NoRoom)>);

/// Why a call had no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// What is spent leaves none.
    Spent(Spent),
    /// Others hold it, or a rate limit is reached, and the wait for it was over.
    Busy,
}

/// A limit that left no room for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// The account, as scope:period:window:name.
    pub account: String,
    pub limit: Usd,
    /// What the call could have cost.
    pub need: Usd,
    /// And with the lowest limit of output that its agent allows; zero until the call is refused for good.
    pub least: Usd,
    pub shut: bool,
    /// Whether the refusal is counted. One whose program may ask another model is counted only once nothing else has room either.
    pub is_counted: bool,
}

impl Missed {
    /// Returns why the last one had no room.
    pub fn last(&self) -> Option<&NoRoom> {
        self.0.last().map(|(_, why)| why)
    }

    /// Adds a request, in the place of what was there of it. A purchase has none.
    pub fn add(&mut self, request: Option<[u8; 32]>, why: NoRoom) {
        self.0.retain(|(other, _)| request.is_none() || *other != request);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((request, why));
    }

    /// Removes what has had room now: the same request, all that needed no more, and what others had the room of.
    pub fn had_room(&mut self, request: Option<[u8; 32]>, most: Usd) {
        self.0.retain(|(other, why)| match why {
            NoRoom::Spent(spent) => (request.is_none() || *other != request) && spent.need > most,
            NoRoom::Busy => false,
        });
    }

    /// Notes that a request is refused for good.
    pub fn is_final(&mut self, refused: &WithoutRoom) {
        let last = self.0.iter_mut().rev().find(|(request, _)| *request == refused.request);
        if let Some((_, NoRoom::Spent(spent))) = last {
            (spent.need, spent.least, spent.is_counted) = (refused.most, refused.least, false);
        }
    }

    /// Returns the refusals for good that are not counted, which then are.
    pub fn take_uncounted(&mut self) -> Vec<Spent> {
        let uncounted = self.0.iter_mut().filter_map(|(_, why)| match why {
            NoRoom::Spent(spent) if !spent.is_counted => Some(spent),
            NoRoom::Spent(_) | NoRoom::Busy => None,
        });
        uncounted
            .map(|spent| {
                spent.is_counted = true;
                spent.clone()
            })
            .collect()
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spent { account, limit, least, shut, .. } = self;
        if self.is_hopeless() {
            return write!(f, "the budget {account} has no room: a call needs {least}, the limit is {limit}");
        }
        if *shut {
            return write!(
                f,
                "the budget {account} is shut, because a call has cost more than was held for it"
            );
        }
        write!(f, "the budget {account} of {limit} is spent")
    }
}

impl Spent {
    /// Returns whether the call needs more than the whole limit, however short its answer may be, so that no later window has room
    /// for it either.
    pub fn is_hopeless(&self) -> bool {
        self.least > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd(micros: u64) -> Usd {
        Usd::from_micros(micros)
    }

    fn spent(need: u64) -> NoRoom {
        let account = "fleet:day:2026-11-29:".to_owned();
        let (limit, least) = (usd(10), Usd::ZERO);
        NoRoom::Spent(Spent { account, limit, need: usd(need), least, shut: false, is_counted: true })
    }

    fn request(n: u8) -> Option<[u8; 32]> {
        Some([n; 32])
    }

    #[test]
    fn a_smaller_call_that_has_room_does_not_undo_a_refusal() {
        let mut missed = Missed::default();
        missed.add(request(1), spent(8));
        missed.had_room(request(2), usd(7));
        assert_eq!(missed.last(), Some(&spent(8)));
        missed.had_room(None, usd(7));
        assert_eq!(missed.last(), Some(&spent(8)), "a purchase is no request");
        missed.had_room(request(2), usd(8));
        assert_eq!(missed.last(), None, "as much had room");
        missed.add(request(1), spent(8));
        missed.had_room(request(1), usd(3));
        assert_eq!(missed.last(), None, "it had room itself, with a lower limit of output");
        missed.add(request(1), NoRoom::Busy);
        missed.had_room(request(2), usd(1));
        assert_eq!(missed.last(), None, "its program goes on with what it has");
    }

    #[test]
    fn of_many_the_last_ones_are_kept_and_each_request_once() {
        let mut missed = Missed::default();
        for n in 0..100 {
            missed.add(request(n), spent(u64::from(n)));
            missed.add(request(n), spent(u64::from(n)));
            missed.add(None, NoRoom::Busy);
        }
        assert_eq!(missed.0.len(), MOST);
        missed.had_room(None, usd(1));
        assert_eq!(missed.0.len(), MOST / 2);
        assert_eq!(missed.last(), Some(&spent(99)));
    }

    #[test]
    fn a_call_is_hopeless_only_by_its_least_form_and_is_counted_once() {
        let mut missed = Missed::default();
        for (least, hopeless) in [(5, false), (10, false), (11, true)] {
            missed.add(request(1), spent(12));
            assert!(missed.take_uncounted().is_empty(), "it may still be made to cost less");
            missed.is_final(&WithoutRoom { request: request(1), most: usd(12), least: usd(least) });
            let counted = missed.take_uncounted();
            assert_eq!(counted.iter().map(Spent::is_hopeless).collect::<Vec<_>>(), [hopeless], "{least}");
            assert!(missed.take_uncounted().is_empty());
        }
    }
}
