//! Partitions of `harness_results`, `harness_labels`, `harness_calls` and `harness_history`: one of each per week of the
//! ids' own time, made ahead and dropped by retention. A week's labels go before its results, so that no label is left
//! without its job. A week's history is there before its results, because an end writes both.
//!
//! A partition holds a week, not a day, because every transaction that looks for a result opens all
//! partitions. With one per day, that cost more than the rest of the transaction.
//!
//! A partition is made by CREATE and then ATTACH, and removed by DETACH CONCURRENTLY. Both leave reads and
//! writes of the other partitions alone. Both give up after a short wait for a lock and try again next time.
//! A removal that is cut short leaves a partition half detached. It is finished first, because until then
//! Postgres removes no other.

use std::collections::BTreeMap;
use std::time::Duration;

use deadpool_postgres::Client;
use postgres::SetBy;
use tokio_postgres::{IsolationLevel, Row};
use tracing::warn;
use uuid::Uuid;

use crate::database::{NOW, PARTITIONS_KEY, unix_ms};
use crate::spend::{OLDEST_CALLS, SUM_UP};
use crate::{Store, StoreError};

pub(crate) const WEEK_MS: u64 = 7 * 86_400_000;
/// How far ahead partitions are made. Job ids may lie a day ahead; the other days are there so that a
/// partition exists in time even if upkeep fails for days.
const AHEAD_MS: u64 = 4 * 86_400_000;
/// How far ahead of now a job id may lie.
const ID_AHEAD_MS: u64 = 86_400_000;

/// Returns the first id of a week: its milliseconds in the first 48 bits, and zeros after them.
pub(crate) fn first_id(week: u64) -> Uuid {
    Uuid::from_u128(u128::from(week * WEEK_MS) << 80)
}

/// A table in weekly partitions.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Parent(&'static str);

const LABELS: Parent = Parent("harness_labels");
const RESULTS: Parent = Parent("harness_results");
const CALLS: Parent = Parent("harness_calls");
const HISTORY: Parent = Parent("harness_history");

impl Parent {
    fn table(self, week: u64) -> String {
        format!("{}_w{week}", self.0)
    }
}

impl Store {
    /// Makes every partition that an accepted job id can fall into, from `retention` ago to a few days ahead.
    /// Drops those past the retention, except where a live job's id lies in or before them. Returns for how many weeks
    /// some were made and dropped, or `None` if another process is doing this. Those of calls also stay while a call of
    /// this month or one that is held lies in or before them.
    pub async fn maintain_partitions(
        &self,
        retention: Duration,
    ) -> Result<Option<(usize, usize)>, StoreError> {
        let mut client = self.pool.get().await?;
        let done = maintain(&mut client, retention, self.set_by).await;
        done.map_err(|error| StoreError::from_pg("partitions", error))
    }
}

/// Whether results, labels, calls and history have a partition to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionsAhead {
    /// Weeks that have no partition although an accepted job id can fall into them now.
    pub missing: u64,
    /// From now until the first moment without a partition; zero when this week has none.
    pub ahead: Duration,
}

impl Store {
    /// Reads which partitions there are, and makes none.
    pub async fn partitions_ahead(&self, retention: Duration) -> Result<PartitionsAhead, StoreError> {
        let fail = |error| StoreError::from_pg("partitions_ahead", error);
        let client = self.pool.get().await?;
        let now_ms = unix_ms(client.query_one(NOW, &[]).await.map_err(fail)?.get(0));
        let mut least = PartitionsAhead { missing: 0, ahead: Duration::MAX };
        for parent in [LABELS, HISTORY, RESULTS, CALLS] {
            let one = ahead(&read(&client, parent).await.map_err(fail)?, now_ms, retention);
            least.missing = least.missing.max(one.missing);
            least.ahead = least.ahead.min(one.ahead);
        }
        Ok(least)
    }
}

fn ahead(present: &BTreeMap<u64, Standing>, now_ms: u64, retention: Duration) -> PartitionsAhead {
    let there = |week: &u64| matches!(present.get(week), Some(Standing::Attached));
    let oldest = now_ms.saturating_sub(retention.as_millis() as u64) / WEEK_MS;
    let newest = (now_ms + ID_AHEAD_MS) / WEEK_MS;
    let missing = (oldest..=newest).filter(|week| !there(week)).count() as u64;
    let first_gap = (now_ms / WEEK_MS..).find(|week| !there(week)).unwrap_or(u64::MAX / WEEK_MS);
    PartitionsAhead { missing, ahead: Duration::from_millis((first_gap * WEEK_MS).saturating_sub(now_ms)) }
}

