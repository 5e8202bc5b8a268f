//! The first checks of a start: whether the database can hold our texts, and whether a pooler before it keeps what we
//! rely on.

use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::join;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Row};

use crate::address::Address;
use crate::connect::{Session, connect};
use crate::error::PostgresError;
use crate::settings::{SetBy, differing};

/// What is between us and Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// No visible pooler: each connection has a session of its own.
    Own,
    /// A pooler that gives each transaction any session, and knows which statements are prepared in it.
    Shared,
}

/// The timeout of the whole check, including the connections.
const BOUND: Duration = Duration::from_secs(10);
/// How long a query waits for a session while another connection holds the only one, and how long to wait for
/// connections that are slower than the first.
const WAIT: Duration = Duration::from_secs(1);
/// The account's own setting could end the session before an answer comes.
const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
/// How many connections are compared with the first one. More than one is needed, because other clients may be at work
/// meanwhile, and each of several poolers behind one address has its own sessions. They are opened in parallel,
/// because one after another they would take longer than a start allows over a link with a tenth of a second of
/// latency.
const OTHERS: usize = 4;

/// Checks whether our statements can work here. Returns a connection to continue with.
pub async fn look(address: &Address) -> Result<(Session, Pooling), PostgresError> {
    within(BOUND, address, look_unbounded(address)).await
}

/// As [`look`], and checks that the account has the settings that its sessions rely on, if connections do not set them.
pub async fn ready(address: &Address) -> Result<(Session, Pooling), PostgresError> {
    let looking = async {
        let (session, pooling) = look_unbounded(address).await?;
        settings_unbounded(address, &session.client).await?;
        Ok((session, pooling))
    };
    within(BOUND, address, looking).await
}

/// Does the second half of [`ready`], on a connection of [`look`].
pub async fn look_at_settings(address: &Address, session: &Session) -> Result<(), PostgresError> {
    within(BOUND, address, settings_unbounded(address, &session.client)).await
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

async fn settings_unbounded(address: &Address, client: &Client) -> Result<(), PostgresError> {
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
    let wrong = |error| PostgresError::new(address, error);
    let servers = address.servers();
    match (statements(client).await.map_err(wrong)?, address.set_by()) {
        (Statements::Renamed, SetBy::Role) => return Ok(Pooling::Shared),
        (Statements::Renamed, SetBy::Connection) => return Err(PostgresError::SettingsLost { servers }),
        (Statements::Lost, _) => return Err(PostgresError::StatementsLost { servers }),
        (Statements::AsWritten, _) => {}
    }
    let others = others(address).await?;
    let shared = share(client, &others).await;
    join_all(others.into_iter().map(Session::close)).await;
    if shared.map_err(wrong)? { Err(PostgresError::StatementsLost { servers }) } else { Ok(Pooling::Own) }
}

/// Opens connections to compare the first one with. If Postgres (or a pooler) has no room for all of them, fewer will
/// do.
async fn others(address: &Address) -> Result<Vec<Session>, PostgresError> {
    let (mut others, mut refused) = (Vec::new(), None);
    for opened in in_time((0..OTHERS).map(|_| connect(address)), Result::is_ok).await {
        match opened.map_err(|error| PostgresError::new(address, error)) {
            Ok(other) => others.push(other),
            Err(error) if error.is_retryable() => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    match refused {
        Some(refused) if others.is_empty() => Err(refused),
        _ => Ok(others),
    }
}

/// Returns the answers that come in time. Waits for the first one that will do, and then for others up to a limit.
async fn in_time<T>(
    asking: impl Iterator<Item = impl Future<Output = T>>,
    will_do: impl Fn(&T) -> bool,
) -> Vec<T> {
    let mut asking: FuturesUnordered<_> = asking.collect();
    let mut answers = Vec::new();
    while !answers.iter().any(&will_do) {
        match asking.next().await {
            Some(answer) => answers.push(answer),
            None => return answers,
        }
    }
    let bound = Instant::now() + WAIT;
    while let Ok(Some(answer)) = timeout_at(bound, asking.next()).await {
        answers.push(answer);
    }
    answers
}

/// Whether another connection uses the session that the first one has just used, or the first one loses it while the
/// others are busy.
async fn share(one: &Client, others: &[Session]) -> Result<bool, Error> {
    // Asked twice, because a pooler may hand out its sessions in turn.
    let (first, second) = (session(one).await?, session(one).await?);
    let begun = in_time(others.iter().map(|other| begin(&other.client)), |_| true).await;
    let third = timeout(WAIT, session(one)).await;
    let ended = in_time(others.iter().map(|other| other.client.batch_execute("ROLLBACK")), |_| true).await;
    let begun = begun.into_iter().collect::<Result<Vec<i32>, Error>>()?;
    ended.into_iter().collect::<Result<(), Error>>()?;
    let third = third.unwrap_or(Ok(first))?;
    Ok(first != second || first != third || begun.contains(&first))
}

/// Begins a transaction, and returns the session in which it runs.
async fn begin(client: &Client) -> Result<i32, Error> {
    let (begun, session) = join!(client.batch_execute(BEGIN), session(client));
    begun?;
    session
}

async fn session(client: &Client) -> Result<i32, Error> {
    Ok(ask(client, "SELECT pg_backend_pid()").await?.get(0))
}

/// What happens to the names of prepared statements on their way.
enum Statements {
    /// A name arrives as `s` and a number, so nothing on the way keeps track of statements.
    AsWritten,
    /// A pooler that keeps track of statements, and therefore shares its sessions, gives them its own names.
    Renamed,
    /// A statement of another connection is in the way, or ours has disappeared.
    Lost,
}

async fn statements(client: &Client) -> Result<Statements, Error> {
    // Each pair takes one round trip.
    let sql = "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%ours of this look%'";
    let (begun, prepared) = join!(client.batch_execute(BEGIN), client.prepare(sql));
    begun?;
    let asking = async { client.query(&prepared?, &[]).await };
    let (names, ended) = join!(asking, client.batch_execute("ROLLBACK"));
    ended?;
    let ours = |name: &str| {
        name.strip_prefix('s').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match names {
        Ok(rows) if rows.is_empty() => Ok(Statements::Lost),
        Ok(rows) if rows.iter().any(|row| ours(row.get(0))) => Ok(Statements::AsWritten),
        Ok(_) => Ok(Statements::Renamed),
        Err(error) => match error.code() {
            Some(&SqlState::DUPLICATE_PSTATEMENT | &SqlState::INVALID_SQL_STATEMENT_NAME) => {
                Ok(Statements::Lost)
            }
            _ => Err(error),
        },
    }
}

/// Sends a query without a prepared statement, because a pooler could lose that.
async fn ask(client: &Client, sql: &str) -> Result<Row, Error> {
    let mut rows = client.query_typed(sql, &[]).await?;
    Ok(rows.remove(0))
}
