//! Which pools have a line, and what was seen of it last.

use std::collections::BTreeMap;
use std::time::Duration;

use job::Name;
use tokio_postgres::types::ToSql;

use super::facts::{Grant, PoolSeen};
use crate::access::logged;
use crate::database::{query, read_millis, read_name};
use crate::{Store, StoreError};

/// A pool that has a row.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// Its name.
    pub pool: Name,
    /// Whether its jobs wait in a line.
    pub line: bool,
    /// What the admitter saw last; nothing before its first look.
    pub seen: Option<PoolSeen>,
    /// How long ago that was; since the line was given, before its first look.
    pub unseen: Duration,
}

/// The answer to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedPool {
    /// It is changed, and the log says so.
    Done,
    /// It was like this before; nothing was changed.
    Before,
}

const SET_LINE: &str = concat!(
    "WITH made AS (
         INSERT INTO harness_pools (pool, line)
         SELECT $2, $3 WHERE $3 OR (SELECT p.pool FROM harness_pools p WHERE p.pool = $2) IS NOT NULL
         ON CONFLICT (pool) DO UPDATE SET line = excluded.line, changed_at = now(), seen_at = NULL, waiting = 0,
                                          could_run = 0, seen = NULL, granted_until = NULL
          WHERE harness_pools.line <> excluded.line
         RETURNING pool, line)",
    logged!(
        "line_changed",
        "NULL::text",
        "jsonb_build_object('pool', pool, 'line', line)",
        "made"
    )
);

const LIST: &str = "
    SELECT pool, line, (extract(epoch FROM now() - coalesce(seen_at, changed_at)) * 1000)::bigint, seen::text
      FROM harness_pools ORDER BY pool";

/// What waits in a pool that has no line any more comes due like any other job.
const LEAVE: &str = "
    UPDATE harness_jobs SET state = 'scheduled', due_at = now(), state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT j.job_id FROM unnest($1::text[]) AS p(pool)
            CROSS JOIN LATERAL (SELECT job_id FROM harness_jobs
                                 WHERE state = 'waiting' AND pool = p.pool ORDER BY lane, (tenant COLLATE \"C\"), line, seq
                                 LIMIT $2 FOR UPDATE SKIP LOCKED) j
            LIMIT $2))
    RETURNING job_id";

/// A pool that had a line keeps its row. Its name has the collation C, which the indexes on jobs have not.
const POOLS_WITHOUT: &str = "
    SELECT pool FROM harness_pools p
     WHERE NOT line
       AND (SELECT j.job_id FROM harness_jobs j
             WHERE j.state = 'waiting' AND j.pool = p.pool COLLATE \"default\" LIMIT 1) IS NOT NULL";

impl Store {
    /// Gives a pool a line, or takes it away; the operators' log names the actor. What waits when the line is taken away
    /// goes to the broker.
    pub async fn set_line(&self, actor: &str, pool: &Name, line: bool) -> Result<ChangedPool, StoreError> {
        let made = self.act("set_line", SET_LINE, &[&actor, &pool.as_str(), &line]).await?;
        Ok(if made > 0 { ChangedPool::Done } else { ChangedPool::Before })
    }

    /// Returns the pools that have a row, by name.
    pub async fn pools(&self) -> Result<Vec<PoolView>, StoreError> {
        let rows = query(&self.pool, "pools", LIST, &[]).await?;
        let read = |row: &tokio_postgres::Row| {
            Some(PoolView {
                pool: read_name(row, 0)?,
                line: row.get(1),
                seen: row.get::<_, Option<&str>>(3).map(PoolSeen::from_json),
                unseen: read_millis(row, 2).unwrap_or_default(),
            })
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Makes jobs due that wait in pools which have no line any more, at most so many. Returns how many.
    pub async fn leave_lines(&self, most: i64) -> Result<usize, StoreError> {
        let rows = query(&self.pool, "pools_without_line", POOLS_WITHOUT, &[]).await?;
        let pools: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if pools.is_empty() {
            return Ok(0);
        }
        Ok(query(&self.pool, "leave_lines", LEAVE, &[&pools, &most]).await?.len())
    }

    /// Writes what the admitter sees of these pools, if it still leads. What it granted before is over with it.
    pub async fn note_seen(
        &self,
        leadership: &crate::Leadership,
        seen: &BTreeMap<Name, (PoolSeen, Grant)>,
    ) -> Result<(), StoreError> {
        let (pools, all): (Vec<&str>, Vec<&(PoolSeen, Grant)>) =
            seen.iter().map(|(pool, seen)| (pool.as_str(), seen)).unzip();
        let of = |number: fn(&(PoolSeen, Grant)) -> i64| -> Vec<i64> {
            all.iter().map(|seen| number(seen)).collect()
        };
        let waiting = of(|(seen, _)| seen.waiting() as i64);
        let could_run = of(|(seen, _)| seen.could_run as i64);
        let granted = of(|(_, grant)| grant.messages as i64);
        let counted_from = of(|(_, grant)| grant.counted_from);
        let texts: Vec<String> = all.iter().map(|(seen, _)| seen.to_json()).collect();
        let params: [&(dyn ToSql + Sync); 6] =
            [&pools, &waiting, &could_run, &texts, &granted, &counted_from];
        super::admit::under(&self.pool, leadership, "note_seen", super::facts::NOTE, &params).await?;
        Ok(())
    }
}
