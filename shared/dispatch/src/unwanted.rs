//! Jobs that end without a worker: cancelled, overdue or rejected while they wait. Their callers get a reply
//! as well.

use job::JobId;
use store::{Cancelled, EndedWaiting, StoreError, Unwanted};
use tracing::info;

use crate::{Dispatch, job_span};

impl Dispatch {
    /// Cancels jobs, whatever their state. A running job gets its stop signal within a second. Returns the
    /// answers in the order of the jobs. The operators' log names the actor.
    ///
    /// The ids must lie within the retention. For older ones there is no partition to record the end in.
    pub async fn cancel(&self, actor: &str, jobs: &[JobId]) -> Result<Vec<Cancelled>, StoreError> {
        let (answers, ended) = self.store.cancel(actor, jobs).await?;
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

    /// Ends the jobs that are no longer wanted and have not ended yet.
    pub(crate) async fn end_unwanted(&self) -> Result<(), StoreError> {
        let unwanted = self.store.unwanted().await?;
        for why in [Unwanted::Cancelled, Unwanted::Overdue, Unwanted::Interrupted, Unwanted::RolledBack] {
            let jobs: Vec<JobId> = unwanted.iter().filter(|job| job.1 == why).map(|job| job.0).collect();
            if jobs.is_empty() {
                continue;
            }
            let ended = self.end_each(&jobs, why).await?;
            info!(jobs = ended, ?why, "jobs that no worker runs have ended");
        }
        Ok(())
    }

    /// As [`Dispatch::end_waiting`], but one that cannot be ended does not keep the others from their end.
    pub(crate) async fn end_each(&self, jobs: &[JobId], why: Unwanted<'_>) -> Result<usize, StoreError> {
        match self.end_waiting(jobs, why).await {
            Err(error) if error.may_lie_in_one_call() => self.end_one_by_one(jobs, why).await,
            ended => ended,
        }
    }

    /// Ends jobs one by one, so that one that cannot be ended does not keep the others from their end.
    /// Returns how many have ended, or the error of the last one that has not.
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
            // A job that was cancelled before it was seen has no envelope yet.
            if let Ok(spec) = job::decode_stored(&job.message) {
                job_span(&spec, None).in_scope(|| self.reply(&spec, spec.traceparent));
            }
        }
    }
}
