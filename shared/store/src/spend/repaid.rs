//! What the calls of a job that has ended have cost, and no checkpoint of it: answers that were lost with a run, and paid again
//! by the next one, or for nothing.
//!
//! Every run checkpoints what its calls cost, and what earlier runs have paid for the answers that it was given again. So the rest
//! is a difference of two sums, and it does not matter whether a later run has sent the same requests.

use job::Usd;
use uuid::Uuid;

use crate::database::{query, read_usd};
use crate::jobs::Claim;
use crate::{Store, StoreError};

/// What is still held is not known yet, and not counted. A call that its run has counted in full may have been settled
/// for less since, so the difference may be below zero.
const REPAID: &str = "
    SELECT greatest(c.cost - r.cost_microusd, 0)::bigint
      FROM harness_results r
     CROSS JOIN LATERAL (SELECT sum(cost_microusd) AS cost FROM harness_calls c
                          WHERE c.session_id = r.session_id AND c.job_id = r.job_id) c
     WHERE r.job_id = $1 AND r.epoch = $2 AND c.cost IS NOT NULL";

impl Store {
    /// Returns what the calls of a job have cost that is in no checkpoint of it. It is nothing unless this run has ended the job.
    /// To be asked once all calls of the run are settled.
    pub async fn repaid(&self, claim: &Claim) -> Result<Usd, StoreError> {
        let (job, epoch) = (Uuid::from(claim.job_id()), claim.epoch());
        let rows = query(&self.pool, "repaid", REPAID, &[&job, &epoch]).await?;
        Ok(rows.first().map_or(Usd::ZERO, |row| read_usd(row, 0)))
    }
}
