//! The accounts of one run, in memory. They answer what the ledger's answer, by one limit: what is spent and
//! held never exceeds it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use harness::Usage;
use job::Usd;
use model::{Call, Given, Ledger, Outcome, Purchase, Reserve, Settlement, Unavailable, WithoutRoom};
use uuid::Uuid;

use super::spent::{Missed, NoRoom, Spent};

/// When the gateway asks again for a call that does not fit beside what others hold.
const BUSY_RETRY: Duration = Duration::from_millis(100);
/// The name of the only limit, for the gateway.
const LIMIT: &str = "run";

/// What a run may spend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The setting that says so.
    pub name: &'static str,
    /// How much.
    pub most: Usd,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the limit of {} ({})", self.most, self.name)
    }
}

/// What calls have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// All of it. What is not known counts in full.
    pub used: Usage,
    /// How much of the cost is not known.
    pub unknown: Usd,
}

pub struct Accounts {
    limit: Option<Limit>,
    /// The model loop makes the calls, one after the other.
    by_loop: bool,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    total: Total,
    held: HashMap<Uuid, Usd>,
    missed: Missed,
}

impl Accounts {
    pub fn new(limit: Option<Limit>, by_loop: bool) -> Accounts {
        Accounts { limit, by_loop, books: Mutex::default() }
    }

    /// Returns the limit, if it left no room for a call, and none has had it since which could have cost as much.
    pub fn spent(&self) -> Option<&Limit> {
        self.limit.as_ref().filter(|_| self.books().missed.last().is_some())
    }

    /// Returns what is held for calls that are under way.
    pub fn held(&self) -> Vec<Usd> {
        self.books().held.values().copied().collect()
    }

    /// Returns what the run has used. What is still held is not known, and counts in full.
    pub fn total(&self) -> Total {
        let books = self.books();
        let held = books.held.values().copied().sum();
        let Total { mut used, unknown } = books.total;
        used.cost += held;
        Total { used, unknown: unknown + held }
    }

    /// Holds what a call can cost. A purchase has no request.
    fn hold(&self, id: Uuid, request: Option<[u8; 32]>, most: Usd) -> Reserve {
        let mut books = self.books();
        let (spent, held): (Usd, Usd) = (books.total.used.cost, books.held.values().copied().sum());
        let limit = self.limit.as_ref();
        let exceeds = |sum: Usd| limit.filter(|limit| sum > limit.most);
        if let Some(limit) = exceeds(spent + most) {
            books.missed.add(request, NoRoom::Spent(spent_by(limit.most, most)));
            let room = Usd::from_micros(limit.most.micros().saturating_sub(spent.micros()));
            return Reserve::Spent { limit: limit.to_string(), room };
        }
        if exceeds(spent + held + most).is_some() {
            return Reserve::Busy { behind: LIMIT.to_owned(), retry_after: BUSY_RETRY };
        }
        // The loop goes on with what it is answered, whatever was refused before.
        books.missed.had_room(request, if self.by_loop { Usd::MAX } else { most });
        books.held.insert(id, most);
        Reserve::Granted
    }

