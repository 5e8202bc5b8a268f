//! A transaction in one round trip.

use std::time::Duration;

use deadpool_postgres::{Client, Pool};
use futures::future::join3;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::StoreError;

pub(crate) type Params<'a> = [&'a (dyn ToSql + Sync)];

/// The isolation level is stated, because a role or a database may have another default.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// A connection with the statements of one transaction prepared on it.
pub(crate) struct Tx<const N: usize> {
    name: &'static str,
    client: Client,
    statements: [Statement; N],
    /// One that only some transactions of this name need; it comes last.
    more: Option<Statement>,
}

impl<const N: usize> Tx<N> {
    /// Takes a connection from the pool. Each statement is prepared once per connection.
    pub(crate) async fn prepare(pool: &Pool, name: &'static str, sql: [&str; N]) -> Result<Self, StoreError> {
        Tx::prepare_more(pool, name, sql, None).await
    }

    /// As [`Tx::prepare`], with one more statement at the end where one is needed.
    pub(crate) async fn prepare_more(
        pool: &Pool,
        name: &'static str,
        sql: [&str; N],
        more: Option<&str>,
    ) -> Result<Self, StoreError> {
        let busy = Busy(Some(pool.get().await?));
        let preparing = async {
            let mut statements = Vec::with_capacity(N + 1);
            for text in sql.into_iter().chain(more) {
                statements.push(busy.client().prepare_cached(text).await?);
            }
            Ok(statements)
        };
        let (client, mut statements) = bounded(name, BOUND, preparing).await.keep(busy)?;
        let more = if more.is_some() { statements.pop() } else { None };
        let statements = statements.try_into().map_err(|_| StoreError::Closed)?;
        Ok(Tx { name, client, statements, more })
    }

