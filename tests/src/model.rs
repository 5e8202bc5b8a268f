//! The protocol of claim, lease, rescue and conclude as a small machine, to be explored in every order of its steps.
//!
//! A [`fleet::Fleet`] is everything at one moment: the ledger's rows, a queue, relays, worker processes and a call that
//! hangs in the network. An [`action::Action`] is one thing that happens; a transaction of `shared/store` is one of them.
//! Some are mishaps (a crash, a lost reply, a call that arrives late, a lease that runs out, a drain, a cancel), of which
//! a [`scope::Scope`] allows a few, of any kind and at any time. [`promise::Promise`] says what must hold in every state.
//! [`broken::Broken`] takes one rule away, and the search shows what comes of that.
//!
//! The search ([`search`]) is breadth-first, so that what it shows is a shortest way to a broken promise. That every job
//! ends is checked from each state: a fair order of what is left to be done leads there ([`fair`]).
//!
//! No clock is in it: a lease runs out and a job's time comes at any moment. So a clock that is set is one of its orders.
//!
//! What is left out: batches (calls of one batch are calls one after the other), more than one slot, harnesses, what is
//! in a session, deadlines, `on_busy`.

pub mod row;
pub mod call;
pub mod ledger;
pub mod process;
pub mod fleet;
pub mod action;
pub mod possible;
pub mod step;
pub mod fair;
pub mod promise;
pub mod broken;
pub mod scope;
pub mod search;
