//! Access to the HTTP API: what a key looks like, and which caller it stands for.

mod api_key;
mod cache;
mod keys;
mod ticket;
mod limits;
mod rates;

pub use api_key::{ApiKey, BadKey};
pub use keys::{Keys, Refused, Wanted, create_key};
pub use limits::Limits;
pub use rates::{Granted, Rates};
pub use ticket::{VALID_FOR, create_ticket};
