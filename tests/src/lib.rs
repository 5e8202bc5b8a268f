//! What the tests share: a private database, vhost and real processes for each test, and their removal afterwards.
//!
//! A test under `tests/` keeps one promise and is named as the sentence that it proves. It starts from a [`Fleet`], or
//! from a [`Database`] alone if the promise is about SQL only. These belong to one test: tests run side by side, and no
//! test sees what another one breaks. Everything is removed when the test ends, even after a panic; in that case every
//! process's log is printed first.
//! Only the template of the databases stays on the server (`database/template.rs`).
//!
//! A test waits for events: a line in a log ([`Worker::said`]), the end of a process ([`Worker::exit`]). The ledger
//! does not announce its changes, so tests poll it ([`until`]), with a deadline.
//!
//! The services come from `AMQP_URL`, `RABBITMQ_MANAGEMENT_URL` and `DATABASE_URL`, Kubernetes' programs from
//! `KUBEBUILDER_ASSETS`. A test that lacks one fails and says how to get it; no test is ever skipped.

mod services;
pub mod http;
mod database;
mod vhost;
mod proxy;
mod authority;
mod keeper;
mod clock;
mod pooler;
mod own_broker;
mod own_postgres;
mod guarded_postgres;
pub mod usage;
mod worker;
mod fleet;
mod processes;
mod python;
pub mod provider;
mod runs;
mod started;
mod api;
mod event_stream;
mod collector;
mod cluster;
mod node;
pub mod model;
pub mod money;
pub mod replay;

use std::fmt::Debug;
use std::time::Duration;

use job::{JobSpec, Json};
use tokio::time::Instant;

pub use api::{Api, Reply};
pub use authority::{Authority, ServerCertificate, TlsFront};
pub use clock::SetClock;
pub use cluster::{Cluster, Namespace, PodState};
pub use collector::{Collector, SeenSpan};
pub use database::Database;
pub use event_stream::{EventStream, ServerEvent};
pub use fleet::{Fleet, Ran, autoscaler_command};
pub use guarded_postgres::GuardedPostgres;
pub use node::Node;
pub use own_broker::OwnBroker;
pub use own_postgres::OwnPostgres;
pub use pooler::Pooler;
pub use processes::Processes;
pub use proxy::{Link, Proxy};
pub use python::{SDKS, python_with, python_with_pika};
pub use runs::{Runner, claimed, declare_dead, done, folded, leading, older_worker};
pub use started::{ended, terminate};
pub use vhost::{Guest, Monitor, Vhost};
pub use worker::{Launch, Worker, binary};

/// Longer than anything takes here; a test that reaches it has failed.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Polls until `look` returns something. Use it where there is no event to wait for.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    until_ok(what, async || look().await.ok_or("not there")).await
}

/// As `until`, but an error says what was seen instead; the last one is reported if the deadline passes.
pub async fn until_ok<T, E: Debug>(what: &str, look: impl AsyncFnMut() -> Result<T, E>) -> T {
    until_ok_within(TIMEOUT, what, look).await
}

/// As `until_ok`, for what takes longer than [`TIMEOUT`] on a busy machine.
pub async fn until_ok_within<T, E: Debug>(
    most: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + most;
    loop {
        let meanwhile = match look().await {
            Ok(seen) => return seen,
            Err(meanwhile) => meanwhile,
        };
        assert!(Instant::now() < deadline, "not within {} s: {what}: {meanwhile:?}", most.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether this process is root, and may give itself and its files to others.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A job of the session `s-N` with this many iterations that take this long each.
pub fn steps(session: usize, count: u32, delay_ms: u64) -> JobSpec {
    job(&format!("s-{session}"), "scripted", serde_json::json!({"count": count, "delay_ms": delay_ms}))
}

/// A job with a new id, and with retries that do not delay a test.
pub fn job(session: &str, agent: &str, input: serde_json::Value) -> JobSpec {
    let name = |text: &str| text.parse().expect("a name");
    let mut spec = JobSpec::new(name(session), name(agent), Json::from_value(&input).expect("storable JSON"));
    spec.retry.base_delay_ms = 10;
    spec
}
