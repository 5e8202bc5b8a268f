//! The schema: SQL files, embedded into every binary, and the question whether a database has them all.
//!
//! sqlx owns this part alone. At run time `store` speaks to Postgres, and knows nothing of versions.

use std::collections::BTreeSet;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, PgConnection};

/// For the log filter (`EnvFilter` syntax): sqlx tells every statement and notice.
pub const LOG_DIRECTIVE: &str = "sqlx=warn";

static MIGRATOR: Migrator = sqlx::migrate!("./sql");

/// Brings a database to this binary's schema. Returns the versions that were applied now.
pub async fn migrate(database_url: &str) -> Result<Vec<i64>, SchemaError> {
    let mut connection = connect(database_url).await?;
    let before = applied(&mut connection).await?;
    MIGRATOR.run(&mut connection).await.map_err(SchemaError::Migrate)?;
    let after = applied(&mut connection).await?;
    connection.close().await.map_err(SchemaError::Database)?;
    Ok(after.difference(&before).copied().collect())
}

/// Refuses a database whose schema is not exactly the one this binary was built for.
pub async fn check(database_url: &str) -> Result<(), SchemaError> {
    let mut connection = connect(database_url).await?;
    let applied = applied(&mut connection).await?;
    connection.close().await.map_err(SchemaError::Database)?;
    let known: BTreeSet<i64> = MIGRATOR.iter().map(|migration| migration.version).collect();
    if let Some(version) = known.difference(&applied).next() {
        return Err(SchemaError::Behind { version: *version });
    }
    if let Some(version) = applied.difference(&known).next() {
        return Err(SchemaError::Ahead { version: *version });
    }
    Ok(())
}

async fn connect(database_url: &str) -> Result<PgConnection, SchemaError> {
    PgConnection::connect(database_url).await.map_err(SchemaError::Database)
}

/// The versions in sqlx's own table; none when it does not exist yet.
async fn applied(connection: &mut PgConnection) -> Result<BTreeSet<i64>, SchemaError> {
    let table: Option<String> = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations')::text")
        .fetch_one(&mut *connection)
        .await
        .map_err(SchemaError::Database)?;
    if table.is_none() {
        return Ok(BTreeSet::new());
    }
    let versions: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
        .fetch_all(connection)
        .await
        .map_err(SchemaError::Database)?;
    Ok(versions.into_iter().collect())
}

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Postgres did not answer.
    #[error("reading the schema's version")]
    Database(#[source] sqlx::Error),
    /// A migration failed; it was rolled back.
    #[error("migrating the schema")]
    Migrate(#[source] MigrateError),
    /// A migration is missing.
    #[error("the database lacks migration {version}: run `producer migrate`")]
    Behind {
        /// The first one missing.
        version: i64,
    },
    /// The database knows more than we do.
    #[error("the database has migration {version}, which this binary does not know: run a newer release")]
    Ahead {
        /// The first one unknown.
        version: i64,
    },
}

impl SchemaError {
    /// Whether waiting helps: Postgres is away or starting, as opposed to a schema that does not fit.
    pub fn is_retryable(&self) -> bool {
        match self {
            SchemaError::Database(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut) => {
                true
            }
            // 57P03 cannot_connect_now, 53300 too_many_connections.
            SchemaError::Database(sqlx::Error::Database(error)) => {
                matches!(error.code().as_deref(), Some("57P03" | "53300"))
            }
            SchemaError::Database(_)
            | SchemaError::Migrate(_)
            | SchemaError::Behind { .. }
            | SchemaError::Ahead { .. } => false,
        }
    }
}
