//! The admin port: `/health` (the process answers), `/ready` (it can do its work), `/metrics` (Prometheus).
//!
//! `/health` depends on nothing else, because an unreachable database must not get the process killed. `/ready` reads
//! what the process already knows.
//!
//! A client may ask one question per connection, within a time limit. The number of connections is limited, too: when
//! it is reached, a new connection replaces the oldest one. So clients that ask nothing, or never read the answer,
//! cannot keep others from being answered.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, IntGaugeVec, Opts, TextEncoder};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{ListenAddress, Problems, Setting};

/// The most connections at a time.
pub(crate) const CONNECTIONS: usize = 64;
/// The time limit of a connection, from its beginning to the end of its answer.
const WHOLE: Duration = Duration::from_secs(10);
/// How long requests that are open when the process ends may still be answered.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// How long to wait when no connection can be accepted, because this process has too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The flags for the admin port, which every process that serves has.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// Where /health, /ready and /metrics are served; port 0 takes a free one
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:8000")]
    admin_addr: Setting<ListenAddress>,
    /// A file to write that address to once the port is open, for a caller that chose port 0
    #[arg(long, env = "ADMIN_ADDR_TO")]
    admin_addr_to: Option<PathBuf>,
}

impl AdminArgs {
    /// Takes the address, or notes what is wrong with it.
    pub fn check(self, problems: &mut Problems) -> Option<AdminAddress> {
        let ListenAddress(address) = problems.take("ADMIN_ADDR", self.admin_addr)?;
        Some(AdminAddress { address, written_to: self.admin_addr_to })
    }
}

/// The address of the admin port, before it is bound.
#[derive(Clone, Debug)]
pub struct AdminAddress {
    address: SocketAddr,
    written_to: Option<PathBuf>,
}

impl From<SocketAddr> for AdminAddress {
    fn from(address: SocketAddr) -> Self {
        AdminAddress { address, written_to: None }
    }
}

/// One line of `/ready`.
#[derive(Clone, Debug)]
pub enum Check {
    /// If it is false, the process is not ready. The reason says why it is false.
    Must(bool, Option<String>),
    /// For information only.
    Info(Value),
    /// For information only: whether something is well, and why it is not.
    Note(bool, Option<String>),
}

impl Check {
    /// Returns a check that is true unless there is a reason why it is not.
    pub fn unless(reason: Option<String>) -> Check {
        Check::Must(reason.is_none(), reason)
    }
}

/// The lines of `/ready` by name, such as `database_connected`.
pub type Readiness = Arc<dyn Fn() -> BTreeMap<&'static str, Check> + Send + Sync>;

/// A bound admin port.
pub(crate) struct Admin {
    listener: TcpListener,
    readiness: Readiness,
}

impl Admin {
    /// Binds the port, and writes the address into the file that was named, as a whole.
    pub async fn bind(address: &AdminAddress, readiness: Readiness) -> anyhow::Result<Admin> {
        let AdminAddress { address, written_to } = address;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("binding the admin port {address} (set ADMIN_ADDR to another one)"))?;
        let bound = listener.local_addr()?;
        tracing::info!(address = %bound, "the admin port is open: /health /ready /metrics");
        if let Some(path) = written_to {
            let fresh = path.with_added_extension("new");
            std::fs::write(&fresh, format!("{bound}\n"))
                .and_then(|()| std::fs::rename(&fresh, path))
                .with_context(|| format!("writing the admin port's address to {}", path.display()))?;
        }
        Ok(Admin { listener, readiness })
    }

    /// Returns the address where it is bound, with the actual port.
    #[cfg(test)]
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled.
    pub async fn serve(self, stop: CancellationToken) {
        let routes = Router::new()
            .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self.readiness);
        let mut connections = Connections::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.tasks.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => connections.serve(stream, routes.clone()),
                // The client is gone, or this process can open no file for it.
                Err(_) => {
                    connections.drop_oldest();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        let answering = async { while connections.tasks.join_next().await.is_some() {} };
        let _ = timeout(LAST_ANSWERS, answering).await;
    }
}

/// The connections that are being served.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    by_age: VecDeque<AbortHandle>,
}

impl Connections {
    fn serve(&mut self, stream: TcpStream, routes: Router) {
        self.by_age.retain(|connection| !connection.is_finished());
        if self.by_age.len() == CONNECTIONS {
            self.drop_oldest();
        }
        self.by_age.push_back(self.tasks.spawn(async move {
            let mut http = http1::Builder::new();
            let answering = http
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            // Timeouts and broken requests matter only to the client.
            let _ = timeout(WHOLE, answering).await;
        }));
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.by_age.pop_front() {
            oldest.abort();
        }
    }
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let checks = readiness();
    let ready = !checks.values().any(|check| matches!(check, Check::Must(false, _)));
    let mut reasons = BTreeMap::new();
    let mut lines = BTreeMap::new();
    for (name, check) in checks {
        match check {
            Check::Must(ok, reason) | Check::Note(ok, reason) => {
                if let (false, Some(reason)) = (ok, reason) {
                    reasons.insert(name, reason);
                }
                lines.insert(name, json!(ok));
            }
            Check::Info(value) => {
                lines.insert(name, value);
            }
        }
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready, "checks": lines, "reasons": reasons}))).into_response()
}

async fn metrics(State(readiness): State<Readiness>) -> Response {
    let mut text = Vec::new();
    let mut families = prometheus::gather();
    families.extend(readiness_family(&readiness()));
    match TextEncoder::new().encode(&families, &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Returns the lines of `/ready` as a metric.
fn readiness_family(checks: &BTreeMap<&'static str, Check>) -> Vec<MetricFamily> {
    let help = "1 if a check of /ready is true, else 0";
    let Ok(ready) = IntGaugeVec::new(Opts::new("harness_ready", help), &["check"]) else { return Vec::new() };
    for (name, check) in checks {
        if let Check::Must(ok, _) = check {
            ready.with_label_values(&[name]).set(i64::from(*ok));
        }
    }
    ready.collect()
}
