//! A network that fails on demand: a TCP proxy between a worker and a service.
//!
//! It can pass bytes on. It can cut: every connection is reset, and new ones are refused with a reset. It can freeze
//! one direction or both: bytes are accepted and dropped, and no end is signalled, as behind a firewall that has
//! forgotten a connection. What a connection loses during a freeze is gone for good, so the connection is reset at the
//! end of the freeze. It can forget the existing connections while new ones work. And it can be a long link, on which
//! everything arrives later.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// The fate of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// Everything arrives.
    Pass,
    /// Every connection is reset, including new ones.
    Cut,
    /// Nothing arrives in either direction.
    Frozen,
    /// What the worker sends arrives; the answers do not.
    RepliesLost,
}

/// A proxy; it stops when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    /// The last link applies to new connections; the others apply to connections that were kept or forgotten, and do
    /// not change.
    links: Arc<Mutex<Vec<watch::Sender<Link>>>>,
    accepted: Arc<Notify>,
    _serving: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Starts a proxy for the service of this URL; everything passes.
    pub async fn to(url: &str) -> Proxy {
        Proxy::far_from(url, Duration::ZERO).await
    }

    /// As `to`, but at the end of a long link that takes this long each way.
    pub async fn far_from(url: &str, way: Duration) -> Proxy {
        let target = authority(url).to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a port");
        let links = Arc::new(Mutex::new(vec![watch::Sender::new(Link::Pass)]));
        let present = links.clone();
        let accepted = Arc::new(Notify::new());
        let accepts = accepted.clone();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                accepts.notify_one();
                let state = present.lock().expect("no panic").last().expect("a link").subscribe();
                tokio::spawn(serve(client, target.clone(), state, way));
            }
        });
        Proxy { address, links, accepted, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Returns the same URL, but through the proxy.
    pub fn through(&self, url: &str) -> String {
        url.replacen(authority(url), &self.address.to_string(), 1)
    }

    /// Sets the state of the network.
    pub fn set(&self, link: Link) {
        self.links.lock().expect("no panic").last().expect("a link").send_replace(link);
    }

    /// Waits for a connection, unless there was one since the last call.
    pub async fn connected(&self) {
        self.accepted.notified().await;
    }

    /// Keeps the present connections as they are, whatever becomes of new ones.
    pub fn keep(&self) {
        let mut links = self.links.lock().expect("no panic");
        let present = *links.last().expect("a link").borrow();
        links.push(watch::Sender::new(present));
    }

    /// Forgets the present connections as a firewall does: none of their bytes arrive any more, and no end is
    /// signalled. New connections are not affected.
    pub fn forget(&self) {
        let mut links = self.links.lock().expect("no panic");
        let mut before = Link::Frozen;
        links.last().expect("a link").send_if_modified(|link| {
            before = std::mem::replace(link, Link::Frozen);
            // A frozen link must not see a change.
            before != Link::Frozen
        });
        links.push(watch::Sender::new(before));
    }
}

/// Returns the `host:port` of a URL.
pub(crate) fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map(|(_, rest)| rest).expect("an address with a scheme");
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

async fn serve(client: TcpStream, target: String, mut state: watch::Receiver<Link>, way: Duration) {
    let link = *state.borrow_and_update();
    let server = match link {
        Link::Cut => return reset(&client),
        // Does not connect to the service, because an established connection would be a reply too.
        Link::Frozen | Link::RepliesLost => {
            let _ = state.changed().await;
            return reset(&client);
        }
        Link::Pass => TcpStream::connect(&target).await,
    };
    // The service is down, and the worker sees that.
    let Ok(server) = server else { return reset(&client) };
    // The round trip of the handshake.
    sleep(2 * way).await;
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    for stream in [&client, &server] {
        reset(stream);
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (up, down) = (state.clone(), state.clone());
    tokio::select! {
        () = pump(from_client, to_server, &up, way, |link| link == Link::Frozen) => {}
        () = pump(from_server, to_client, &down, way, |link| link != Link::Pass) => {}
        // Whatever ends one direction ends both; dropped halves reset the connection.
        () = over(state) => {}
    }
}

/// Makes this connection end with a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    link: &watch::Receiver<Link>,
    way: Duration,
    swallows: impl Fn(Link) -> bool,
) {
    let (on_its_way, mut arriving) = mpsc::channel(64);
    let leaving = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            if on_its_way.send((Instant::now() + way, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let arriving = async {
        while let Some((due, bytes)) = arriving.recv().await {
            sleep_until(due).await;
            if !swallows(*link.borrow()) && to.write_all(&bytes).await.is_err() {
                return Err(());
            }
        }
        Ok(())
    };
    let over = async {
        leaving.await;
        Ok(())
    };
    // Both directions have ended, or nothing can be written any more.
    if tokio::try_join!(over, arriving).is_err() {
        return;
    }
    // The other side does not learn of the end either.
    if swallows(*link.borrow()) {
        std::future::pending::<()>().await;
    }
}

/// Resolves when a connection cannot continue: at a cut, and at the end of a freeze.
async fn over(mut state: watch::Receiver<Link>) {
    let mut before = Link::Pass;
    loop {
        if state.changed().await.is_err() {
            return;
        }
        let now = *state.borrow_and_update();
        if now == Link::Cut || (now == Link::Pass && before != Link::Pass) {
            return;
        }
        before = now;
    }
}
