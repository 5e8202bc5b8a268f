//! The worker: takes a job when a slot is free, claims it in the ledger, runs its harness, records its end.
//!
//! ```text
//! slot:  intake ──▶ claim ──▶ execute, or refuse ──▶ conclude ──▶ reply, ack, and the slot is free
//!                     ▲                                 │
//!                     └─────── the session's next ──────┘
//! heartbeat: one lease for all jobs that run here; stops the runs that the ledger has taken from us or wants stopped
//! ```
//!
//! Only what is in the ledger outlives the process, so a worker may be killed at any moment.

// What the process is started with.
mod settings;
mod agents;

// What its slots share.
mod calls;
mod metrics;
mod running;
mod machine;
mod memory;
mod throughput;
mod mark;
mod lease;
mod worker;

// The heartbeat, and what it finds asked of this worker and of its jobs.
mod asked;
mod heartbeat;

// The pipeline of a slot. `attempt`, `fold`, `journal`, `parts` and `streaming` are what its steps work with; `turn` and `slot` drive it.
mod intake;
mod input;
mod claim;
mod attempt;
mod fold;
mod journal;
mod parts;
mod streaming;
mod refusal;
mod execute;
mod conclude;
mod turn;
mod slot;

// The process: boot, serve, drain.
mod serve;

// One job on the terminal, without any of these but the agents and the gateway.
mod once;

pub use serve::serve;
pub use settings::{Args, Checked, Settings};
