//! What does a job's work: the [`Harness`] trait, the state it works on, and the harnesses that come with the fleet.
//!
//! A harness gets a [`Run`]: the [`Task`], the [`Session`] as its last checkpoint left it, a [`Journal`] for what it
//! has done and a signal that tells it to stop. It never learns where any of these live: this crate has never heard
//! of RabbitMQ, SQL, leases or queues, and depends on nothing of ours but `job`.
//!
//! | harness | does |
//! |---|---|
//! | `echo` | gives its input back |
//! | `scripted` | plays the iterations its input declares: the stand-in for a model that needs no key |
//! | `command` | runs a program of the user's, in any language, over JSON lines ([the contract](command)) |
//!
//! Linux only: `command` stands on process groups, `waitid` and parent-death signals.

mod harness;
mod session;
mod event;
mod settings;
mod storable;
mod echo;
mod scripted;
pub mod command;

pub use command::{CommandConfig, WITHHELD};
pub use echo::EchoConfig;
pub use event::Event;
pub use harness::{Appended, Harness, Journal, Run, RunError, Shortage, Stop, Task};
pub use scripted::ScriptedConfig;
pub use session::{Delta, DeltaError, MAX_COUNT, MAX_DELTA_BYTES, Session, Usage};
pub use settings::{ConfigError, HarnessConfig};
