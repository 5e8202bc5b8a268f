//! Access to the HTTP API: what a key looks like, and which caller it stands for.

mod api_key;
mod cache;
mod keys;

pub use api_key::{ApiKey, BadKey};
pub use keys::{Keys, Refused, Wanted, create_key};