    fn settle(&self, id: Uuid, most: Usd, outcome: &Outcome) {
        let mut books = self.books();
        books.held.remove(&id);
        let total = &mut books.total;
        total.used += match outcome {
            Outcome::Settled(settled) => Usage {
                cost: settled.cost,
                input_tokens: settled.tokens.all_input(),
                output_tokens: settled.tokens.output,
            },
            Outcome::Unknown(_) => {
                total.unknown += most;
                Usage { cost: most, ..Usage::default() }
            }
            Outcome::Free => Usage::default(),
        };
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a call has no room. It is not counted anywhere.
fn spent_by(limit: Usd, need: Usd) -> Spent {
    let account = LIMIT.to_owned();
    Spent { account, limit, need, least: Usd::ZERO, shut: false, is_counted: true }
}

#[async_trait]
impl Ledger for Accounts {
    /// A checkpoint is durable at once, as far as anything is here.
    async fn until_durable(&self) {}

    async fn reserve(&self, call: &Call) -> Result<Reserve, Unavailable> {
        Ok(self.hold(call.id, Some(call.request.hash), call.bound.cost))
    }

    fn counts_in(&self, limit: &str) -> bool {
        limit == LIMIT
    }

    fn note_spent(&self, _: &WithoutRoom) {}

    async fn settle(&self, call: &Call, settlement: Settlement) -> Result<(), Unavailable> {
        Accounts::settle(self, call.id, call.bound.cost, &settlement.outcome);
        Ok(())
    }

    async fn reserve_purchase(&self, purchase: &Purchase) -> Result<Reserve, Unavailable> {
        Ok(self.hold(purchase.id, None, purchase.most))
    }

    async fn settle_purchase(&self, purchase: &Purchase, outcome: Outcome) -> Result<(), Unavailable> {
        Accounts::settle(self, purchase.id, purchase.most, &outcome);
        Ok(())
    }

    /// An attempt follows another one only at a checkpoint, which covers all answers.
    async fn look_up(&self, _: &Call) -> Result<Option<Given>, Unavailable> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use model::{NoUsage, Settled, Tokens};

    use super::*;

    fn usd(text: &str) -> Usd {
        text.parse().expect("dollars")
    }

    fn settled(cost: &str) -> Outcome {
        let tokens = Tokens { input: 3, output: 2, ..Tokens::default() };
        Outcome::Settled(Settled { cost: usd(cost), tokens, model: "m".to_owned() })
    }

    /// Asks for a call whose request is like no other's.
    fn hold(accounts: &Accounts, id: Uuid, most: &str) -> Reserve {
        accounts.hold(id, Some([id.as_bytes()[15]; 32]), usd(most))
    }

    fn within_a_dollar(by_loop: bool) -> Accounts {
        Accounts::new(Some(Limit { name: "--max-cost-usd", most: usd("1") }), by_loop)
    }

    #[test]
    fn what_is_spent_stops_a_call_and_what_is_held_lets_it_wait() {
        let accounts = within_a_dollar(false);
        let [one, two] = [1, 2].map(Uuid::from_u128);
        assert_eq!(hold(&accounts, one, "0.6"), Reserve::Granted);
        assert!(matches!(hold(&accounts, two, "0.6"), Reserve::Busy { .. }));
        accounts.settle(one, usd("0.6"), &settled("0.5"));
        assert!(accounts.spent().is_none());
        let Reserve::Spent { room, .. } = hold(&accounts, two, "0.6") else { panic!("there is no room") };
        assert_eq!(room, usd("0.5"));
        assert!(accounts.spent().is_some());
    }

    #[test]
    fn a_smaller_call_that_has_room_undoes_no_refusal_of_a_program() {
        let [one, two, three] = [1, 2, 3].map(Uuid::from_u128);
        let accounts = within_a_dollar(false);
        hold(&accounts, one, "1.1");
        assert_eq!(hold(&accounts, two, "0.1"), Reserve::Granted);
        assert_eq!(accounts.hold(three, None, usd("0.1")), Reserve::Granted);
        assert!(accounts.spent().is_some(), "it may end by what it was refused");
        assert_eq!(hold(&accounts, one, "0.2"), Reserve::Granted);
        assert!(accounts.spent().is_none(), "the call had room itself, as one that costs less");
        let accounts = within_a_dollar(true);
        hold(&accounts, one, "1.1");
        assert_eq!(hold(&accounts, two, "0.1"), Reserve::Granted);
        assert!(accounts.spent().is_none(), "a model loop goes on with its next model");
    }

    #[test]
    fn what_is_not_known_counts_in_full() {
        let accounts = Accounts::new(None, false);
        let [one, two, three, four] = [1, 2, 3, 4].map(Uuid::from_u128);
        for id in [one, two, three, four] {
            assert_eq!(hold(&accounts, id, "0.1"), Reserve::Granted);
        }
        accounts.settle(one, usd("0.1"), &settled("0.03"));
        accounts.settle(two, usd("0.1"), &Outcome::Unknown(NoUsage::NoEnd));
        accounts.settle(three, usd("0.1"), &Outcome::Free);
        let Total { used, unknown } = accounts.total();
        assert_eq!((used.cost, unknown), (usd("0.23"), usd("0.2")));
        assert_eq!((used.input_tokens, used.output_tokens), (3, 2));
    }
}
