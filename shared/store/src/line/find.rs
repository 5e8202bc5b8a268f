//! Which lines of a pool have jobs: found from one to the next, and by when jobs entered them.
//!
//! Where a snapshot elsewhere keeps Postgres from removing what has left, the walk from one line to the next passes all
//! of that. By time, a reading passes only what has left of those that entered since.

use std::collections::HashSet;
use std::time::Duration;

use job::Name;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::database::{query, read_name};
use crate::{Store, StoreError};

/// A line of a pool, and how far it was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinePlace {
    /// 0 for jobs that have begun; else the number of the lane.
    pub lane: i16,
    /// The tenant.
    pub tenant: String,
    /// The limit keys, with commas.
    pub line: String,
    /// Its jobs are behind this place.
    pub behind: i64,
}

/// From when on, and up to when, lines are found by the time at which their jobs entered them.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// By Postgres's clock, in microseconds since 1970; or later, if `ago` says so.
    pub from: i64,
    /// Not longer ago than this, in microseconds.
    pub ago: i64,
    /// For how long, in microseconds.
    pub width: i64,
}

/// The lines that jobs have entered within a time.
#[derive(Clone, Debug, Default)]
pub struct Entered {
    /// Each is placed before its first job of that time.
    pub lines: Vec<LinePlace>,
    /// How many jobs they have of that time.
    pub jobs: i64,
    /// The first moment of the time, by Postgres's clock, in microseconds since 1970; so are the others.
    pub since: i64,
    /// When the last of the jobs entered.
    pub last: Option<i64>,
    /// Now.
    pub now: i64,
}

/// The first job of a pool's first line, or of the one behind a line, up to a lane if there is a bound, by the index
/// `harness_jobs_line`. It reads no other job; beyond the bound it passes none that have left, either.
macro_rules! first_in_line {
    ($pool:literal $(, $behind:literal $(, $up_to:literal)?)?) => {
        concat!(
            "(SELECT pool, lane, tenant COLLATE \"C\" AS tenant, line, seq, job_id FROM harness_jobs j
               WHERE j.state = 'waiting' AND j.pool = ",
            $pool,
            $(" AND (j.lane, j.tenant COLLATE \"C\", j.line) > ", $behind, $(" AND j.lane <= ", $up_to,)?)?
            " ORDER BY j.lane, j.tenant COLLATE \"C\", j.line, j.seq LIMIT 1)"
        )
    };
}
pub(crate) use first_in_line;

/// From one line to the next, behind this one.
const FIND: &str = concat!(
    "WITH RECURSIVE lines AS (
        SELECT f.*, 1 AS found FROM ",
    first_in_line!("$1", "($2::smallint, $3::text, $4::text)", "$6::smallint"),
    " f
        UNION ALL
        SELECT n.*, l.found + 1 FROM lines l CROSS JOIN LATERAL ",
    first_in_line!("$1", "(l.lane, l.tenant, l.line)", "$6::smallint"),
    " n
         WHERE l.found < $5
    )
    SELECT lane, tenant, line, seq FROM lines"
);

/// By the index `harness_jobs_line_entered`.
const ENTERED: &str = r#"
    WITH span AS MATERIALIZED (
        SELECT greatest('epoch'::timestamptz + $2::bigint * interval '1 microsecond',
                        now() - $3::bigint * interval '1 microsecond') AS since
    )
    SELECT (extract(epoch FROM now()) * 1000000)::bigint, (extract(epoch FROM span.since) * 1000000)::bigint,
           e.jobs, (extract(epoch FROM e.last) * 1000000)::bigint, e.lane, e.tenant, e.line, e.seq
      FROM span LEFT JOIN LATERAL (
           SELECT lane, tenant, line, min(seq) AS seq, count(*) AS jobs, max(state_since) AS last
             FROM (SELECT lane, tenant COLLATE "C" AS tenant, line, seq, state_since FROM harness_jobs
                    WHERE state = 'waiting' AND pool = $1 AND state_since >= span.since
                      AND state_since < span.since + $4::bigint * interval '1 microsecond'
                    ORDER BY state_since LIMIT $5) entered
            GROUP BY lane, tenant, line) e ON true"#;

/// A pool in which nothing waited a while ago is asked about what has entered since.
const WITH_LINES: &str = concat!(
    "SELECT p.pool FROM unnest($1::text[], $2::bigint[]) AS p(pool, ago)
      WHERE CASE WHEN p.ago IS NULL THEN (SELECT f.job_id FROM ",
    first_in_line!("p.pool"),
    " f)
                 ELSE (SELECT j.job_id FROM harness_jobs j
                        WHERE j.state = 'waiting' AND j.pool = p.pool
                          AND j.state_since >= now() - p.ago * interval '1 microsecond'
                        ORDER BY j.state_since LIMIT 1) END IS NOT NULL"
);

impl Store {
    /// Finds the lines of a pool behind this one (from the first, without one) up to this lane, at most `most` of them.
    /// Each is placed before its first job.
    pub async fn find_lines(
        &self,
        pool: &Name,
        behind: Option<&LinePlace>,
        up_to: i16,
        most: i32,
    ) -> Result<Vec<LinePlace>, StoreError> {
        let (lane, tenant, line) =
            behind.map_or((-1, "", ""), |place| (place.lane, place.tenant.as_str(), place.line.as_str()));
        let params: [&(dyn ToSql + Sync); 6] = [&pool.as_str(), &lane, &tenant, &line, &most, &up_to];
        let rows = query(&self.pool, "find_lines", FIND, &params).await?;
        Ok(rows.iter().map(|row| read_place(row, 0)).collect())
    }

    /// Finds the lines of a pool that jobs have entered within this time and wait in, by the first `most` of these
    /// jobs.
    pub async fn entered_lines(&self, pool: &Name, since: Since, most: i64) -> Result<Entered, StoreError> {
        let Since { from, ago, width } = since;
        let params: [&(dyn ToSql + Sync); 5] = [&pool.as_str(), &from, &ago, &width, &most];
        let rows = query(&self.pool, "entered_lines", ENTERED, &params).await?;
        let mut entered = Entered::default();
        for row in &rows {
            (entered.now, entered.since) = (row.get(0), row.get(1));
            // None has entered.
            let Some(jobs) = row.get::<_, Option<i64>>(2) else { continue };
            entered.jobs += jobs;
            entered.last = entered.last.max(row.get(3));
            entered.lines.push(read_place(row, 4));
        }
        Ok(entered)
    }

    /// Returns those of these pools in which jobs wait in line; of a pool with a time, in which some have entered it
    /// since so long ago and wait.
    pub async fn pools_with_lines(
        &self,
        pools: &[(Name, Option<Duration>)],
    ) -> Result<HashSet<Name>, StoreError> {
        let (names, ago): (Vec<&str>, Vec<Option<i64>>) = pools
            .iter()
            .map(|(pool, ago)| (pool.as_str(), ago.map(|ago| ago.as_micros().try_into().unwrap_or(i64::MAX))))
            .unzip();
        let rows = query(&self.pool, "pools_with_lines", WITH_LINES, &[&names, &ago]).await?;
        Ok(rows.iter().filter_map(|row| read_name(row, 0)).collect())
    }
}

/// Reads a line that is placed before its first job.
fn read_place(row: &Row, column: usize) -> LinePlace {
    LinePlace {
        lane: row.get(column),
        tenant: row.get(column + 1),
        line: row.get(column + 2),
        behind: row.get::<_, i64>(column + 3) - 1,
    }
}
