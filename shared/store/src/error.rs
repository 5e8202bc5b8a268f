//! What can go wrong with the ledger, as far as a caller acts on it.

use std::sync::Arc;

use tokio_postgres::error::SqlState;

/// Why a transaction did not do its work. Cheap to clone: a batch tells every member.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres cannot be reached, is starting, or went away in the middle: the transaction may have committed.
    #[error("Postgres is not available")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// A value that Postgres cannot hold (SQLSTATE class 22 or 23). The same call fails again.
    #[error("Postgres refused a value ({sqlstate}): {message}")]
    Refused {
        /// The five characters of the SQLSTATE.
        sqlstate: String,
        /// Postgres's own words.
        message: String,
    },
    /// Anything else, such as a missing table or right.
    #[error("the ledger failed in `{transaction}`")]
    Broken {
        /// The transaction's name.
        transaction: &'static str,
        /// Postgres's answer.
        #[source]
        source: Arc<tokio_postgres::Error>,
    },
    /// This process is shutting down.
    #[error("the ledger is closed")]
    Closed,
}

impl StoreError {
    /// Whether the same call may succeed a little later. Claim, checkpoint and conclude recognise their own
    /// earlier commit, so for them a retry is safe even when the first reply was lost.
    pub fn is_retryable(&self) -> bool {
        match self {
            StoreError::Unavailable(_) => true,
            StoreError::Refused { .. } | StoreError::Broken { .. } | StoreError::Closed => false,
        }
    }

    /// Something else than Postgres has to happen first.
    pub fn unavailable(why: &str) -> StoreError {
        StoreError::Unavailable(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(why)))
    }

    /// For a log field, which then shows the sources too.
    pub fn as_dyn(&self) -> &(dyn std::error::Error + 'static) {
        self
    }

    pub(crate) fn from_pg(transaction: &'static str, error: tokio_postgres::Error) -> StoreError {
        let Some(db) = error.as_db_error() else {
            return StoreError::Unavailable(Arc::new(error));
        };
        let code = db.code();
        // 08 connection, 53 resources, 57P shutdown and restart, 40 rollback (deadlock, serialization),
        // 25006 read-only after a failover, 55P03 and 57014 a timeout of ours.
        let transient = ["08", "53", "57P", "40"].iter().any(|class| code.code().starts_with(class))
            || [SqlState::READ_ONLY_SQL_TRANSACTION, SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED]
                .contains(code);
        if transient {
            return StoreError::Unavailable(Arc::new(error));
        }
        if ["22", "23"].iter().any(|class| code.code().starts_with(class)) {
            return StoreError::Refused {
                sqlstate: code.code().to_owned(),
                message: db.message().to_owned(),
            };
        }
        StoreError::Broken { transaction, source: Arc::new(error) }
    }
}

impl From<deadpool_postgres::PoolError> for StoreError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Closed => StoreError::Closed,
            error => StoreError::Unavailable(Arc::new(error)),
        }
    }
}
