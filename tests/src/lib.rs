//! What the tests share: a database, a vhost and real processes of one's own, and a clean desk afterwards.
//!
//! A test under `tests/` keeps one promise and is named as the sentence it proves. It starts from a
//! [`Fleet`] (or from a [`Database`] alone, where the promise is one of SQL), which belongs to it and to nobody else:
//! tests run side by side, and what one breaks no other sees. All of it is gone when the test ends, also by a panic;
//! then every process's log is printed first.
//!
//! A test waits for events: a line in a log ([`Worker::said`]), the end of a process ([`Worker::exit`]). The ledger
//! tells nobody of its changes, so what stands in there is looked for again and again ([`until`]), with a deadline.
//!
//! The services come from `AMQP_URL`, `RABBITMQ_MANAGEMENT_URL` and `DATABASE_URL`, Kubernetes' programs from
//! `KUBEBUILDER_ASSETS`. A test that lacks one fails and says how to get it; none is ever skipped.

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
mod runs;
mod started;
mod collector;
mod cluster;
mod node;
pub mod model;
pub mod replay;

use std::fmt::Debug;
use std::time::Duration;

use job::{JobSpec, Json};
use tokio::time::Instant;

pub use authority::{Authority, ServerCertificate, TlsFront};
pub use clock::SetClock;
pub use cluster::{Cluster, Namespace, PodState};
pub use collector::{Collector, SeenSpan};
pub use database::Database;
pub use fleet::{Fleet, Ran, autoscaler_command};
pub use guarded_postgres::GuardedPostgres;
pub use node::Node;
pub use own_broker::OwnBroker;
pub use own_postgres::OwnPostgres;
pub use pooler::Pooler;
pub use processes::Processes;
pub use proxy::{Link, Proxy};
pub use runs::{Runner, claimed, declare_dead, done, folded, leading};
pub use started::{ended, terminate};
pub use vhost::{Guest, Monitor, Vhost};
pub use worker::{Launch, Worker};

/// Longer than anything takes here; a test that reaches it has failed.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Looks again and again, for lack of an event, until there is something to see.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    until_ok(what, async || look().await.ok_or("not there")).await
}

/// The same; an error is what there is to see meanwhile, and is told if there is never anything else.
pub async fn until_ok<T, E: Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let meanwhile = match look().await {
            Ok(seen) => return seen,
            Err(meanwhile) => meanwhile,
        };
        assert!(Instant::now() < deadline, "not within {} s: {what}: {meanwhile:?}", TIMEOUT.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether this process is root, and may give itself and its files to others.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A job of the session `s-N`, of so many iterations that take so long each.
pub fn steps(session: usize, count: u32, delay_ms: u64) -> JobSpec {
    job(&format!("s-{session}"), "scripted", serde_json::json!({"count": count, "delay_ms": delay_ms}))
}

/// A job with a fresh id, and retries that do not keep a test waiting.
pub fn job(session: &str, agent: &str, input: serde_json::Value) -> JobSpec {
    let name = |text: &str| text.parse().expect("a name");
    let mut spec = JobSpec::new(name(session), name(agent), Json::from_value(&input).expect("storable JSON"));
    spec.retry.base_delay_ms = 10;
    spec
}