async fn maintain(
    client: &mut Client,
    retention: Duration,
    set_by: SetBy,
) -> Result<Option<(usize, usize)>, tokio_postgres::Error> {
    let oldest_call: Option<i64> = client.query_one(OLDEST_CALLS, &[]).await?.get(0);
    let oldest_call = oldest_call.map_or(u64::MAX, |ms| ms.max(0).unsigned_abs() / WEEK_MS);
    let (mut made, mut dropped) = (0, 0);
    // Results come last: where one of them is dropped, the others have left that week before.
    for parent in [CALLS, LABELS, HISTORY, RESULTS] {
        let kept_from = match parent {
            CALLS => oldest_call,
            // Where a week's labels could not be removed, its results stay as well.
            RESULTS => read(client, LABELS).await?.keys().next().copied().unwrap_or(u64::MAX),
            _ => u64::MAX,
        };
        let Some(one) = maintain_one(client, parent, retention, kept_from, set_by).await? else {
            return Ok(None);
        };
        (made, dropped) = (made.max(one.0), one.1);
    }
    Ok(Some((made, dropped)))
}

/// Keeps those from `kept_from` on in any case.
async fn maintain_one(
    client: &mut Client,
    parent: Parent,
    retention: Duration,
    kept_from: u64,
    set_by: SetBy,
) -> Result<Option<(usize, usize)>, tokio_postgres::Error> {
    // By Postgres's clock: a host whose clock is ahead would drop results that are still wanted.
    let now_ms = unix_ms(client.query_one(NOW, &[]).await?.get(0));
    let last = (now_ms + AHEAD_MS) / WEEK_MS;
    let oldest = now_ms.saturating_sub(retention.as_millis() as u64) / WEEK_MS;
    let present = read(client, parent).await?;

    let missing: Vec<u64> =
        (oldest..=last).filter(|week| matches!(present.get(week), None | Some(Standing::Apart))).collect();
    for week in &missing {
        if !make(client, parent, *week).await? {
            return Ok(None);
        }
    }

    let live = client.query_opt("SELECT job_id FROM harness_jobs ORDER BY job_id LIMIT 1", &[]).await?;
    let oldest_live = live.map_or(u64::MAX, |row| (row.get::<_, Uuid>(0).as_u128() >> 80) as u64 / WEEK_MS);
    let kept_from = kept_from.min(oldest).min(oldest_live);
    let mut expired: Vec<(u64, Standing)> = present
        .into_iter()
        .filter(|(week, standing)| *week < kept_from || *standing == Standing::Leaving)
        .collect();
    // Postgres removes no other one while a removal is unfinished.
    expired.sort_by_key(|(_, standing)| *standing != Standing::Leaving);
    for (dropped, (week, standing)) in expired.iter().enumerate() {
        if let Err(cause) = remove(client, parent, *week, *standing, set_by).await {
            // A long reader is in the way. The space is not needed so badly, least of all by a worker that
            // starts.
            let cause: &dyn std::error::Error = &cause;
            warn!(
                cause,
                table = parent.table(*week),
                "an old partition cannot be removed now, trying again later"
            );
            return Ok(Some((missing.len(), dropped)));
        }
    }
    Ok(Some((missing.len(), expired.len())))
}

/// How a partition's table relates to its parent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// A part of it.
    Attached,
    /// Its removal was begun and cut short: by a long reader, or by the end of the process.
    Leaving,
    /// No part of it: not yet, or no longer.
    Apart,
}

async fn read(client: &Client, parent: Parent) -> Result<BTreeMap<u64, Standing>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT substring(c.relname FROM '\\d+$')::bigint, i.inhdetachpending
               FROM pg_class p JOIN pg_class c ON c.relnamespace = p.relnamespace
               LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = p.oid
              WHERE p.oid = to_regclass($1)
                AND c.relkind = 'r' AND c.relname ~ ('^' || $1 || '_w\\d+$')",
            &[&parent.0],
        )
        .await?;
    let standing = |row: &Row| match row.get(1) {
        Some(false) => Standing::Attached,
        Some(true) => Standing::Leaving,
        None => Standing::Apart,
    };
    Ok(rows.iter().map(|row| (row.get::<_, i64>(0) as u64, standing(row))).collect())
}

/// The primary key is the last index that a partition gets. After an ANALYZE of an empty partition all indexes that can
/// serve a look-up by id cost the same, those of tenants and sessions too, and Postgres then takes the newest one. A
/// plan with another index reads that whole index for each id, until statistics change.
const PRIMARY_KEY: &str = "
    SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = to_regclass($1) AND contype = 'p'";

