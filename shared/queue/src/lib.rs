//! The broker: the only crate that knows RabbitMQ and its client, lapin.
//!
//! A [`Broker`] owns one connection. Its supervisor declares the topology, notices every way in which a connection can
//! end, and builds the next one. [`Publisher`] and [`Slot`] are built on it and outlast any number of connections. A
//! delivery does not: its ack carries the generation of its connection, and is refused here when that connection is
//! gone. That is harmless, because the broker delivers the message again.
//!
//! A process that consumes and publishes needs two brokers. RabbitMQ stops reading from a connection that publishes
//! while an alarm (memory, disk) is on, and acks on that connection would wait too.
//!
//! This crate has never heard of Postgres, leases or sessions, and does not look into a message's body.
//!
//! ```no_run
//! # async fn example(stop: tokio_util::sync::CancellationToken) -> Result<(), Box<dyn std::error::Error>> {
//! use queue::{Broker, BrokerConfig, Message, jobs_queue};
//!
//! let pool = job::Name::default();
//! let config = BrokerConfig::new(std::env::var("AMQP_URL")?, "example").with_pools([pool.clone()]);
//! let broker = Broker::start(config, stop);
//! broker.publisher().publish(&jobs_queue(&pool), Message::new("harness.job.v1", "{}")).await?;
//!
//! let mut slot = broker.slot(&jobs_queue(&pool), "example");
//! while let Some(delivery) = slot.next().await {
//!     println!("{} bytes", delivery.body.len());
//!     delivery.ack().await?;
//! }
//! # Ok(()) }
//! ```
//!
//! lapin's own log lines can hold whole messages. Pass [`LOG_DIRECTIVE`] to the log filter to silence them. What
//! matters in them is in our own log lines and errors.

mod address;
mod config;
mod error;
mod refusals;
mod topology;
mod headers;
mod repair;
mod frame_repair;
mod socket;
mod declarations;
mod link;
mod declaring;
mod shared;
mod dead;
mod cursor;
mod delivery;
mod publisher;
mod confirming;
mod consumer;
mod connection;
mod depths;

pub use address::ConfigError;
pub use config::BrokerConfig;
pub use connection::Broker;
pub use consumer::Slot;
pub use cursor::{DeadLetterCursor, HeldLetter};
pub use dead::{DeadLetter, Death};
pub use delivery::{Delivery, MAX_HEADER_BYTES, StaleDelivery};
pub use depths::Depths;
pub use error::{PublishError, QueueError};
pub use link::Depth;
pub use publisher::{Message, Publisher};
pub use shared::BrokerStatus;
pub use topology::{DEAD_EXCHANGE, DEAD_QUEUE, DEAD_SWEEP_QUEUE, JOBS_EXCHANGE, jobs_queue, pool_of_queue};

/// A directive for the log filter (`EnvFilter` syntax). It silences lapin, whose log lines can hold whole messages.
pub const LOG_DIRECTIVE: &str = "lapin=off";
