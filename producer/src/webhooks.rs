//! Webhooks: the ends of a tenant's jobs, sent to addresses that the tenant has named.
//!
//! The ledger has a delivery for each end, written with it. Here is how one is sent: to an address that was checked
//! (`address`), signed (`signature`), with the end as the API shows it (`event`), by the one producer that leads
//! (`sending`), with a bound for what is under way (`bytes`). Workers send nothing: they hold the fleet's work, and need no
//! way out to the internet.

mod address;
mod signature;
mod client;
mod event;
mod bytes;
mod endpoint;
mod sending;

pub use address::Allowed;
pub use client::Outbound;
pub use endpoint::{MOST, Made, Probe, Wanted, create, enable, new_secret, probe};
pub use sending::{LEASE_NAME, Sending};
