//! A client of the HTTP API: submit jobs, wait for them, follow them, read what became of them. It needs neither
//! Postgres nor RabbitMQ.
//!
//! ```no_run
//! use harness_fleet::{Client, JobSpec, Json};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let fleet = Client::new("https://fleet.example.com", Some("hfk_…"))?;
//! let spec = JobSpec::new("hello".parse()?, "echo".parse()?, Json::parse(r#"{"any": "json"}"#)?);
//! fleet.submit(&spec).await?;
//! let job = fleet.wait(spec.job_id, None).await?;
//! println!("{}: {:?}", job.state, job.output);
//! # Ok(())
//! # }
//! ```
//!
//! **Retries.** A [`JobSpec`] has its job's id before the first try. So a try whose answer was lost can be repeated:
//! the same job under the same id is accepted once. Connections that fail and answers that ask to come back (408, 429,
//! 502, 503, 504) are tried again for a minute ([`Client::retrying_for`]), with growing, jittered pauses that are never
//! shorter than `Retry-After`.
//!
//! A call that is dropped is not tried again; whether it has reached the fleet is not known. Redirects are not
//! followed, proxies are not used, and the key is sent in a header alone.

mod address;
mod tries;
mod send;
mod error;
mod view;
mod client;
mod batch;
mod lists;
mod schedules;
mod follow;

pub use address::BadAddress;
pub use batch::{Answer, Batch};
pub use client::Client;
pub use error::{Error, Problem};
pub use follow::{Event, Followed, IterationEvent, NoteEvent, StateEvent};
pub use job::{
    FailureCode, InputAnswer, InputKind, JobId, JobSpec, JobState, Json, Label, Labels, Name, OnBusy,
    RetryPolicy, Usd,
};
pub use lists::{JobFilter, SessionFilter, SpendBy};
pub use schedules::{CatchUp, Firing, NewSchedule, Overlap, Schedule, When};
pub use view::{Failure, Job, JobEntry, Question, Session, SessionEntry, SpendEntry};
