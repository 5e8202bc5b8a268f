//! The schema: SQL files, embedded into every binary, and the question whether a database has them all.
//!
//! sqlx owns this part alone. At run time `store` speaks to Postgres, and knows nothing of versions.
//!
//! A file `0042_what_it_does_works_with_0041.sql` says that binaries of schema 41 work with its changes as well, so that a release can be
//! taken back without its migration. The database keeps the name, by which such a binary knows. Others are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

/// For the log filter (`EnvFilter` syntax): sqlx tells every statement and notice.
pub const LOG_DIRECTIVE: &str = "sqlx=warn";

/// The longest time that a look at the schema takes, the connection included.
const CHECK_BOUND: Duration = Duration::from_secs(10);

static MIGRATOR: Migrator = sqlx::migrate!("./sql");

/// Brings a database to this binary's schema, or leaves a newer one that works with this binary. Returns the versions that were applied now.
pub async fn migrate(database_url: &str) -> Result<Vec<i64>, SchemaError> {
    let mut connection = connect(database_url).await?;
    let before = applied(&mut connection).await?;
    refuse_unknown(&before)?;
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    // The unknown ones that are left do not concern this binary.
    migrator.set_ignore_missing(true).run(&mut connection).await.map_err(SchemaError::Migrate)?;
    let after = applied(&mut connection).await?;
    connection.close().await.map_err(SchemaError::Database)?;
    Ok(after.into_keys().filter(|version| !before.contains_key(version)).collect())
}

/// Refuses a database whose schema is neither the one this binary was built for nor a newer one that works with it.
pub async fn check(database_url: &str) -> Result<(), SchemaError> {
    // The network may swallow an answer; sqlx waits for it for ever.
    let looking = timeout(CHECK_BOUND, look(database_url));
    looking.await.unwrap_or_else(|elapsed| Err(SchemaError::Database(sqlx::Error::Io(elapsed.into()))))
}

async fn look(database_url: &str) -> Result<(), SchemaError> {
    let mut connection = connect(database_url).await?;
    let applied = applied(&mut connection).await?;
    connection.close().await.map_err(SchemaError::Database)?;
    if let Some(version) = known().into_iter().find(|version| !applied.contains_key(version)) {
        return Err(SchemaError::Behind { version });
    }
    refuse_unknown(&applied)
}

fn known() -> BTreeSet<i64> {
    MIGRATOR.iter().map(|migration| migration.version).collect()
}

/// Each migration that this binary does not know must say that it works with this binary's schema.
fn refuse_unknown(applied: &BTreeMap<i64, String>) -> Result<(), SchemaError> {
    let known = known();
    let ours = known.last().copied().unwrap_or_default();
    let refused = applied.iter().find(|(version, description)| {
        !known.contains(version) && works_with(description).is_none_or(|oldest| oldest > ours)
    });
    refused.map_or(Ok(()), |(version, _)| Err(SchemaError::Ahead { version: *version }))
}

/// The oldest schema whose binaries work with a migration, by the end of its name; `None` if it names none.
fn works_with(description: &str) -> Option<i64> {
    description.rsplit_once(" works with ")?.1.parse().ok()
}

async fn connect(database_url: &str) -> Result<PgConnection, SchemaError> {
    PgConnection::connect(database_url).await.map_err(SchemaError::Database)
}

/// The versions in sqlx's own table, and what their files are called; none when it does not exist yet.
async fn applied(connection: &mut PgConnection) -> Result<BTreeMap<i64, String>, SchemaError> {
    let table: Option<String> = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations')::text")
        .fetch_one(&mut *connection)
        .await
        .map_err(SchemaError::Database)?;
    if table.is_none() {
        return Ok(BTreeMap::new());
    }
    let versions: Vec<(i64, String)> =
        sqlx::query_as("SELECT version, description FROM _sqlx_migrations WHERE success")
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
    /// The database has what we do not know, and what does not say that it works with us.
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
