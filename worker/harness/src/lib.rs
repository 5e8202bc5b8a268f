//! The contract of what does a job's work: the [`Harness`] trait, the state it works on, and the two harnesses that need
//! nothing but their input.
//!
//! A harness gets a [`Run`]: the [`Task`], the [`Session`] as its last checkpoint left it, a [`Journal`] for what it
//! has done and a signal that tells it to stop. It never learns where any of these live: this crate has never heard
//! of RabbitMQ, SQL, leases, queues or processes, and depends on nothing of ours but `job`.
//!
//! | harness | does |
//! |---|---|
//! | `echo` | gives its input back |
//! | `scripted` | plays the iterations its input declares: the stand-in for a model that needs no key |
//!
//! Others have crates of their own beside this one, with what they need to do their work. Which there are is the worker's to know.

pub mod storable;
mod session;
mod event;
mod stop;
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
pub use run::{Appended, Journal, Run, Task};
pub use scripted::{Scripted, ScriptedConfig};
pub use session::{Delta, DeltaError, MAX_COUNT, MAX_DELTA_BYTES, Session, Usage};
pub use stop::{Stop, StopSignal, Stopper};
