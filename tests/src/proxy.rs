//! A network that fails on demand: a TCP proxy between a worker and a service.
//!
//! It passes bytes on, or cuts (every connection is reset, new ones are refused with a reset), or freezes one direction
//! or both: bytes are taken and go nowhere, and no end is told, as behind a firewall that has forgotten a connection.
//! What a connection has lost in a frozen time is gone for good, so it ends with the freeze, by a reset. It can also forget
//! the connections that there are, while new ones work. And it can be a long way: all that passes arrives later.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// All arrives.
    Pass,
    /// Every connection is reset, and new ones are, too.
    Cut,
    /// Nothing arrives anywhere.
    Frozen,
    /// What the worker says arrives; the answers do not.
    RepliesLost,
}

/// A proxy; it ends with this.
pub struct Proxy {
    address: SocketAddr,
    /// The last one counts for new connections; the others for those that were kept or forgotten, and stay as they are.
    links: Arc<Mutex<Vec<watch::Sender<Link>>>>,
    accepted: Arc<Notify>,
    _serving: AbortOnDropHandle<()>,
}

impl Proxy {
    /// A proxy for the service of this URL; everything passes.
    pub async fn to(url: &str) -> Proxy {
        Proxy::far_from(url, Duration::ZERO).await
    }

    /// The same at the end of a long link, which takes so long each way.
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

    /// The same URL, leading through here.
    pub fn through(&self, url: &str) -> String {
        url.replacen(authority(url), &self.address.to_string(), 1)
    }

    /// From now on the network is like this.
    pub fn set(&self, link: Link) {
        self.links.lock().expect("no panic").last().expect("a link").send_replace(link);
    }

    /// Waits for a connection, if there was none since this was last asked.
    pub async fn connected(&self) {
        self.accepted.notified().await;
    }

    /// The present connections stay as they are, whatever becomes of new ones.
    pub fn keep(&self) {
        let mut links = self.links.lock().expect("no panic");
        let present = *links.last().expect("a link").borrow();
        links.push(watch::Sender::new(present));
    }

    /// Forgets the present connections, as a firewall does: nothing of theirs arrives any more, and no end is told. New
    /// ones are like before.
    pub fn forget(&self) {
        let mut links = self.links.lock().expect("no panic");
        let mut before = Link::Frozen;
        links.last().expect("a link").send_if_modified(|link| {
            before = std::mem::replace(link, Link::Frozen);
            // What is frozen already has no news.
            before != Link::Frozen
        });
        links.push(watch::Sender::new(before));
    }
}

/// `host:port` of a URL.
pub(crate) fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map(|(_, rest)| rest).expect("an address with a scheme");
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

async fn serve(client: TcpStream, target: String, mut state: watch::Receiver<Link>, way: Duration) {
    let link = *state.borrow_and_update();
    let server = match link {
        Link::Cut => return reset(&client),
        // Accepted, and then nothing: an established connection is a reply, too.
        Link::Frozen | Link::RepliesLost => {
            let _ = state.changed().await;
            return reset(&client);
        }
        Link::Pass => TcpStream::connect(&target).await,
    };
    // The service is down: the worker sees as much.
    let Ok(server) = server else { return reset(&client) };
    // The handshake.
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
        // Whatever ends the connection ends it for both; dropped halves reset.
        () = over(state) => {}
    }
}

/// Makes the end of this connection a reset.
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
    // Both have ended, or nothing can be written any more.
    if tokio::try_join!(over, arriving).is_err() {
        return;
    }
    // The other side does not learn of the end either.
    if swallows(*link.borrow()) {
        std::future::pending::<()>().await;
    }
}

/// Resolves when a connection cannot go on: at a cut, and at the end of a freeze.
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
