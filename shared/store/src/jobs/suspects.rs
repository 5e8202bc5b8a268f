//! Suspects: jobs at whose run two workers have died. A third death proves one to be the cause, if no other suspect ran on that
//! worker; so a worker runs one of them at a time, at first.
//!
//! Most suspects are innocent: their workers died of something else. One that runs for longer than it ever did before a death is
//! cleared. One that has waited long enough runs beside others: should their worker die, none of them is charged
//! (`TAKE_LOST`), and from then on each of them has to be alone until it is cleared.

use uuid::Uuid;

use super::claimed::Claim;
use crate::database::query;
use crate::{Fenced, Store, StoreError};

/// What it ran for before stays: to be cleared again, it has to outlive that again.
const CLEAR: &str = "
    UPDATE harness_jobs SET deaths = 0, shared_deaths = 0, suspected_at = NULL
     WHERE job_id = $1 AND epoch = $2 AND worker_id IS NOT DISTINCT FROM $3
    RETURNING job_id";

impl Store {
    /// A suspect has outlived the time after which it killed: nothing is held against it any more.
    pub async fn clear_suspicion(&self, claim: &Claim) -> Result<Fenced<()>, StoreError> {
        let (job, worker) = (Uuid::from(claim.job_id()), Uuid::from(claim.worker()));
        let cleared = query(&self.pool, "clear_suspicion", CLEAR, &[&job, &claim.epoch(), &worker]).await?;
        Ok(if cleared.is_empty() { Fenced::Lost } else { Fenced::Done(()) })
    }
}
