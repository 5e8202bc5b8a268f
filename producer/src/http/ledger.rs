//! Asking the ledger on behalf of a caller, who was promised an answer within two seconds.

use std::future::Future;
use std::time::Duration;

use store::StoreError;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::problem::Problem;

/// How long the ledger may be silent. Some of the two seconds is for the way of the answer.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(1_700);

/// The time limit for all that one request asks the ledger. It begins with the request, and again only where the caller
/// did not wait for the ledger meanwhile: while a body arrived, or a job's end was waited for. A batch has it anew after
/// each transaction that takes some of its jobs in.
#[derive(Clone, Copy, Debug)]
pub struct Timeout(Instant);

impl Timeout {
    /// From now on.
    pub fn begin() -> Timeout {
        Timeout(Instant::now() + ANSWER_WITHIN)
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
