//! The protocol of reservation and settlement as a small state machine, explored in every order of its steps.
//!
//! A [`world::World`] is everything at one moment: the ledger's rows and one account with a limit, runs of jobs and
//! the processes behind them, requests at the provider, and what it has billed. An [`action::Action`] is one event;
//! each transaction of `shared/store/src/spend` is one of them. [`promise::Promise`] says what must hold in every
//! state, above all: *what the provider bills ≤ spent + held ≤ the limit*. [`broken::Broken`] removes one rule.
//!
//! There is no clock. The search is breadth-first, as that of `model`, so a path to a broken promise is a shortest
//! one.
//!
//! Not modelled: batches (the calls of one are calls one after the other), more than one account, overruns, stored
//! answers. Nor are rate limits: they can only turn *granted* into *later*, and a call that is not granted changes no row.
//! That is the step that a call does not take here, and the search takes every order of the others.

pub mod broken;
pub mod world;
pub mod action;
pub mod promise;
pub mod search;
