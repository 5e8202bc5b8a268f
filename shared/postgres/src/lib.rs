//! How Postgres is reached: the one reader of `DATABASE_URL`, the one rule of TLS, and what each connection of ours is set to.
//!
//! `store` and `migrations` both connect by it, so that what one of them takes the other does not refuse. It knows no table.
//!
//! # Rules
//! * **An address is read once**, at the start of a process, with all its parameters. The environment of libpq (`PGHOST`,
//!   `PGSSLMODE`, `PGOPTIONS`, …) and its password file are read by no part of us.
//! * **Where there is TLS, the certificate is verified**: against `sslrootcert`, else against the authorities of the system.
//! * **What our statements rely on is stated**, not inherited from a role or a database ([`SetBy`]).

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