/// Makes a partition, unless it exists by now. Returns whether that was possible: not while another process
/// makes one.
async fn make(client: &mut Client, parent: Parent, week: u64) -> Result<bool, tokio_postgres::Error> {
    let (table, from, to) = (parent.table(week), first_id(week), first_id(week + 1));
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '3s'").await?;
    let locked = transaction.query_one("SELECT pg_try_advisory_xact_lock($1)", &[&PARTITIONS_KEY]).await?;
    if !locked.get::<_, bool>(0) {
        return Ok(false);
    }
    let attached = "SELECT EXISTS (SELECT FROM pg_inherits
                     WHERE inhparent = to_regclass($2) AND inhrelid = to_regclass($1))";
    let Parent(parent) = parent;
    if !transaction.query_one(attached, &[&table, &parent]).await?.get::<_, bool>(0) {
        let there = "SELECT to_regclass($1) IS NOT NULL";
        if !transaction.query_one(there, &[&table]).await?.get::<_, bool>(0) {
            let key: String = transaction.query_one(PRIMARY_KEY, &[&parent]).await?.get(0);
            transaction
                .batch_execute(&format!(
                    "CREATE TABLE {table} (LIKE {parent} INCLUDING ALL);
                     ALTER TABLE {table} DROP CONSTRAINT {table}_pkey, ADD CONSTRAINT {table}_pkey {key}"
                ))
                .await?;
        }
        transaction
            .batch_execute(&format!(
                "ALTER TABLE {parent} ATTACH PARTITION {table} FOR VALUES FROM ('{from}') TO ('{to}')"
            ))
            .await?;
    }
    transaction.commit().await?;
    Ok(true)
}

async fn remove(
    client: &mut Client,
    parent: Parent,
    week: u64,
    standing: Standing,
    set_by: SetBy,
) -> Result<(), tokio_postgres::Error> {
    let table = parent.table(week);
    match standing {
        Standing::Attached => detach(client, parent, &table, "CONCURRENTLY", set_by).await?,
        Standing::Leaving => detach(client, parent, &table, "FINALIZE", set_by).await?,
        Standing::Apart => {}
    }
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '3s'").await?;
    if parent == CALLS {
        let [insert, add] = SUM_UP;
        transaction.batch_execute(&format!("{insert}{table}{add}")).await?;
    }
    transaction.batch_execute(&format!("DROP TABLE {table}")).await?;
    transaction.commit().await
}

/// Detaches a partition, outside of a transaction block, because CONCURRENTLY makes transactions of its own:
/// one to announce and one to remove. If two processes do this at once, one of them fails and finds it done
/// the next time.
async fn detach(
    client: &Client,
    parent: Parent,
    table: &str,
    how: &str,
    set_by: SetBy,
) -> Result<(), tokio_postgres::Error> {
    let statement = format!("ALTER TABLE {} DETACH PARTITION {table} {how}", parent.0);
    if set_by == SetBy::Role {
        // Where a pooler shares sessions, a setting would apply to others as well. There, `statement_timeout`
        // is the bound.
        return client.batch_execute(&statement).await;
    }
    // The address may have set one.
    let before: String = client.query_one("SHOW lock_timeout", &[]).await?.get(0);
    client.batch_execute("SET lock_timeout = '3s'").await?;
    let detached = client.batch_execute(&statement).await;
    client.batch_execute(&format!("SET lock_timeout = '{before}'")).await?;
    detached
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::JobId;

    #[test]
    fn an_id_made_now_lies_in_the_partition_of_this_week() {
        let id = JobId::now();
        let week = id.unix_ms() / WEEK_MS;
        assert!(first_id(week) <= Uuid::from(id) && Uuid::from(id) < first_id(week + 1));
    }

    #[test]
    fn a_week_without_a_partition_is_missing_once_an_id_can_fall_into_it() {
        let (week, day) = (2_900, 86_400_000);
        let present: BTreeMap<u64, Standing> =
            (week - 4..=week).map(|week| (week, Standing::Attached)).collect();
        let look = |now_ms| ahead(&present, now_ms, Duration::from_secs(28 * 86_400));
        let monday = look(week * WEEK_MS);
        assert_eq!(monday, PartitionsAhead { missing: 0, ahead: Duration::from_millis(WEEK_MS) });
        let last_day = look((week + 1) * WEEK_MS - day);
        assert_eq!(last_day, PartitionsAhead { missing: 1, ahead: Duration::from_millis(day) });
        let none =
            ahead(&BTreeMap::from([(week, Standing::Leaving)]), week * WEEK_MS, Duration::from_secs(1));
        assert_eq!(none, PartitionsAhead { missing: 2, ahead: Duration::ZERO });
    }
}
