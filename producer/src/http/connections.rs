//! How many connections are open at a time, in all and from one address.

use std::future::{Ready, ready};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::net::TcpStream;
use tower_service::Service;

use super::client::TrustedProxies;
use super::metrics;
use super::shares::{Share, Shares};
use super::sign_ins::network;

/// Takes a connection while fewer than the bounds are open, and closes it otherwise.
#[derive(Clone)]
pub struct Bounded {
    places: Shares<IpAddr>,
    proxies: TrustedProxies,
}

impl Bounded {
    /// So many at a time, and from one address. Listed proxies have the connections of all their clients.
    pub fn new(most: usize, of_address: usize, proxies: TrustedProxies) -> Bounded {
        Bounded { places: Shares::new(most, of_address), proxies }
    }
}

impl<S> Accept<TcpStream, S> for Bounded {
    type Stream = TcpStream;
    type Service = Held<S>;
    type Future = Ready<io::Result<(TcpStream, Held<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let address = match stream.peer_addr() {
            Ok(peer) => Some(peer.ip()).filter(|ip| !self.proxies.has(*ip)).map(network),
            Err(gone) => return ready(Err(gone)),
        };
        let Ok(share) = self.places.take(address.as_ref(), 1) else {
            metrics::refused_connection();
            return ready(Err(io::Error::other("as many connections are open as may be")));
        };
        metrics::opened_connection();
        ready(Ok((stream, Held { service, _place: Arc::new(Place(share)) })))
    }
}

/// The service of a connection, which holds its place.
#[derive(Clone)]
pub struct Held<S> {
    service: S,
    _place: Arc<Place>,
}

struct Place(#[expect(dead_code, reason = "it is given back when it is dropped")] Share<IpAddr>);

impl Drop for Place {
    fn drop(&mut self) {
        metrics::closed_connection();
    }
}

impl<S: Service<R>, R> Service<R> for Held<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.service.call(request)
    }
}
