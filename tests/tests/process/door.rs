//! `producer serve`: what an upstream service is promised over HTTP.

mod jobs;
mod idempotency;
mod events;
mod limits;
mod shares;
mod sign_ins;
mod connections;
mod bad_input;
mod batch;
mod upload;
mod stopping;
mod guide;
mod lists;
mod labels;
mod max_cost;
mod spend;
mod removal;
mod port;
mod tenants;
mod scopes;
mod revoked;
mod outages;
mod webhooks;