    /// Runs it, see [`pipelined`].
    pub(crate) async fn run(self, params: [&Params<'_>; N]) -> Result<[Vec<Row>; N], StoreError> {
        Ok(self.run_more(params, &[]).await?.0)
    }

    /// As [`Tx::run`], with the parameters of the statement that was added by [`Tx::prepare_more`], if one was. Its
    /// rows are the second part of the answer.
    pub(crate) async fn run_more(
        self,
        params: [&Params<'_>; N],
        more: &Params<'_>,
    ) -> Result<([Vec<Row>; N], Vec<Row>), StoreError> {
        let busy = Busy(Some(self.client));
        let statements = self.statements.iter().zip(params).chain(self.more.iter().map(|last| (last, more)));
        let running = pipelined(busy.client(), statements);
        let (_, mut answers) = bounded(self.name, BOUND, running).await.keep(busy)?;
        let more = answers.split_off(N).pop().unwrap_or_default();
        Ok((answers.try_into().expect("as many answers as statements"), more))
    }
}

impl Tx<0> {
    /// Runs a transaction whose statements are chosen when it begins, in one round trip. The answers are in their order.
    pub(crate) async fn run_steps(
        pool: &Pool,
        name: &'static str,
        steps: &[(&str, &Params<'_>)],
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let busy = Busy(Some(pool.get().await?));
        let preparing = async {
            let mut statements = Vec::with_capacity(steps.len());
            for (text, _) in steps {
                statements.push(busy.client().prepare_cached(text).await?);
            }
            Ok(statements)
        };
        let (client, statements) = bounded(name, BOUND, preparing).await.keep(busy)?;
        let busy = Busy(Some(client));
        let with_params = statements.iter().zip(steps.iter().map(|(_, params)| *params));
        let (_, answers) = bounded(name, BOUND, pipelined(busy.client(), with_params)).await.keep(busy)?;
        Ok(answers)
    }
}

/// Sends BEGIN, every statement with its parameters, and COMMIT at once; then reads the answers.
///
/// tokio-postgres sends a request when its future is first polled, and joined futures are first polled in
/// order. After a failed statement Postgres refuses the later ones and turns COMMIT into ROLLBACK, so the
/// first error is the one that explains the failure.
async fn pipelined<'a>(
    client: &Client,
    statements: impl Iterator<Item = (&'a Statement, &'a Params<'a>)>,
) -> Result<Vec<Vec<Row>>, tokio_postgres::Error> {
    let queries = statements.map(|(statement, params)| client.query(statement, params));
    let (begin, answers, commit) = join3(
        client.batch_execute(BEGIN),
        futures::future::join_all(queries),
        client.batch_execute("COMMIT"),
    )
    .await;
    begin?;
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    commit?;
    Ok(answers)
}

/// The time limit of one transaction. Postgres ends a statement sooner (`statement_timeout`), so an answer
/// that takes this long was lost in the network.
const BOUND: Duration = Duration::from_secs(12);

/// An answer from Postgres that was awaited with a time limit.
struct Bounded<T>(Result<T, StoreError>);

impl<T> Bounded<T> {
    /// Returns the answer with its connection. A connection is not used again if no answer came, or if it
    /// leads to a server that no longer takes writes. The idle ones in the pool are closed as well, because
    /// they lead to the same place.
    fn keep(self, mut busy: Busy) -> Result<(Client, T), StoreError> {
        let client = busy.0.take().expect("it is taken once");
        match self.0 {
            Ok(answer) => Ok((client, answer)),
            Err(error) => {
                if leads_nowhere(&error) {
                    if let Some(pool) = Client::pool(&client) {
                        pool.retain(|_, _| false);
                    }
                    drop(Client::take(client));
                }
                Err(error)
            }
        }
    }
}

/// Returns whether nothing came back in time, or the server is a standby because the primary is elsewhere
/// now.
fn leads_nowhere(error: &StoreError) -> bool {
    let StoreError::Unavailable(cause) = error else { return false };
    let refused = cause.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code());
    cause.is::<Elapsed>() || refused == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

async fn bounded<T>(
    name: &'static str,
    bound: Duration,
    asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Bounded<T> {
    Bounded(match timeout(bound, asking).await {
        Ok(answer) => answer.map_err(|error| StoreError::from_pg(name, error)),
        Err(elapsed) => Err(elapsed.into()),
    })
}

/// Runs one statement, which is its own transaction.
pub(crate) async fn query(
    pool: &Pool,
    name: &'static str,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>, StoreError> {
    query_within(BOUND, pool, name, sql, params).await
}

/// Runs statements one after the other in one round trip. Each is its own transaction, and sees what was committed before
/// it. The answers are in their order.
pub(crate) async fn queries(
    pool: &Pool,
    name: &'static str,
    steps: &[(&str, &Params<'_>)],
) -> Result<Vec<Vec<Row>>, StoreError> {
    let busy = Busy(Some(pool.get().await?));
    let asking = async {
        let client = busy.client();
        let mut statements = Vec::with_capacity(steps.len());
        for (text, _) in steps {
            statements.push(client.prepare_cached(text).await?);
        }
        let asked =
            statements.iter().zip(steps).map(|(statement, (_, params))| client.query(statement, params));
        futures::future::join_all(asked).await.into_iter().collect::<Result<Vec<_>, _>>()
    };
    let (_, answers) = bounded(name, BOUND, asking).await.keep(busy)?;
    Ok(answers)
}

/// As [`query`], with a bound that the caller chooses.
pub(crate) async fn query_within(
    bound: Duration,
    pool: &Pool,
    name: &'static str,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>, StoreError> {
    let busy = Busy(Some(pool.get().await?));
    let asking = async {
        let client = busy.client();
        let statement = client.prepare_cached(sql).await?;
        client.query(&statement, params).await
    };
    let (_, rows) = bounded(name, bound, asking).await.keep(busy)?;
    Ok(rows)
}

/// A connection whose answer is awaited. If its caller waits no longer, the connection is closed: in the pool, the next
/// question would wait behind this one. Postgres then ends the statement within two seconds, because our sessions have
/// `client_connection_check_interval`.
struct Busy(Option<Client>);

impl Busy {
    fn client(&self) -> &Client {
        self.0.as_ref().expect("it is there until its answer is")
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Client::take(client));
        }
    }
}
