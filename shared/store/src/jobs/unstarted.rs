//! Jobs that end before they start: what was enqueued by SQL and is no job, or is the work of another job.

use job::{JobId, JobSpec};

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
    " ORDER BY turn ON CONFLICT DO NOTHING RETURNING job_id"
);

impl Store {
    /// Records the ends of jobs that are not to start, for reasons that are [`Unwanted::Invalid`] or [`Unwanted::KeyHeld`].
    /// Nothing happens to one whose id the ledger knows. Safe to repeat.
    pub async fn end_unstarted(
        &self,
        specs: &[&JobSpec],
        why: Unwanted<'_>,
    ) -> Result<Vec<EndedWaiting>, StoreError> {
        let columns = Columns::of(specs.iter().copied());
        let tx = Tx::prepare(&self.pool, "enter_unstarted", [ENTER, DROP_ENDED]).await?;
        let [_, _] = tx.run([&columns.params(), &[&columns.jobs]]).await?;
        let jobs: Vec<JobId> = specs.iter().map(|spec| spec.job_id).collect();
        self.end_waiting(&jobs, why).await
    }
}
