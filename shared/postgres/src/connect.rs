//! Opens one connection, on the first server that grants one.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, Error, NoTls};
use tracing::debug;

use crate::address::{Address, Server};
use crate::error::{Refusal, explain, refusal};
use crate::settings::{SetBy, set_for_session};
use crate::socket::{in_time, offers_tls, tcp, unix};

/// If there is no connection after this time, the next server is tried as well. With this value, several unreachable
/// servers together cost less time than a heartbeat may take.
const NEXT_AFTER: Duration = Duration::from_millis(400);

/// How long a close waits for the answer to the last query.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection, and the task that reads from it. The task ends with the last query.
pub struct Session {
    /// Sends the queries.
    pub client: Client,
    reader: JoinHandle<()>,
}

impl Session {
    fn by<S, T>((client, connection): (Client, Connection<S, T>)) -> Session
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: TlsStream + Unpin + Send + 'static,
    {
        Session { client, reader: tokio::spawn(read(connection)) }
    }

    /// Closes the connection in order, and waits until Postgres is notified. If a query is open, waits for a limited
    /// time.
    pub async fn close(mut self) {
        drop(self.client);
        if timeout(GOODBYE, &mut self.reader).await.is_err() {
            self.reader.abort();
        }
    }

    /// Returns the parts, for a pool that ends the task itself.
    pub fn into_parts(self) -> (Client, JoinHandle<()>) {
        (self.client, self.reader)
    }
}

/// Opens a connection with our settings, on the first server that grants one. The servers are tried in their order. One
/// that is silent, or whose name cannot be resolved, does not delay the next one. The caller sets the timeout.
pub async fn connect(address: &Address) -> Result<Session, Error> {
    let random = address.config.get_load_balance_hosts() == LoadBalanceHosts::Random;
    let mut turns: VecDeque<Turn> = address.servers.iter().map(Turn::LookUp).collect();
    if random {
        fastrand::shuffle(turns.make_contiguous());
    }
    let mut trying = FuturesUnordered::new();
    let mut worst: Option<Error> = None;
    loop {
        let more = turns.pop_front().map(|turn| trying.push(take(address, turn))).is_some();
        let tried = tokio::select! {
            Some(tried) = trying.next() => tried,
            () = sleep(NEXT_AFTER), if more => continue,
            else => break,
        };
        match tried {
            Ok(Tried::Opened(session)) => return Ok(session),
            Ok(Tried::Found(mut places)) => {
                if random {
                    fastrand::shuffle(&mut places);
                }
                places.into_iter().rev().for_each(|place| turns.push_front(place));
            }
            // Another server may still grant a connection. This one's refusal only came sooner.
            Err(error) if !is_final(&error) || !trying.is_empty() => {
                if worst.as_ref().is_none_or(|worst| weight(address, worst) < weight(address, &error)) {
                    worst = Some(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(worst.expect("an address has a server, and a name that is found has a place"))
}

/// The next step for a server. A name is looked up when its turn comes.
enum Turn<'a> {
    LookUp(&'a Server),
    Open(&'a Server, Place<'a>),
}

/// Where a server listens.
enum Place<'a> {
    Ip(IpAddr),
    /// The folder of its Unix socket.
    Folder(&'a Path),
}

enum Tried<'a> {
    Found(Vec<Turn<'a>>),
    Opened(Session),
}

async fn take<'a>(address: &Address, turn: Turn<'a>) -> Result<Tried<'a>, Error> {
    match turn {
        Turn::LookUp(server) => match look_up(address, server).await {
            Ok(places) => Ok(Tried::Found(places)),
            Err(cause) => Err(driver_error(cause).await),
        },
        Turn::Open(server, place) => Ok(Tried::Opened(open(address, server, place).await?)),
    }
}

async fn look_up<'a>(address: &Address, server: &'a Server) -> io::Result<Vec<Turn<'a>>> {
    let places: Vec<Place> = match (&server.host, server.address) {
        (_, Some(known)) => vec![Place::Ip(known)],
        (Some(Host::Tcp(name)), None) => {
            let found = in_time(lookup_host((name.as_str(), server.port)), &address.config).await?;
            found.map(|found| Place::Ip(found.ip())).collect()
        }
        (Some(Host::Unix(folder)), None) => vec![Place::Folder(folder)],
        (None, None) => Vec::new(),
    };
    if places.is_empty() {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(places.into_iter().map(|place| Turn::Open(server, place)).collect())
    }
}

/// Whether every server would answer this: the account is refused (class 28), or the database does not exist.
fn is_final(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("28") || *code == SqlState::INVALID_CATALOG_NAME)
}

