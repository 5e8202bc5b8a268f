//! Jobs that end before they start: what was enqueued by SQL and is no job, or is the work of another job.

use job::JobSpec;

use super::accept::DROP_ENDED;
use super::cancel::{EndedWaiting, Unwanted};
use super::columns::{Columns, job_columns, job_values, new_jobs};
use crate::database::Tx;
use crate::{Store, StoreError};

/// They never come due, so nothing publishes them.
const ENTER: &str = concat!(
    "INSERT INTO harness_jobs (",
    job_columns!(),
    ", state, due_at)
    SELECT ",
    job_values!(),
    ", 'scheduled', 'infinity'
      FROM ",
    new_jobs!(),
    " ON CONFLICT DO NOTHING RETURNING job_id"
);

impl Store {
    /// Records the end of a job that is not to start, for a reason that is [`Unwanted::Invalid`] or [`Unwanted::KeyHeld`].
    /// Nothing happens if the ledger knows the id. Safe to repeat.
    pub async fn end_unstarted(
        &self,
        spec: &JobSpec,
        why: Unwanted<'_>,
    ) -> Result<Vec<EndedWaiting>, StoreError> {
        let columns = Columns::of(std::iter::once(spec));
        let tx = Tx::prepare(&self.pool, "enter_unstarted", [ENTER, DROP_ENDED]).await?;
        let [_, _] = tx.run([&columns.params(), &[&columns.jobs]]).await?;
        self.end_waiting(&[spec.job_id], why).await
    }
}
