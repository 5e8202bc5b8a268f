//! Audit: proves on a live system that nothing was lost, doubled or paid twice. It reads, and changes nothing.
//!
//! All checks of a run see one snapshot (REPEATABLE READ, read only). Each transaction of the ledger writes
//! one whole fact, so a snapshot never shows half of one, and a fleet at work gives no false alarm.
//! [`Kind::Conservation`] is what every snapshot must show; a finding means a bug, or rows changed by hand.
//! [`Kind::Liveness`] is what a healthy fleet moves on sooner or later; a finding means that no process does.
//!
//! # What needs no check
//! These need no check: two live rows or two results of one job (primary keys; a result's partition follows
//! from its id), a state outside of its set, a running job without a worker's id or an id without a run
//! (CHECK constraints), and a result in the wrong partition (Postgres routes it). That those constraints
//! still exist is checked: `guards`. The order in which a session's results were written is not, because
//! `finished_at` is the start of a transaction that may have waited.
//!
//! # What spend equals
//! A checkpoint is counted in two places: in the result of its job, when that ends, and in its session, when
//! some job of the session folds it. Until it is folded, its row stays, even beyond its job's end: a job that
//! ends without a fold leaves its rows to the next one that folds. No other job of the session ends while one
//! that has begun is live, so a fold takes whole jobs; but a fold within a run takes what its job has appended so
//! far, and the job's row counts that. Therefore, for iterations, cost and both kinds of tokens, at every moment:
//!
//! > session - what was folded within the run of its live job + checkpoints whose job has ended = sum of all results
//! > of the session
//!
//! Retention removes results, but not sessions. A session counts its ends in `version`. If as many results
//! are left, the equation is exact. If fewer are left, the left side is the greater one. Missing results are
//! a finding only where retention cannot have taken one: in sessions made no sooner than one retention after
//! the first id of the oldest partition, because no job id is older than a retention when its session is
//! made. (So while a lowered retention is new, the results of ids that were older than it at their first
//! claim are wrongly reported as missing.)
//!
//! # What it costs
//! Seven of the checks read all results. The others follow the live jobs and the checkpoints. That took 4 s
//! for a million results of 200 000 sessions on a small machine, with one core for Postgres. During that time
//! the snapshot keeps vacuum from removing the rows that die. Sorts and hashes beyond some hundreds of MB go
//! to disk. [`AuditScope::since`] looks at fewer rows, and a hot standby serves as well.

mod checks;
mod money;

use std::time::{Duration, Instant};

use deadpool_postgres::{ClientWrapper, Object};
use serde::Serialize;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use self::checks::{CHECKS, Check};
use crate::database::{millis, rfc3339};
use crate::upkeep::{WEEK_MS, first_id};
use crate::{Store, StoreError};

pub use self::checks::Kind;

/// What an audit looks at, and how closely.
#[derive(Clone, Debug)]
pub struct AuditScope {
    /// Limits the audit to results whose id is no older than this, and to sessions that changed since. Live
    /// jobs are looked at in any case.
    pub since: Option<Duration>,
    /// The maximum number of offenders that are named per check. The others are only counted.
    pub limit: u32,
    /// How long a job may wait for its next step before the liveness checks name it.
    pub stuck_after: Duration,
    /// How long results are kept.
    pub retention: Duration,
}

/// A row that breaks a rule.
#[derive(Clone, Debug, Serialize)]
pub struct Offender {
    /// The job's id; or the session, or the object of the schema, where no single job is at fault.
    pub id: String,
    /// What is wrong with it.
    pub detail: String,
}

/// One check and what it found.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Its name.
    pub check: &'static str,
    /// What it is about.
    pub kind: Kind,
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// How many rows break it.
    pub found: i64,
    /// The first of them.
    pub offenders: Vec<Offender>,
}

/// A whole audit.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// The moment of the snapshot, by Postgres's clock: RFC 3339, UTC.
    pub at: String,
    /// How long it took.
    pub took_ms: u64,
    /// In the order of [`Kind`].
    pub checks: Vec<Checked>,
}

