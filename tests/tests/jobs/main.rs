//! What is promised about jobs and their sessions: each file tests one promise against a real ledger and a real broker.

mod accepted_means_recorded_end;
mod one_writer;
mod resume_anywhere;
mod retries;
mod rescue;
mod busy_sessions;
mod cancel;
mod bad_input;
mod dead_letters;
mod neighbours;
mod amqp_contract;
mod examples;
mod any_interleaving;
mod protocol_model;
mod protocol_conformance;
mod schema;
mod taken_keys;
mod taken_keys_model;
mod labels;
mod partitions;
mod tenants;
mod forged;
mod acceptance;
mod migrating;
mod audit;
