//! Tools as an agent has them: real programs, real files.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod support;
mod commands;
mod files;
mod servers;
mod server_faults;
mod http_servers;
mod schemas;
