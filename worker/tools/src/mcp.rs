//! MCP servers: how they are started and reached, what they offer, and what their answers become. This module knows the
//! protocol by the crate `rmcp` alone.

mod pipes;
mod http;
mod settings;
mod server;
mod offer;
mod answer;
mod arguments;

pub(crate) use offer::{Offer, Offered, difference, offered};
pub(crate) use server::{Server, ServerError};
pub(crate) use settings::ServerSettings;

/// What names a call for a server, in its `_meta`.
pub(crate) const CALL_KEY: &str = "harness/callKey";
