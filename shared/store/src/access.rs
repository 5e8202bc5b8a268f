//! Access: who may use the HTTP API, and what operators did.
//!
//! A tenant has keys, and a key has scopes. Each act of an operator changes a row and appends to the operators' log in
//! the same transaction, so that neither is there without the other. What a key looks like, and how its secret is
//! compared, is for the producer: here a secret is its SHA-256.

mod scope;
mod tenants;
mod limits;
mod keys;
mod tickets;
mod log;
mod health;

pub use health::{AccessHealth, EndingKey};
pub use keys::{FoundKey, KeyUse, KeyView, NewKey, RevokedKey};
pub use limits::{Rate, RateAnswer, RateRequest, TenantLimits};
pub use log::{LogRow, MessageAct};
pub(crate) use log::{jobs_logged, log_hash, logged};
pub use scope::{Principal, Scope, Scopes, UnknownScope};
pub use tenants::{ChangedTenant, TenantChange, TenantView};
pub use tickets::NewTicket;
