//! What a start asks before it asks anything else: whether the database can hold our texts, and whether what stands before it
//! keeps what we rely on.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, Error, Row};

use crate::address::Address;
use crate::connect::{Session, connect};
use crate::error::PostgresError;
use crate::settings::{SetBy, differing};

/// What stands between us and Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Nothing that shows: each connection has a session of its own.
    Own,
    /// A pooler that gives each transaction some session, and knows which statements are prepared in it.
    Shared,
}

/// The longest time that it takes, connections included.
const BOUND: Duration = Duration::from_secs(10);
/// How long a question waits for a session while another connection holds the only one.
const WAIT: Duration = Duration::from_secs(1);
/// The account may end sessions sooner than an answer comes.
const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
/// How often it is looked whether two connections share their sessions: others may be at work meanwhile.
const ROUNDS: usize = 3;

/// Looks whether our statements can work here. Returns a connection to go on with.
pub async fn look(address: &Address) -> Result<(Session, Pooling), PostgresError> {
    within(BOUND, address, look_unbounded(address)).await
}

/// The same, and whether the account has the settings that its sessions rely on, where connections do not set them.
pub async fn ready(address: &Address) -> Result<(Session, Pooling), PostgresError> {
    let looking = async {
        let (session, pooling) = look_unbounded(address).await?;
        look_at_settings(address, &session.client).await?;
        Ok((session, pooling))
    };
    within(BOUND, address, looking).await
}

async fn within<T>(
    bound: Duration,
    address: &Address,
    asking: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, PostgresError> {
    let silent = |_| Err(PostgresError::Silent { servers: address.servers(), seconds: bound.as_secs() });
    timeout(bound, asking).await.unwrap_or_else(silent)
}

async fn look_unbounded(address: &Address) -> Result<(Session, Pooling), PostgresError> {
    let wrong = |error| PostgresError::new(address, error);
    let session = connect(address).await.map_err(wrong)?;
    let client = &session.client;
    let encoding = ask(
        client,
        "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()",
    );
    let encoding: String = encoding.await.map_err(wrong)?.get(0);
    if encoding != "UTF8" {
        return Err(PostgresError::NotUtf8 { database: address.database().to_owned(), encoding });
    }
    let pooling = pooling(address, client).await?;
    Ok((session, pooling))
}

async fn look_at_settings(address: &Address, client: &Client) -> Result<(), PostgresError> {
    let wrong = |error| PostgresError::new(address, error);
    if address.set_by() == SetBy::Connection {
        return Ok(());
    }
    let names: Vec<String> =
        client.query_typed(&differing(), &[]).await.map_err(wrong)?.iter().map(|row| row.get(0)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let account = ask(client, "SELECT session_user::text").await.map_err(wrong)?.get(0);
    Err(PostgresError::OtherSettings { account, names: names.join(", ") })
}

async fn pooling(address: &Address, client: &Client) -> Result<Pooling, PostgresError> {
    // A second connection shows it. Where there is no place for one, nothing else would work either, and says so.
    let Ok(other) = connect(address).await else { return Ok(Pooling::Own) };
    let mut found = Ok(false);
    for _ in 0..ROUNDS {
        found = share(client, &other.client).await;
        if !matches!(found, Ok(false)) {
            break;
        }
    }
    let keeps = match found {
        Ok(false) => {
            other.close().await;
            return Ok(Pooling::Own);
        }
        Ok(true) => keeps_statements(&other.client).await,
        Err(error) => Err(error),
    };
    other.close().await;
    let servers = address.servers();
    match (keeps, address.set_by()) {
        (Ok(true), SetBy::Role) => Ok(Pooling::Shared),
        (Ok(true), SetBy::Connection) => Err(PostgresError::SettingsLost { servers }),
        (Ok(false), _) => Err(PostgresError::StatementsLost { servers }),
        (Err(error), _) => Err(PostgresError::new(address, error)),
    }
}

/// Whether what one connection has just used is used by the other, or is not there any more when the other is busy.
async fn share(one: &Client, other: &Client) -> Result<bool, Error> {
    // Twice, because a pooler may hand its sessions out in turn.
    let (first, second) = (session(one).await?, session(one).await?);
    other.batch_execute(BEGIN).await?;
    let others = session(other).await;
    let third = timeout(WAIT, session(one)).await;
    other.batch_execute("ROLLBACK").await?;
    let (others, third) = (others?, third.unwrap_or(Ok(first))?);
    Ok(first != second || first != third || first == others)
}

async fn session(client: &Client) -> Result<i32, Error> {
    Ok(ask(client, "SELECT pg_backend_pid()").await?.get(0))
}

/// A pooler that knows statements calls them by names of its own. Where ours arrives, as `s` and a number, another
/// connection's of the same name is in its way.
async fn keeps_statements(client: &Client) -> Result<bool, Error> {
    client.batch_execute(BEGIN).await?;
    let names = async {
        let sql = "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%ours of this look%'";
        let statement = client.prepare(sql).await?;
        client.query(&statement, &[]).await
    };
    let names = names.await;
    client.batch_execute("ROLLBACK").await?;
    let ours = |name: &str| {
        name.strip_prefix('s').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match names {
        Ok(rows) => Ok(!rows.is_empty() && rows.iter().all(|row| !ours(row.get(0)))),
        // Our name was there before us.
        Err(error) if error.as_db_error().is_some() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Without a prepared statement, which a pooler could lose.
async fn ask(client: &Client, sql: &str) -> Result<Row, Error> {
    let mut rows = client.query_typed(sql, &[]).await?;
    Ok(rows.remove(0))
}
