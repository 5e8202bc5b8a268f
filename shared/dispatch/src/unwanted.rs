//! Jobs that end without a worker: cancelled, overdue or rejected while they wait. Their callers get a reply, too.

use job::JobId;
use store::{Cancelled, EndedWaiting, StoreError, Unwanted};
use tracing::info;

use crate::{Dispatch, job_span};

impl Dispatch {
    /// Cancels jobs, in whatever state they are; a running one gets its stop signal within a second. Answers in their order.
    ///
    /// The ids must lie within the retention, or there is no place for their ends.
    pub async fn cancel(&self, jobs: &[JobId]) -> Result<Vec<Cancelled>, StoreError> {
        let (answers, ended) = self.store.cancel(jobs).await?;
        self.reply_to(ended);
        Ok(answers)
    }

    /// Ends those of these jobs that wait and of which the reason is true. Returns how many.
    pub async fn end_waiting(&self, jobs: &[JobId], why: Unwanted<'_>) -> Result<usize, StoreError> {
        let ended = self.store.end_waiting(jobs, why).await?;
        let count = ended.len();
        self.reply_to(ended);
        Ok(count)
    }

    /// Ends what nobody wants and nobody has ended yet.
    pub(crate) async fn end_unwanted(&self) -> Result<(), StoreError> {
        let unwanted = self.store.unwanted().await?;
        for why in [Unwanted::Cancelled, Unwanted::Overdue] {
            let jobs: Vec<JobId> = unwanted.iter().filter(|job| job.1 == why).map(|job| job.0).collect();
            if jobs.is_empty() {
                continue;
            }
            let ended = match self.end_waiting(&jobs, why).await {
                Err(error) if error.may_lie_in_one_call() => self.end_one_by_one(&jobs, why).await?,
                ended => ended?,
            };
            info!(jobs = ended, ?why, "jobs that nobody runs have ended");
        }
        Ok(())
    }

    /// A job that cannot be ended keeps no other from its end. Returns how many have ended; the error of the last one that has
    /// not.
    async fn end_one_by_one(&self, jobs: &[JobId], why: Unwanted<'_>) -> Result<usize, StoreError> {
        let (mut ended, mut failed) = (0, None);
        for job in jobs {
            match self.end_waiting(std::slice::from_ref(job), why).await {
                Ok(count) => ended += count,
                Err(error) if error.may_lie_in_one_call() => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(ended), Err)
    }

    fn reply_to(&self, ended: Vec<EndedWaiting>) {
        for job in ended {
            // One that was cancelled before it was ever seen has no envelope yet.
            if let Ok(spec) = job::restore(&job.message) {
                job_span(&spec, None).in_scope(|| self.reply(&spec, spec.traceparent));
            }
        }
    }
}
