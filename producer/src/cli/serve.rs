//! `producer serve`: the HTTP API.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use migrations::SchemaError;
use serde_json::json;
use service::{AdminArgs, Check, Lifecycle, ListenAddress, Setting, retry_or_stop};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::context::Context;
use super::door::DoorArgs;
use super::webhooks::WebhookAllow;
use crate::access::{Keys, Limits, Rates};
use crate::backlog::Backlog;
use crate::following::Following;
use crate::http::{
    Answers, Auth, Batches, Bodies, Bounded, Door, Followers, Server, SignIns, Tickets, Tls, Trying, router,
};
use crate::publishing::Publishing;
use crate::pulse::Pulse;
use crate::served::Served;
use crate::webhooks::{Outbound, Sending};

/// The usual port.
const PORT: u16 = 8_080;
/// How long replies that are on their way may take after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Serve the HTTP API until SIGTERM: submit jobs, follow them, cancel them, read their results
///
/// The routes are listed at /docs, and at /v1/openapi.json for programs. A job is accepted when it is in Postgres;
/// RabbitMQ may be away meanwhile.
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    admin: AdminArgs,
    /// Where the API is served; 127.0.0.1:8080 in development and 0.0.0.0:8080 elsewhere when not set; port 0 takes a
    /// free one
    #[arg(long, env = "API_ADDR")]
    api_addr: Option<Setting<ListenAddress>>,
    /// The certificate of the API with its chain (PEM); without one it is served without TLS. It is read again when
    /// it changes
    #[arg(long, env = "API_TLS_CERT")]
    api_tls_cert: Option<PathBuf>,
    /// The file of the certificate's key (PEM)
    #[arg(long, env = "API_TLS_KEY", hide_env_values = true)]
    api_tls_key: Option<PathBuf>,
    #[command(flatten)]
    door: DoorArgs,
    #[command(flatten)]
    webhooks: WebhookAllow,
}

impl Serve {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let problems = &mut context.problems;
        let admin = self.admin.check(problems);
        let environment = context.common.environment.clone();
        let address = match self.api_addr {
            Some(given) => problems.take("API_ADDR", given).map(|ListenAddress(address)| address),
            None => Some(usual_address(&environment)),
        };
        let tls = match (self.api_tls_cert, self.api_tls_key) {
            (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                problems.add("API_TLS_KEY", "not set, expected the file of the key of API_TLS_CERT");
                None
            }
            (None, Some(_)) => {
                problems.add("API_TLS_CERT", "not set, expected the file of the certificate of API_TLS_KEY");
                None
            }
        };
        let bounds = self.door.check(problems);
        let allowed = self.webhooks.check(problems);
        let authorities = context.common.authorities(problems);
        let (ledger, config) = context.ledger_and_broker("producer serve")?;
        // What is wrong with them is among the problems that end this above.
        let admin = admin.context("reading ADMIN_ADDR")?;
        let address = address.context("reading API_ADDR")?;
        let bounds = bounds.context("reading the bounds of the API")?;
        let allowed = allowed.context("reading WEBHOOK_ALLOW")?;
        let authorities = authorities.context("reading TLS_CA_FILE")?;
        let outbound = Arc::new(Outbound::new(allowed, authorities));
        let connections =
            Bounded::new(bounds.connections, bounds.connections_per_address, bounds.trusted_proxies.clone());
        let server = Server::bind(address, tls, connections).await?;
        let dispatch = ledger.beside(&config);
        let (pulse, publishing) = (Pulse::new(), dispatch.broker.clone());
        let felt = pulse.clone();
        let readiness = Arc::new(move || {
            BTreeMap::from([
                ("database_connected", Check::unless(felt.trouble())),
                // Jobs are accepted without it.
                (
                    "broker",
                    Check::Info(json!(publishing.held_up().unwrap_or_else(|| "connected".to_owned()))),
                ),
            ])
        });
        let mut lifecycle = Lifecycle::default();
        lifecycle.open(&admin, readiness).await?;
        let (stop, bound) = (context.stop.clone(), server.address()?);
        let (handed_over, publisher) = Publishing::new(dispatch.clone());
        let listener = dispatch.broker.listener();
        let (following, begun) = (Following::new(listener.shards()), TaskTracker::new());
        let keys = Arc::new(Keys::new(ledger.store.clone()));
        let backlog = Arc::new(Backlog::new(ledger.store.clone(), bounds.unfinished_jobs));
        let door = Arc::new(Door {
            dispatch: dispatch.clone(),
            auth: Auth::of(&environment, bound.ip()),
            keys: keys.clone(),
            sign_ins: SignIns::new(bounds.sign_in_failures),
            proxies: bounds.trusted_proxies,
            max_bytes: ledger.max_message_bytes,
            retention: ledger.retention,
            replies: ledger.replies.clone(),
            pulse: pulse.clone(),
            publishing: handed_over,
            following: following.clone(),
            answer_within: bounds.answer_within,
            served: Served::default(),
            batches: Batches::default(),
            followers: Followers::new(
                bounds.followers,
                bounds.followers_per_tenant,
                bounds.followers_per_caller,
            ),
            bodies: Bodies::new(bounds.body_bytes),
            answers: Answers::new(bounds.body_bytes),
            tickets: Tickets::default(),
            begun: begun.clone(),
            limits_of: Limits::new(ledger.store.clone()),
            rates: Rates::new(ledger.store.clone()),
            backlog: backlog.clone(),
            outbound: outbound.clone(),
            trying: Trying::default(),
            stop: stop.clone(),
        });
        let store = ledger.store.clone();
        lifecycle.spawn("publishing", |end| publisher.run(end));
        let clock = pulse.clone();
        let followed = following.clone();
        lifecycle.spawn("following", |end| following.run(store, clock, listener, end));
        lifecycle.spawn("backlog", |end| async move { backlog.keep(end).await });
        lifecycle.spawn("uses of keys", |end| async move {
            keys.keep_uses(&format!("serve {bound}"), &end).await
        });
        // Served from the start: until Postgres has answered, requests have their 503.
        let answered = CancellationToken::new();
        let (all_answered, serving) =
            (answered.clone().drop_guard(), server.serve(router(door, &bounds.origins), stop.clone()));
        lifecycle.fail_by("API", async move {
            let served = serving.await;
            drop(all_answered);
            match served {
                Err(error) => error,
                Ok(()) => pending().await,
            }
        });
        // Postgres need not be there first: an API that gave up would have to be started again.
        let schema = || migrations::check(&ledger.address);
        let what = "reading the schema from Postgres";
        if retry_or_stop(what, &stop, SchemaError::is_retryable, schema).await?.is_none() {
            info!("stopped before it was ready");
            return Ok(ExitCode::SUCCESS);
        }
        let store = ledger.store.clone();
        lifecycle.spawn("pulse", |end| pulse.keep(store, end));
        let sending = Sending::new(ledger.store.clone(), outbound);
        lifecycle.spawn("webhooks", |end| sending.run(end));
        info!(address = %bound, "takes jobs over HTTP");
        let result = lifecycle.until(&stop).await;
        followed.stop();
        // What they need outlasts the last answers.
        answered.cancelled().await;
        begun.close();
        let _ = timeout(SHUTDOWN, begun.wait()).await;
        lifecycle.finish().await;
        dispatch.close(SHUTDOWN).await;
        result
    }
}

/// On a developer's machine the API is for that machine alone.
fn usual_address(environment: &str) -> SocketAddr {
    let ip = if environment == "development" { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    SocketAddr::new(IpAddr::V4(ip), PORT)
}
