//! How Postgres is reached: the only reader of `DATABASE_URL`, the only place that decides on TLS, and the settings of
//! our connections.
//!
//! `store` and `migrations` both connect through this crate, so an address that one of them accepts is not refused by
//! the other. It knows no table.
//!
//! # Rules
//! * **An address is read once**, at the start of a process, with all its parameters. No part of this project reads the
//!   environment of libpq (`PGHOST`, `PGSSLMODE`, `PGOPTIONS`, …) or its password file.
//! * **If TLS is used, the certificate is verified**: against `sslrootcert`, else against the authorities of the system.
//! * **What our statements rely on is set explicitly**, not inherited from a role or a database ([`SetBy`]).

mod parameters;
mod tls;
mod address;
mod settings;
mod socket;
mod connect;
mod error;
mod look;
mod role;

pub use address::Address;
pub use connect::{Session, connect};
pub use error::{PostgresError, is_ended};
pub use look::{Pooling, look, look_at_settings, ready};
pub use role::set_for_role;
pub use settings::SetBy;
