//! Money: what model calls cost, what they may still cost, and the limits on both.
//!
//! Before a call is sent, the most that it can cost is held ([`Store::reserve`]); afterwards it is settled
//! ([`Store::settle`]). In every state, for every limit and window:
//!
//! > what the provider bills ≤ spent + held ≤ limit
//!
//! # Rules
//! * **A hold has no timer.** It ends by its settlement, or becomes `unknown`, which is spent in full: when a newer
//!   run of its job is claimed, when its worker is found dead or stops, when a backup is restored.
//! * **Money is a fact.** A call may be settled after its lease is lost, and after it became `unknown`; once. A
//!   settlement of a call that is not there is kept, and the reservation that arrives after it is refused.
//! * **Lock first, decide second.** A reservation locks its job's row, so that no newer run begins meanwhile, and then
//!   the accounts that carry a limit, in the order of their keys. It decides in a later statement, and only on accounts
//!   that it has locked.
//! * **Only what is spent stops a job.** What others hold makes it wait.
//! * **An account is locked, not rewritten, by each call**: moves are appended, and folded now and then.
//! * **Rate limits only make calls wait.** What a call takes of its key's limits is decided with its reservation, and what
//!   it did not use is given back with its settlement: see `rates`.

mod account;
mod rates;
mod call;
mod deciding;
mod reserve;
mod settle;
mod unsettled;
mod answers;
mod cache;
mod repaid;
mod budgets;
mod keys;
mod report;
mod gauges;
mod upkeep;

pub use account::{Limit, Period, Scope};
pub(crate) use account::{keys_of_call, unfolded_from};
pub use answers::{GivenAnswer, StoredAnswer};
pub use budgets::{AccountView, Budget};
pub use cache::CacheEntry;
pub(crate) use cache::CacheHealth;
pub use call::{CacheLookup, CallTokens, Lookup, MOST_OF_A_CALL, NewCall};
pub use gauges::{BudgetGauge, SpendGauges};
pub use keys::{ShutFor, ShutKey};
pub use rates::{RateUse, Take};
pub use report::{SpendBy, SpendPage, SpendPlace, SpendRow, UnknownCall};
pub(crate) use reserve::Reservation;
pub use reserve::Reserved;
pub(crate) use settle::Settling;
pub use settle::{CallOutcome, Settled, SettledCall};
pub(crate) use unsettled::{LEAVE_ALL, LEAVE_OLDER_RUNS, LEAVE_OLDER_RUNS_OF, LEAVE_WORKERS};
pub(crate) use upkeep::{OLDEST_CALLS, SUM_UP};
