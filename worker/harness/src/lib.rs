//! A harness does a job's work. This crate is its contract: the [`Harness`] trait, the state that a harness works on,
//! and the two harnesses that need nothing but their input.
//!
//! A harness gets a [`Run`]: the [`Task`], the [`Session`] as its last checkpoint left it, a [`Journal`] for what it
//! has done, and a signal that asks it to stop. It does not know where any of these live. This crate has never heard
//! of RabbitMQ, SQL, leases, queues or processes, and `job` is the only crate of ours that it depends on.
//!
//! | harness | does |
//! |---|---|
//! | `echo` | returns its input |
//! | `scripted` | plays the iterations that its input declares: a stand-in for a model that needs no key |
//!
//! Other harnesses have crates of their own beside this one, with the dependencies that they need. Only the worker
//! knows which harnesses exist.

pub mod storable;
mod session;
mod event;
mod part;
mod stop;
mod meter;
mod offer;
mod room;
mod run;
mod harness;
mod config;
mod echo;
mod scripted;
pub mod testing;

pub use config::ConfigError;
pub use echo::{Echo, EchoConfig};
pub use event::Event;
pub use harness::{Harness, RunError, Shortage};
pub use job::{CallId, ClosedInput, InputAnswer, InputKind, InputRequest as Ask, Usage};
pub use meter::{IsDurable, Meter};
pub use offer::{Offer, Offers, Taken};
pub use part::{Part, Work};
pub use room::Parts;
pub use run::{Journal, Prepared, Run, Task};
pub use scripted::{Scripted, ScriptedConfig};
pub use session::{Delta, DeltaError, MAX_COUNT, MAX_DELTA_BYTES, Session};
pub use stop::{Stop, StopSignal, Stopper};