impl Audit {
    /// Counts the checks of this kind that found something.
    pub fn findings(&self, kind: Kind) -> usize {
        self.checks.iter().filter(|checked| checked.kind == kind && checked.found > 0).count()
    }
}

/// How long a rescue may take before a job in a dead worker's hands is a finding.
const GRACE: Duration = Duration::from_secs(60);
/// How far ahead of the present there must be partitions. Upkeep makes them earlier.
const AHEAD_MS: u64 = 2 * 86_400_000;
/// The time limit of one check. Postgres ends it sooner (`statement_timeout` below), so an answer that takes
/// this long was lost in the network.
const BOUND: Duration = Duration::from_secs(610);

/// The lock is taken before the snapshot, so that no partition that the snapshot shows is dropped while the
/// audit reads. It holds up neither writers nor new partitions, and holds up a removal no more than any long
/// reader does. The pool's planner settings are for short statements by index; these read tables.
const OPEN: &str = "
    BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY;
    LOCK TABLE harness_results, harness_labels, harness_calls, harness_history IN ACCESS SHARE MODE;
    SET LOCAL timezone = 'UTC';
    SET LOCAL statement_timeout = '600s';
    SET LOCAL plan_cache_mode = force_custom_plan;
    SET LOCAL work_mem = '64MB';
    SET LOCAL enable_seqscan = on;
    SET LOCAL enable_bitmapscan = on;
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on;
    SET LOCAL max_parallel_workers_per_gather = 0";

const READ_MOMENT: &str = concat!(
    "SELECT ",
    rfc3339!("now()"),
    ", extract(epoch FROM now())::float8,
       (SELECT min(substring(c.relname FROM '\\d+$')::bigint)
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'harness_results'::regclass AND NOT i.inhdetachpending
           AND c.relname ~ '^harness_results_w\\d+$')"
);

/// The parameters that every check is given, whether or not it uses them.
struct Bounds {
    /// $1: results are checked from this id on.
    first: Uuid,
    /// $2: sessions that changed since then are checked; in Unix seconds.
    since_s: f64,
    /// $3: results of smaller ids may have been dropped.
    kept_from: Uuid,
    /// $4: sessions made since then have lost no result to retention; in Unix seconds.
    whole_from_s: f64,
    /// $5
    grace_ms: f64,
    /// $6
    stuck_ms: f64,
    /// $7 and $8: there must be partitions from the one week to the other.
    weeks: (i64, i64),
    /// $9: the most rows.
    limit: i64,
}

impl Bounds {
    fn new(scope: &AuditScope, now_s: f64, oldest_week: Option<i64>) -> Bounds {
        let now_ms = (now_s * 1e3) as u64;
        let retention_ms = scope.retention.as_millis() as u64;
        let since_ms = scope.since.map(|since| now_ms.saturating_sub(since.as_millis() as u64));
        let oldest_week = oldest_week.map(|week| week.unsigned_abs());
        let week = |ms: u64| (ms / WEEK_MS) as i64;
        Bounds {
            first: since_ms.map_or(Uuid::nil(), |ms| Uuid::from_u128(u128::from(ms) << 80)),
            since_s: since_ms.map_or(f64::NEG_INFINITY, |ms| ms as f64 / 1e3),
            kept_from: oldest_week.map_or(Uuid::max(), first_id),
            whole_from_s: oldest_week
                .map_or(f64::INFINITY, |week| (week * WEEK_MS + retention_ms) as f64 / 1e3),
            grace_ms: millis(GRACE),
            stuck_ms: millis(scope.stuck_after),
            weeks: (week(now_ms.saturating_sub(retention_ms)), week(now_ms + AHEAD_MS)),
            limit: i64::from(scope.limit.max(1)),
        }
    }

    fn params(&self) -> [(&(dyn ToSql + Sync), Type); 9] {
        [
            (&self.first, Type::UUID),
            (&self.since_s, Type::FLOAT8),
            (&self.kept_from, Type::UUID),
            (&self.whole_from_s, Type::FLOAT8),
            (&self.grace_ms, Type::FLOAT8),
            (&self.stuck_ms, Type::FLOAT8),
            (&self.weeks.0, Type::INT8),
            (&self.weeks.1, Type::INT8),
            (&self.limit, Type::INT8),
        ]
    }
}

