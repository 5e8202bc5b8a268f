//! Suspects: jobs during whose runs two workers have died. A third death proves a suspect to be the cause if
//! no other suspect ran on that worker. So, at first, a worker runs only one of them at a time.
//!
//! Most suspects are innocent: their workers died of something else. One that runs for longer than it ever
//! did before a death is cleared. One that has waited long enough runs beside others. If their worker dies,
//! none of them is charged (`TAKE_LOST`), and from then on each of them has to run alone until it is cleared.

use uuid::Uuid;

use super::claimed::Claim;
use crate::database::query;
use crate::{Fenced, Store, StoreError};

/// `killed_after_ms` stays: to be cleared again, the job has to outlive that time again.
const CLEAR: &str = "
    UPDATE harness_jobs SET deaths = 0, shared_deaths = 0, suspected_at = NULL
     WHERE job_id = $1 AND epoch = $2 AND worker_id IS NOT DISTINCT FROM $3
    RETURNING job_id";

impl Store {
    /// Clears a suspect that has outlived the time after which its workers died.
    pub async fn clear_suspicion(&self, claim: &Claim) -> Result<Fenced<()>, StoreError> {
        let (job, worker) = (Uuid::from(claim.job_id()), Uuid::from(claim.worker()));
        let cleared = query(&self.pool, "clear_suspicion", CLEAR, &[&job, &claim.epoch(), &worker]).await?;
        Ok(if cleared.is_empty() { Fenced::Lost } else { Fenced::Done(()) })
    }
}
