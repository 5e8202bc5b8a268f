//! One connection, by the first server that gives one.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::lookup_host;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::{Host, LoadBalanceHosts};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls};
use tracing::debug;

use crate::address::Address;
use crate::error::explain;
use crate::settings::{SetBy, set_for_session};

/// After which time without a connection the next server is tried as well. Several that are away cost less together than a
/// heartbeat may take.
const NEXT_AFTER: Duration = Duration::from_millis(400);

/// How long the answer to a last question is waited for.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection, and the task that reads from it, which ends with the last question.
pub struct Session {
    /// To ask by.
    pub client: Client,
    reader: JoinHandle<()>,
}

impl Session {
    /// Says goodbye to Postgres, and waits until that is sent; for a while, if a question is open.
    pub async fn close(mut self) {
        drop(self.client);
        if timeout(GOODBYE, &mut self.reader).await.is_err() {
            self.reader.abort();
        }
    }

    /// For a pool, which ends the task itself.
    pub fn into_parts(self) -> (Client, JoinHandle<()>) {
        (self.client, self.reader)
    }
}

/// Opens a connection that is set for our statements, by the first server that gives one: the servers are tried in their order,
/// and one that is silent does not keep the next one away. The caller bounds it.
pub async fn connect(address: &Address) -> Result<Session, Error> {
    let mut places = places(address).await.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut worst: Option<Error> = None;
    loop {
        let more = places.next().map(|place| trying.push(open(address, place))).is_some();
        let tried = tokio::select! {
            Some(tried) = trying.next() => tried,
            () = sleep(NEXT_AFTER), if more => continue,
            else => break,
        };
        match tried {
            // Another server may still let us in, before the answer of which this one is only faster.
            Err(error) if !is_final(&error) || !trying.is_empty() => {
                if worst.as_ref().is_none_or(|worst| weight(address, worst) < weight(address, &error)) {
                    worst = Some(error);
                }
            }
            other => return other,
        }
    }
    Err(worst.expect("an address has a server"))
}

/// What every server would answer: the account is refused (class 28), or the database is not there.
fn is_final(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("28") || *code == SqlState::INVALID_CATALOG_NAME)
}

/// What waiting does not help against is said first, then what a primary answers (it may have no connection left), then that
/// one is a standby, and last that one is away.
fn weight(address: &Address, error: &Error) -> (bool, bool, bool) {
    let is_standby = error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED);
    (!explain(address, error).1, error.as_db_error().is_some() && !is_standby, is_standby)
}

/// Each server by itself, and each of its IP addresses.
async fn places(address: &Address) -> Vec<Config> {
    let config = &address.config;
    let mut places = Vec::new();
    for server in &address.servers {
        let found: Vec<IpAddr> = match (&server.host, server.address) {
            (_, Some(address)) => vec![address],
            (Some(Host::Tcp(name)), None) => {
                match timeout(NEXT_AFTER, lookup_host((name.as_str(), server.port))).await {
                    Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
                    // The driver asks again, and says what is wrong.
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        };
        if found.is_empty() {
            places.push(server.config(config, None));
        }
        places.extend(found.into_iter().map(|address| server.config(config, Some(address))));
    }
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut places);
    }
    places
}

/// A connection to this place.
async fn open(address: &Address, place: Config) -> Result<Session, Error> {
    let session = match address.tls.clone() {
        Some(tls) => {
            let (client, connection) = place.connect(tls).await?;
            Session { client, reader: tokio::spawn(read(connection)) }
        }
        None => {
            let (client, connection) = place.connect(NoTls).await?;
            Session { client, reader: tokio::spawn(read(connection)) }
        }
    };
    if address.primary {
        // What a standby refuses, whatever its transactions do by default.
        session.client.batch_execute("BEGIN READ WRITE; ROLLBACK").await?;
    }
    if address.set_by == SetBy::Connection {
        set_for_session(&session.client).await?;
    }
    Ok(session)
}

/// Its end is known to what asks by it.
async fn read(connection: impl Future<Output = Result<(), Error>>) {
    if let Err(cause) = connection.await {
        let cause: &dyn std::error::Error = &cause;
        debug!(cause, "a connection to Postgres has ended");
    }
}
