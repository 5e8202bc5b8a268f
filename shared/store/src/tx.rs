//! A transaction in one round trip.

use deadpool_postgres::{Client, Pool};
use futures::future::join3;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::StoreError;

pub(crate) type Params<'a> = [&'a (dyn ToSql + Sync)];

/// A connection with the statements of one transaction prepared on it.
pub(crate) struct Tx<const N: usize> {
    name: &'static str,
    client: Client,
    statements: [Statement; N],
}

impl<const N: usize> Tx<N> {
    /// Takes a connection from the pool. Each statement is prepared once per connection.
    pub(crate) async fn prepare(pool: &Pool, name: &'static str, sql: [&str; N]) -> Result<Self, StoreError> {
        let client = pool.get().await?;
        let mut statements = Vec::with_capacity(N);
        for text in sql {
            let statement = client.prepare_cached(text).await;
            statements.push(statement.map_err(|error| StoreError::from_pg(name, error))?);
        }
        let statements = statements.try_into().map_err(|_| StoreError::Closed)?;
        Ok(Tx { name, client, statements })
    }

    /// Sends BEGIN, every statement with its parameters, and COMMIT at once; then reads the answers.
    ///
    /// tokio-postgres sends a request when its future is first polled, and joined futures are first polled in
    /// order. After a failed statement Postgres refuses the ones behind it and turns COMMIT into ROLLBACK, so the
    /// first error is the one that tells.
    pub(crate) async fn run(self, params: [&Params<'_>; N]) -> Result<[Vec<Row>; N], StoreError> {
        let queries = self
            .statements
            .iter()
            .zip(params)
            .map(|(statement, params)| self.client.query(statement, params));
        let (begin, answers, commit) = join3(
            self.client.batch_execute("BEGIN"),
            futures::future::join_all(queries),
            self.client.batch_execute("COMMIT"),
        )
        .await;
        let fail = |error| StoreError::from_pg(self.name, error);
        begin.map_err(fail)?;
        let answers = answers.into_iter().collect::<Result<Vec<_>, _>>().map_err(fail)?;
        commit.map_err(fail)?;
        Ok(answers.try_into().expect("as many answers as statements"))
    }
}

/// One statement, which is its own transaction.
pub(crate) async fn query(
    pool: &Pool,
    name: &'static str,
    sql: &str,
    params: &Params<'_>,
) -> Result<Vec<Row>, StoreError> {
    let fail = |error| StoreError::from_pg(name, error);
    let client = pool.get().await?;
    let statement = client.prepare_cached(sql).await.map_err(fail)?;
    client.query(&statement, params).await.map_err(fail)
}
