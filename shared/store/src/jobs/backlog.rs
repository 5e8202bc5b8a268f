//! How much waits, as far as a door has to know before it takes more.

use job::Tenant;

use crate::database::query;
use crate::{Store, StoreError};

/// The condition on a column without an index makes Postgres read the table as it lies. By an index, which it would
/// choose to avoid the table, a million rows took six times as long.
const UNFINISHED: &str =
    "SELECT count(*) FROM (SELECT FROM harness_jobs WHERE attempts >= 0 LIMIT $1) counted";

/// By `harness_jobs_waiting_of_tenant`.
const WAITING: &str = "
    SELECT count(*) FROM (SELECT FROM harness_jobs
                           WHERE tenant = $1 AND state <> 'running' AND tenant <> 'default' LIMIT $2) counted";

/// Jobs of the tenant `default` are not in the index; mostly they are the most, and the first ones that are read.
const WAITING_OF_DEFAULT: &str = "
    SELECT count(*) FROM (SELECT FROM harness_jobs WHERE tenant = $1 AND state <> 'running' LIMIT $2) counted";

impl Store {
    /// Counts all unfinished jobs, but not beyond `most`.
    pub async fn count_unfinished(&self, most: u32) -> Result<u64, StoreError> {
        let rows = query(&self.pool, "count_unfinished", UNFINISHED, &[&i64::from(most)]).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)).unsigned_abs())
    }

    /// Counts a tenant's jobs that wait, but not beyond `most`.
    pub async fn count_waiting_of(&self, tenant: &Tenant, most: u32) -> Result<u64, StoreError> {
        let sql = if tenant.is_default() { WAITING_OF_DEFAULT } else { WAITING };
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&tenant.as_str(), &i64::from(most)];
        let rows = query(&self.pool, "count_waiting_of", sql, &params).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)).unsigned_abs())
    }
}
