//! The port of the API: TCP, TLS where a certificate is named, bounds in time, and an end in good order.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use socket2::SockRef;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connections::Bounded;
use super::protocol::Looking;

/// How long the first request of a connection may take to arrive.
const FIRST_HEAD_WITHIN: Duration = Duration::from_secs(15);
/// The same for those behind it, and so how long a connection may lie idle: longer than the proxies that keep theirs
/// open for 60 s (nginx, load balancers), which would otherwise send a request into a connection that is being
/// closed.
const HEAD_WITHIN: Duration = Duration::from_secs(75);
/// How long a client may take nothing of what it is sent: one that reads no more would otherwise hold its connection, and
/// what waits for it, for ever.
const TAKEN_WITHIN: Duration = Duration::from_secs(15);
/// The most bytes of a request's line and headers; with more the answer is 431. What arrives at once may be up to twice as
/// much, because the buffer grows in doubles.
const HEAD_BYTES: usize = 64 << 10;
/// Requests that run at a time on one connection (HTTP/2).
const STREAMS: u32 = 256;
/// How long requests may take when the process is asked to stop.
pub const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// How often the certificate's files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The files of a certificate (PEM): the chain, and its key.
#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Tls {
    async fn read(&self) -> anyhow::Result<RustlsConfig> {
        let Tls { certificate, key } = self;
        RustlsConfig::from_pem_file(certificate, key).await.with_context(|| {
            format!("reading API_TLS_CERT {} and API_TLS_KEY {}", certificate.display(), key.display())
        })
    }

    /// When the files were changed; nothing where one is missing.
    fn changed_at(&self) -> Option<[SystemTime; 2]> {
        let at = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        Some([at(&self.certificate)?, at(&self.key)?])
    }

    /// Takes changed files, such as a renewed certificate; connections that are open keep theirs.
    async fn renew(&self, config: &RustlsConfig) {
        let (mut looks, mut read_at) = (interval(LOOK_AGAIN), self.changed_at());
        loop {
            looks.tick().await;
            let changed = self.changed_at();
            if changed.is_none() || changed == read_at {
                continue;
            }
            match config.reload_from_pem_file(&self.certificate, &self.key).await {
                Ok(()) => info!("the certificate of the API was changed and is in use"),
                // A chain and a key that do not belong together yet: one of them is about to be written.
                Err(cause) => {
                    warn!(%cause, "the changed certificate of the API cannot be used, the one before stays")
                }
            }
            read_at = changed;
        }
    }
}

/// A bound port.
pub struct Server {
    listener: std::net::TcpListener,
    tls: Option<(Tls, RustlsConfig)>,
    connections: Bounded,
}

impl Server {
    /// Binds the port; callers wait until it is served.
    pub async fn bind(address: SocketAddr, tls: Option<Tls>, connections: Bounded) -> anyhow::Result<Server> {
        let tls = match tls {
            Some(tls) => {
                let config = tls.read().await?;
                Some((tls, config))
            }
            None => None,
        };
        let listener = std::net::TcpListener::bind(address)
            .with_context(|| format!("binding the API's port {address} (set API_ADDR to another one)"))?;
        // Connections have it from the listener.
        SockRef::from(&listener)
            .set_tcp_user_timeout(Some(TAKEN_WITHIN))
            .context("setting the timeout of connections")?;
        Ok(Server { listener, tls, connections })
    }

    /// Where it is bound, with the port that was taken.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled. From then on no connection is taken, and requests under way have some seconds.
    pub async fn serve(self, routes: Router, stop: CancellationToken) -> anyhow::Result<()> {
        let Server { listener, tls, connections } = self;
        let handle = Handle::new();
        let mut server =
            axum_server::from_tcp(listener)?.handle(handle.clone()).first_request_timeout(FIRST_HEAD_WITHIN);
        // Without writev an idle stream keeps no list of what is to be written.
        server.http_builder().http1().header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES).writev(false);
        let http2 = &mut server.http_builder().http2();
        http2.keep_alive_interval(HEAD_WITHIN).max_concurrent_streams(STREAMS);
        http2.max_header_list_size(HEAD_BYTES as u32);
        let service = routes.into_make_service_with_connect_info::<SocketAddr>();
        let serving = async {
            match &tls {
                Some((files, config)) => {
                    let tls = RustlsAcceptor::new(config.clone()).acceptor(connections);
                    tokio::select! {
                        served = server.acceptor(Looking(tls)).serve(service) => served,
                        () = files.renew(config) => Ok(()),
                    }
                }
                None => server.acceptor(Looking(connections)).serve(service).await,
            }
        };
        // The server itself closes the connections that are still open when the time is over.
        let stopping = async {
            stop.cancelled().await;
            handle.graceful_shutdown(Some(LAST_ANSWERS));
            pending::<Infallible>().await
        };
        let served = tokio::select! {
            served = serving => served,
            never = stopping => match never {},
        };
        served.context("serving the API")
    }
}
