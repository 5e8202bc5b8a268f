//! Partitions of `harness_results`: one per day of the job ids' own time, made ahead and dropped by retention.
//!
//! A partition is made by CREATE then ATTACH and removed by DETACH CONCURRENTLY: both leave reads and writes of the
//! other partitions alone, and both give up after a short wait for a lock and try again next time.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::{Store, StoreError};

const DAY_MS: u64 = 86_400_000;
/// An advisory lock, so that one process at a time maintains the partitions.
const LOCK_KEY: i64 = 0x6861_726e_6573_7300;

/// The first id of a day: its milliseconds in the first 48 bits, and nothing behind.
fn first_id(day: u64) -> Uuid {
    Uuid::from_u128(u128::from(day * DAY_MS) << 80)
}

fn table(day: u64) -> String {
    format!("harness_results_d{day}")
}

impl Store {
    /// Makes every partition that an accepted job id can fall into, from `retention` ago to three days ahead, and
    /// drops those past the retention, except where a live job's id lies in or before them. Returns how many were
    /// made and dropped; `None` when another process is at it.
    pub async fn maintain_partitions(
        &self,
        retention: Duration,
    ) -> Result<Option<(usize, usize)>, StoreError> {
        let fail = |error| StoreError::from_pg("partitions", error);
        let client = self.pool.get().await?;
        let locked = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK_KEY]).await.map_err(fail)?;
        if !locked.get::<_, bool>(0) {
            return Ok(None);
        }
        let done = maintain(&client, retention).await.map_err(fail);
        client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK_KEY]).await.map_err(fail)?;
        done.map(Some)
    }
}

async fn maintain(
    client: &deadpool_postgres::Client,
    retention: Duration,
) -> Result<(usize, usize), tokio_postgres::Error> {
    let now_ms =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let today = now_ms / DAY_MS;
    let oldest = now_ms.saturating_sub(retention.as_millis() as u64) / DAY_MS;
    let rows = client
        .query(
            "SELECT substring(c.relname FROM 'harness_results_d(\\d+)')::bigint
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
              WHERE i.inhparent = 'harness_results'::regclass AND c.relname ~ '^harness_results_d\\d+$'",
            &[],
        )
        .await?;
    let present: BTreeSet<u64> = rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect();

    let missing: Vec<u64> = (oldest..=today + 3).filter(|day| !present.contains(day)).collect();
    for day in &missing {
        let (table, from, to) = (table(*day), first_id(*day), first_id(day + 1));
        client
            .batch_execute(&format!(
                "CREATE TABLE IF NOT EXISTS {table} (LIKE harness_results INCLUDING ALL);
                 SET lock_timeout = '3s';
                 ALTER TABLE harness_results ATTACH PARTITION {table} FOR VALUES FROM ('{from}') TO ('{to}');
                 RESET lock_timeout"
            ))
            .await?;
    }

    let live = client.query_one("SELECT job_id FROM harness_jobs ORDER BY job_id LIMIT 1", &[]).await;
    let oldest_live =
        live.ok().map_or(u64::MAX, |row| (row.get::<_, Uuid>(0).as_u128() >> 80) as u64 / DAY_MS);
    let expired: Vec<u64> = present.into_iter().filter(|day| *day < oldest.min(oldest_live)).collect();
    for day in &expired {
        let table = table(*day);
        client.batch_execute("SET lock_timeout = '3s'").await?;
        // Not within a transaction block: CONCURRENTLY makes its own.
        client
            .batch_execute(&format!("ALTER TABLE harness_results DETACH PARTITION {table} CONCURRENTLY"))
            .await?;
        client.batch_execute(&format!("DROP TABLE {table}")).await?;
        client.batch_execute("RESET lock_timeout").await?;
    }
    Ok((missing.len(), expired.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::JobId;

    #[test]
    fn an_id_made_now_lies_in_the_partition_of_today() {
        let id = JobId::now();
        let day = id.unix_ms() / DAY_MS;
        assert!(first_id(day) <= Uuid::from(id) && Uuid::from(id) < first_id(day + 1));
    }
}
