//! The errors of the ledger, as far as a caller acts on them.

use std::sync::Arc;

use tokio::time::error::Elapsed;
use tokio_postgres::error::SqlState;

/// Why a transaction failed. Cheap to clone, because every call of a batch gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres cannot be reached, is starting, or went away in the middle: the transaction may have committed.
    #[error("Postgres is not available")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The call was more than Postgres does for one: it took too long, waited too long for a lock, or needed
    /// too much memory. The transaction was rolled back.
    #[error("it was too much for Postgres")]
    TooMuch(#[source] Arc<tokio_postgres::Error>),
    /// A value that Postgres cannot hold (SQLSTATE class 22, 23 or 54). The same call fails again.
    #[error("Postgres refused a value ({sqlstate}): {message}")]
    Refused {
        /// The five characters of the SQLSTATE.
        sqlstate: String,
        /// Postgres's message.
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
    /// Returns whether the same call may succeed a little later. Claim, checkpoint and conclude recognise
    /// their own earlier commit, so they are safe to retry even if the first reply was lost.
    pub fn is_retryable(&self) -> bool {
        match self {
            StoreError::Unavailable(_) | StoreError::TooMuch(_) => true,
            StoreError::Refused { .. } | StoreError::Broken { .. } | StoreError::Closed => false,
        }
    }

    /// Returns whether one call of a batch may be the cause, so that the others may succeed without it.
    pub fn may_lie_in_one_call(&self) -> bool {
        match self {
            StoreError::TooMuch(_) | StoreError::Refused { .. } | StoreError::Broken { .. } => true,
            StoreError::Unavailable(_) | StoreError::Closed => false,
        }
    }

    /// Makes a retryable error for a case where Postgres answers, but something else has to happen first.
    pub fn unavailable(why: &str) -> StoreError {
        StoreError::Unavailable(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(why)))
    }

    /// Returns the error as a log field takes it, so that its sources are shown too.
    pub fn as_dyn(&self) -> &(dyn std::error::Error + 'static) {
        self
    }

    pub(crate) fn from_pg(transaction: &'static str, error: tokio_postgres::Error) -> StoreError {
        let Some(db) = error.as_db_error() else {
            return StoreError::Unavailable(Arc::new(error));
        };
        let code = db.code();
        // 55P03 and 57014 are our own timeouts, 53200 is out of memory.
        if [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED, SqlState::OUT_OF_MEMORY].contains(code) {
            return StoreError::TooMuch(Arc::new(error));
        }
        // 08 connection, 53 resources, 57P shutdown and restart, 40 rollback (deadlock, serialization),
        // 25006 read-only after a failover.
        let transient = ["08", "53", "57P", "40"].iter().any(|class| code.code().starts_with(class))
            || *code == SqlState::READ_ONLY_SQL_TRANSACTION;
        if transient {
            return StoreError::Unavailable(Arc::new(error));
        }
        // A row without a partition to go to violates no constraint that has a name. That is not the value's fault.
        let no_partition = *code == SqlState::CHECK_VIOLATION && db.constraint().is_none();
        if ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)) && !no_partition {
            return StoreError::Refused {
                sqlstate: code.code().to_owned(),
                message: db.message().to_owned(),
            };
        }
        StoreError::Broken { transaction, source: Arc::new(error) }
    }
}

/// No answer came in time.
impl From<Elapsed> for StoreError {
    fn from(elapsed: Elapsed) -> Self {
        StoreError::Unavailable(Arc::new(elapsed))
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
