//! Asking the ledger on behalf of a caller, who was promised an answer in time.

use std::future::Future;
use std::time::Duration;

use store::StoreError;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::problem::Problem;

/// The time limit for all that one request asks the ledger. It begins with the request, and again only where the caller
/// did not wait for the ledger meanwhile: while a body arrived, or a job's end was waited for. A batch has it for each group
/// of its jobs.
#[derive(Clone, Copy, Debug)]
pub struct Timeout(Instant);

impl Timeout {
    /// So long from now on.
    pub fn begin(within: Duration) -> Timeout {
        Timeout(Instant::now() + within)
    }

    /// What is left of it.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The same limit, for a request that spent this long on something else.
    pub fn after(self, spent: Duration) -> Timeout {
        Timeout(self.0 + spent)
    }

    /// The ledger's answer, or a 503.
    pub async fn ask<T, E>(self, asking: impl Future<Output = Result<T, E>>) -> Result<T, Problem>
    where
        Problem: From<E>,
    {
        match timeout_at(self.0, asking).await {
            Ok(answer) => answer.map_err(Problem::from),
            Err(_) => {
                debug!("a request was answered with 503: Postgres is silent");
                Err(Problem::unavailable())
            }
        }
    }
}

impl From<anyhow::Error> for Problem {
    /// Operations wrap what the ledger says.
    fn from(error: anyhow::Error) -> Problem {
        match error.downcast::<StoreError>() {
            Ok(error) => error.into(),
            Err(error) => {
                tracing::error!("a request failed: {}", service::with_causes(error.as_ref()));
                Problem::new(super::problem::Kind::Internal, "the log of the API says why")
            }
        }
    }
}
