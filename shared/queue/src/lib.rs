//! The broker: the only crate that knows RabbitMQ and its client, lapin.
//!
//! A [`Broker`] owns one connection. Its supervisor declares the topology, notices every way in which a connection can
//! end, and builds the next one. [`Publisher`] and [`Slot`] are built on it and outlast any number of connections. A
//! delivery does not: its ack carries the generation of its connection, and is refused here when that connection is
//! gone. Nothing is lost by that, because the broker delivers the message again. So a receiver must tolerate
//! duplicates.
//!
//! A process that consumes and publishes needs two connections, which are two [`Broker`]s. RabbitMQ stops reading from
//! a connection that publishes while an alarm (memory, disk) is on, and acks on that connection would wait too.
//!
//! This crate has never heard of Postgres, leases or sessions, and does not look into a message's body.
//!
//! ```no_run
//! # async fn example(stop: tokio_util::sync::CancellationToken) -> Result<(), Box<dyn std::error::Error>> {
//! use queue::{Broker, BrokerConfig, Message, jobs_queue};
//!
//! let pool = job::Name::default();
//! let config = BrokerConfig::new(std::env::var("AMQP_URL")?, "example").with_pools([pool.clone()]);
//! let publishing = Broker::start(config.clone(), stop.clone());
//! let consuming = Broker::start(config, stop);
//! // A real job's body comes from `job::encode`. This crate does not look into it.
//! publishing.publisher().publish(&jobs_queue(&pool), Message::new("example.v1", "{}")).await?;
//!
//! let mut slot = consuming.slot(&jobs_queue(&pool), "example");
//! while let Some(delivery) = slot.next().await {
//!     println!("{} bytes", delivery.body.len());
//!     delivery.ack().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! lapin's own log lines can hold whole messages. Pass [`LOG_DIRECTIVE`] to the log filter to silence them. What
//! matters in them is in our own log lines and errors.

// Settings and errors.
mod address;
mod config;
mod error;
mod refusals;

// What goes over the wire: names, headers, and the frames that are repaired before lapin reads them.
mod topology;
mod headers;
mod repair;
mod frame_repair;
mod socket;

// One live connection, and what is declared on it.
mod declarations;
mod link;
mod declaring;

// What outlasts a connection: messages in, messages out, dead letters.
mod shared;
mod dead;
mod cursor;
mod delivery;
mod publisher;
mod confirming;
mod consumer;

// Transient messages for the processes that listen.
mod announcing;
mod listening;

// The supervisor, and the lengths of queues for callers that poll them.
mod connection;
mod depths;

pub use address::ConfigError;
pub use announcing::{Announced, Announcer, EVENTS_EXCHANGE, TEXT_EXCHANGE};
pub use config::BrokerConfig;
pub use connection::Broker;
pub use consumer::Slot;
pub use cursor::{DeadLetterCursor, HeldLetter};
pub use dead::{DeadLetter, Death};
pub use delivery::{Delivery, MAX_HEADER_BYTES, StaleDelivery};
pub use depths::Depths;
pub use error::{PublishError, QueueError};
pub use link::Depth;
pub use listening::{Listener, Shards};
pub use publisher::{Message, Publisher};
pub use shared::BrokerStatus;
pub use topology::{DEAD_EXCHANGE, DEAD_QUEUE, DEAD_SWEEP_QUEUE, JOBS_EXCHANGE, jobs_queue, pool_of_queue};

/// A directive for the log filter (`EnvFilter` syntax). It silences lapin, whose log lines can hold whole messages.
pub const LOG_DIRECTIVE: &str = "lapin=off";