impl Store {
    /// Checks the whole ledger in one snapshot. Memory is bounded on both sides: by [`AuditScope::limit`]
    /// here and by `work_mem` in Postgres.
    pub async fn audit(&self, scope: &AuditScope) -> Result<Audit, StoreError> {
        let started = Instant::now();
        // The audit takes a connection out of the pool and closes it at its end, because one that is given up
        // in the middle is still in its transaction.
        let client = Object::take(self.pool.get().await?);
        let opening = client.batch_execute(OPEN);
        bounded("audit", opening).await?;
        let moment = bounded("audit", client.query_one(READ_MOMENT, &[])).await?;
        let bounds = Bounds::new(scope, moment.get(1), moment.get(2));
        let mut checks = Vec::with_capacity(CHECKS.len());
        for check in &CHECKS {
            checks.push(look(&client, check, &bounds).await?);
        }
        Ok(Audit { at: moment.get(0), took_ms: started.elapsed().as_millis() as u64, checks })
    }
}

/// Runs one check. Its statement selects an id and a detail for each row that breaks the rule.
async fn look(client: &ClientWrapper, check: &Check, bounds: &Bounds) -> Result<Checked, StoreError> {
    let Check { name, kind, rule, sql } = *check;
    // MATERIALIZED makes Postgres plan the rule for all its rows. With a LIMIT alone, it would plan for the
    // first few, which may never come.
    let sql = format!(
        "/* audit: {name} */ WITH found(id, detail) AS MATERIALIZED ({sql})
         SELECT (SELECT count(*) FROM found), id, detail FROM found ORDER BY id LIMIT $9"
    );
    let rows = bounded(name, client.query_typed(&sql, &bounds.params())).await?;
    let offender = |row: &tokio_postgres::Row| Offender { id: row.get(1), detail: row.get(2) };
    Ok(Checked {
        check: name,
        kind,
        rule,
        found: rows.first().map_or(0, |row| row.get(0)),
        offenders: rows.iter().map(offender).collect(),
    })
}

async fn bounded<T>(
    name: &'static str,
    asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, StoreError> {
    match timeout(BOUND, asking).await {
        Ok(answer) => answer.map_err(|error| StoreError::from_pg(name, error)),
        Err(elapsed) => Err(elapsed.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn scope(since: Option<Duration>) -> AuditScope {
        AuditScope { since, limit: 5, stuck_after: Duration::ZERO, retention: 30 * DAY }
    }

    #[test]
    fn a_session_is_whole_when_no_id_of_its_jobs_can_lie_in_a_partition_that_was_dropped() {
        let now_s = 2_900.5 * WEEK_MS as f64 / 1e3;
        let bounds = Bounds::new(&scope(None), now_s, Some(2_896));
        assert_eq!(bounds.kept_from, first_id(2_896));
        let oldest_id_s = bounds.whole_from_s - 30.0 * 86_400.0;
        assert_eq!(oldest_id_s, 2_896.0 * WEEK_MS as f64 / 1e3);
        assert_eq!(bounds.weeks, (2_896, 2_900));
        assert_eq!((bounds.first, bounds.since_s), (Uuid::nil(), f64::NEG_INFINITY));
        // Without any partition, nothing can be said about missing results.
        let bounds = Bounds::new(&scope(None), now_s, None);
        assert_eq!((bounds.kept_from, bounds.whole_from_s), (Uuid::max(), f64::INFINITY));
    }

    #[test]
    fn since_cuts_ids_and_times_at_the_same_moment() {
        let bounds = Bounds::new(&scope(Some(DAY)), 1_700_000_000.0, Some(2_800));
        assert_eq!((bounds.first.as_u128() >> 80) as f64 / 1e3, bounds.since_s);
        assert_eq!(bounds.since_s, 1_700_000_000.0 - 86_400.0);
    }
}