/// Ranks the errors of several servers; the greatest is reported. First come errors that waiting does not cure, then
/// what a primary answers (it may have no connection left), then that a server is a standby, and last that one is
/// away.
fn weight(address: &Address, error: &Error) -> (bool, bool, bool) {
    let is_standby = matches!(refusal(error), Some(Refusal::Standby));
    (!explain(address, error).1, error.as_db_error().is_some() && !is_standby, is_standby)
}

/// Opens a connection to this place.
async fn open(address: &Address, server: &Server, place: Place<'_>) -> Result<Session, Error> {
    let mut config = address.config.clone();
    let session = match place {
        Place::Folder(folder) => {
            let socket = or_driver_error(unix(folder, server.port, &config)).await?;
            Session::by(config.ssl_mode(SslMode::Disable).connect_raw(socket, NoTls).await?)
        }
        Place::Ip(ip) => {
            let mut socket = or_driver_error(tcp(ip, server.port, &config)).await?;
            match address.tls.clone() {
                Some(mut tls) if or_driver_error(speaks_tls(&mut socket, &config)).await? => {
                    let name = match &server.host {
                        Some(Host::Tcp(name)) => name.as_str(),
                        _ => "",
                    };
                    let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls, name);
                    // The server has already agreed to TLS.
                    config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
                    Session::by(config.connect_raw(socket, tls).await?)
                }
                _ => Session::by(config.ssl_mode(SslMode::Disable).connect_raw(socket, NoTls).await?),
            }
        }
    };
    if let Some(refusal) = misfit(address, &session.client).await? {
        return Err(driver_error(io::Error::other(refusal)).await);
    }
    if address.set_by == SetBy::Connection {
        set_for_session(&session.client).await?;
    }
    Ok(session)
}

/// Whether TLS begins now. Returns an error if TLS is required and not offered.
async fn speaks_tls(socket: &mut TcpStream, config: &Config) -> io::Result<bool> {
    if config.get_ssl_negotiation() == SslNegotiation::Direct || offers_tls(socket).await? {
        return Ok(true);
    }
    match config.get_ssl_mode() {
        SslMode::Require => Err(io::Error::other(Refusal::NoTls)),
        _ => Ok(false),
    }
}

/// Returns why `target_session_attrs` rules this server out, if it does.
async fn misfit(address: &Address, client: &Client) -> Result<Option<Refusal>, Error> {
    let one = async |sql| Ok::<_, Error>(client.query_typed(sql, &[]).await?.remove(0));
    if address.primary && one("SELECT pg_catalog.pg_is_in_recovery()").await?.get(0) {
        return Ok(Some(Refusal::Standby));
    }
    let read_only = address.config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly;
    if read_only && one("SHOW transaction_read_only").await?.get::<_, &str>(0) == "off" {
        return Ok(Some(Refusal::TakesWrites));
    }
    Ok(None)
}

async fn or_driver_error<T>(doing: impl Future<Output = io::Result<T>>) -> Result<T, Error> {
    match doing.await {
        Ok(done) => Ok(done),
        Err(cause) => Err(driver_error(cause).await),
    }
}

/// Returns the cause as an error of the driver's type, which a connection pool expects. Only the driver can make one,
/// so it is made to read from a stream that fails.
async fn driver_error(cause: io::Error) -> Error {
    let unreadable = tokio::io::join(Unreadable(Some(cause)), tokio::io::sink());
    match Config::new().user("-").ssl_mode(SslMode::Disable).connect_raw(unreadable, NoTls).await {
        Err(error) => error,
        Ok(_) => unreachable!("nothing answers there"),
    }
}

struct Unreadable(Option<io::Error>);

impl AsyncRead for Unreadable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.take().map_or(Ok(()), Err))
    }
}

/// Reads until the connection ends. The client learns of the end by itself.
async fn read(connection: impl Future<Output = Result<(), Error>>) {
    if let Err(cause) = connection.await {
        let cause: &dyn std::error::Error = &cause;
        debug!(cause, "a connection to Postgres has ended");
    }
}
