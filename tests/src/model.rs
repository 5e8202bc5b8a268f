//! The protocol of claim, lease, rescue and conclude as a small state machine, explored in every order of its steps.
//!
//! A [`fleet::Fleet`] is everything at one moment: the ledger's rows, a queue, relays, admitters, worker processes and
//! a call that hangs in the network. An [`action::Action`] is one event; each transaction of `shared/store` is one of
//! them. Some are mishaps: a crash, a lost reply, a call that arrives late, a lease that expires, a drain, a cancel. A
//! [`scope::Scope`] allows a few of them, of any kind and at any time. [`promise::Promise`] says what must hold in
//! every state. [`broken::Broken`] removes one rule, and the search shows the consequences.
//!
//! The search ([`search`]) is breadth-first, so it finds a shortest path to a broken promise. From each state it also
//! checks that every job ends: a fair order of the remaining steps leads there ([`fair`]).
//!
//! It has no clock: a lease may expire and a job may come due at any moment. So the search also covers clocks that are
//! set.
//!
//! Of a pool's line it has two admitters, one limit key, and what the leader has written down of who waits. An admitter
//! may lose its leadership between its count of places and its admission. Taking the leadership and writing down are no
//! [`call::Call`]s: `protocol_conformance` has its own way to repeat them.
//!
//! Not modelled: batches (the calls of one batch are calls one after the other), more than one slot, harnesses, the
//! content of a session, deadlines, `on_busy`, several questions of one job, turns among lanes, tenants and lines, an
//! admission that hangs in the network while its sender leads on.

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
