//! Why a schema cannot be used.

use postgres::{Pooling, PostgresError, is_ended};

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Postgres did not answer, or not as expected.
    #[error(transparent)]
    Database(#[from] PostgresError),
    /// A migration failed; it was rolled back.
    #[error("migrating the schema: migration {version}")]
    Migrate {
        /// Which one.
        version: i64,
        /// Postgres's answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// An applied migration differs from the one in this binary.
    #[error(
        "migration {version} of the database differs from this binary's: it was changed after it had been applied"
    )]
    Changed {
        /// Which one.
        version: i64,
    },
    /// A migration is missing.
    #[error("the database lacks migration {version}: run `producer migrate`")]
    Behind {
        /// The first one missing.
        version: i64,
    },
    /// The database has a migration that we do not know, and that does not say that it works with us.
    #[error("the database has migration {version}, which this binary does not know: run a newer release")]
    Ahead {
        /// The first one unknown.
        version: i64,
    },
    /// There is a ledger, but our statements would not find it.
    #[error(
        "the ledger of this database is in the schema \"{schema}\", and search_path is {search_path}: add \
         options=-c%20search_path={schema} to DATABASE_URL, or set it for the account (ALTER ROLE … IN DATABASE … SET search_path)"
    )]
    Elsewhere {
        /// The schema that it is in.
        schema: String,
        /// The schemas in which our statements look.
        search_path: String,
    },
    /// An index is not built. The fleet works without it.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Why a partition has no index yet.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Another process builds it.
    #[error("another process builds the index of {table}")]
    UnderWay {
        /// The partition.
        table: String,
    },
    /// It cannot be built now.
    #[error("building the index of {table}{}", remedy(*pooling))]
    Failed {
        /// The partition.
        table: String,
        /// What is between us and Postgres.
        pooling: Pooling,
        /// Postgres's answer.
        #[source]
        source: tokio_postgres::Error,
    },
}

fn remedy(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Own => "",
        Pooling::Shared => {
            " (through a pooler in transaction mode it has 10 s; DATABASE_URL may name Postgres itself for this command)"
        }
    }
}

impl SchemaError {
    /// Returns whether the connection was ended in between, so that another one may do the rest.
    pub(crate) fn is_ended(&self) -> bool {
        match self {
            SchemaError::Database(error) => error.is_ended(),
            SchemaError::Migrate { source, .. } => is_ended(source),
            SchemaError::Changed { .. }
            | SchemaError::Behind { .. }
            | SchemaError::Ahead { .. }
            | SchemaError::Elsewhere { .. }
            | SchemaError::Index(_) => false,
        }
    }

    /// Returns whether waiting helps: Postgres is away or starting, as opposed to a schema that does not fit.
    pub fn is_retryable(&self) -> bool {
        match self {
            SchemaError::Database(error) => error.is_retryable(),
            SchemaError::Migrate { .. }
            | SchemaError::Changed { .. }
            | SchemaError::Behind { .. }
            | SchemaError::Ahead { .. }
            | SchemaError::Elsewhere { .. }
            | SchemaError::Index(_) => false,
        }
    }
}
