//! Why a schema cannot be used.

use postgres::{PostgresError, is_ended};

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Postgres did not answer, or not as it should.
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
    /// A migration was applied that is another one here.
    #[error(
        "the database has another migration {version} than this binary: it was changed after it had been applied"
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
    /// The database has what we do not know, and what does not say that it works with us.
    #[error("the database has migration {version}, which this binary does not know: run a newer release")]
    Ahead {
        /// The first one unknown.
        version: i64,
    },
    /// There is a ledger where our statements would not look for it.
    #[error(
        "the ledger of this database is in the schema \"{schema}\", and search_path is {search_path}: add \
         options=-c%20search_path={schema} to DATABASE_URL, or set it for the account (ALTER ROLE … IN DATABASE … SET search_path)"
    )]
    Elsewhere {
        /// Where it is.
        schema: String,
        /// Where is looked.
        search_path: String,
    },
}

impl SchemaError {
    /// Whether the connection came to its end in between, and another one may do the rest.
    pub(crate) fn is_ended(&self) -> bool {
        match self {
            SchemaError::Database(error) => error.is_ended(),
            SchemaError::Migrate { source, .. } => is_ended(source),
            SchemaError::Changed { .. }
            | SchemaError::Behind { .. }
            | SchemaError::Ahead { .. }
            | SchemaError::Elsewhere { .. } => false,
        }
    }

    /// Whether waiting helps: Postgres is away or starting, as opposed to a schema that does not fit.
    pub fn is_retryable(&self) -> bool {
        match self {
            SchemaError::Database(error) => error.is_retryable(),
            SchemaError::Migrate { .. }
            | SchemaError::Changed { .. }
            | SchemaError::Behind { .. }
            | SchemaError::Ahead { .. }
            | SchemaError::Elsewhere { .. } => false,
        }
    }
}
