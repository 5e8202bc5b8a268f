//! What earlier runs of a job have paid and no checkpoint covers. A run that sends such a request again, and gets no stored
//! answer, pays for it again.

use job::Usd;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::{query, read_usd};
use crate::jobs::Claim;
use crate::{Store, StoreError};

/// A request of an earlier run, by its hash and number, and what its calls have cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaidRequest {
    /// Equal for equal requests.
    pub hash: Vec<u8>,
    /// How many answers to it its run had before which no checkpoint covered.
    pub nth: u32,
    /// What it cost.
    pub cost: Usd,
}

const PAID: &str = "
    SELECT request_hash, request_nth, sum(cost_microusd)::bigint FROM harness_calls c
     WHERE session_id = $1 AND job_id = $2 AND epoch < $3 AND cost_microusd > 0
       AND NOT EXISTS (SELECT FROM harness_checkpoints k
                        WHERE k.session_id = c.session_id AND k.job_id = c.job_id AND k.epoch >= c.epoch
                          AND (k.epoch > c.epoch OR k.created_at > c.settled_at))
       AND NOT EXISTS (SELECT FROM harness_history k
                        WHERE k.session_id = c.session_id AND k.folded_by = c.job_id AND k.job_id = c.job_id
                          AND k.epoch >= c.epoch AND (k.epoch > c.epoch OR k.created_at > c.settled_at))
     GROUP BY request_hash, request_nth LIMIT 10000";

impl Store {
    /// Returns what earlier runs of a job have paid and no checkpoint covers yet.
    pub async fn paid_before(&self, claim: &Claim) -> Result<Vec<PaidRequest>, StoreError> {
        let (session, job, epoch) = (claim.session_key(), Uuid::from(claim.job_id()), claim.epoch());
        let rows = query(&self.pool, "paid_before", PAID, &[&session, &job, &epoch]).await?;
        let read = |row: &Row| PaidRequest {
            hash: row.get(0),
            nth: row.get::<_, i32>(1).unsigned_abs(),
            cost: read_usd(row, 2),
        };
        Ok(rows.iter().map(read).collect())
    }
}
