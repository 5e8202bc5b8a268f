//! The inbox: jobs that services have enqueued within their own transactions, by the function `harness_enqueue`.
//!
//! A row is seen here once its transaction has committed. The process that leads reads it, takes its job into
//! `harness_jobs` like any other, and then removes the row. So a row may be read twice, and each step is safe to repeat.
//! No transaction of ours holds a row of the inbox while it waits for one of a service's.

mod roles;

use std::time::Duration;

use job::{JobId, Tenant};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

pub use roles::{ChangedRole, RoleView};

use crate::database::{query, read_job_id, rfc3339, uuids};
use crate::{JobView, Store, StoreError};

/// A job in the inbox.
#[derive(Clone, Debug)]
pub struct InboxRow {
    /// Its place.
    pub seq: i64,
    /// The tenant of the role that enqueued it.
    pub tenant: Tenant,
    /// The id that the service was given for it.
    pub job_id: JobId,
    /// What was enqueued; `None` if it is larger than what was asked for.
    pub job: Option<String>,
    /// Its size.
    pub bytes: usize,
    /// Whether the role may name a queue for replies.
    pub may_reply: bool,
    /// Unix time in milliseconds, by Postgres's clock, when this was read.
    pub read_unix_ms: u64,
}

/// A tenant of which there may be rows to read.
#[derive(Clone, Debug)]
pub struct InboxTurn {
    /// The tenant.
    pub tenant: Tenant,
    /// Its rows are behind this place.
    pub place: i64,
    /// The last place of its rows that was seen.
    pub last: i64,
}

/// What waits in the inbox.
#[derive(Clone, Copy, Debug, Default)]
pub struct InboxBacklog {
    /// How many jobs; more than [`InboxBacklog::MOST`] are not counted.
    pub jobs: u64,
    /// How long the oldest one has waited.
    pub oldest: Duration,
}

impl InboxBacklog {
    /// Rows beyond this are not counted.
    pub const MOST: u64 = 10_000;
}

/// From one tenant to the next by the index, so that a tenant with many rows holds up no other. It goes over all rows that
/// were taken and that Postgres cannot remove yet.
const FIND_ALL: &str = "
    WITH RECURSIVE tenants AS (
        (SELECT tenant, seq FROM harness_inbox ORDER BY tenant, seq LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.seq
          FROM tenants t
         CROSS JOIN LATERAL (SELECT tenant, seq FROM harness_inbox i WHERE i.tenant > t.tenant
                              ORDER BY i.tenant, i.seq LIMIT 1) n
    )
    SELECT tenant, seq, seq FROM tenants";

const FIND_NEW: &str = "
    SELECT tenant, min(seq), max(seq)
      FROM (SELECT tenant, seq FROM harness_inbox WHERE seq > $1 ORDER BY seq LIMIT $2) new GROUP BY tenant";

/// Of each tenant behind its own place, in the order of the tenants as they are given.
const READ: &str = "
    WITH picked AS (
        SELECT r.*, t.turn FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS t(tenant, place, turn)
         CROSS JOIN LATERAL (SELECT seq, tenant, job_id, bytes, may_reply FROM harness_inbox i
                              WHERE i.tenant = t.tenant AND i.seq > t.place AND i.seq <> ALL($7::bigint[])
                              ORDER BY i.seq LIMIT $3) r
         LIMIT $4
    ), bounded AS (
        SELECT *, sum(least(bytes, $5)) OVER (ORDER BY turn, seq) - least(bytes, $5) AS before FROM picked
    )
    SELECT b.seq, b.tenant, b.job_id, b.bytes, b.may_reply,
           CASE WHEN b.bytes <= $5 THEN (SELECT job::text FROM harness_inbox i WHERE i.seq = b.seq) END,
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint
      FROM bounded b WHERE before < $6::bigint ORDER BY turn, seq";

const READ_THESE: &str = "
    SELECT seq, tenant, job_id, bytes, may_reply, CASE WHEN bytes <= $2 THEN job::text END,
           (extract(epoch FROM clock_timestamp()) * 1000)::bigint
      FROM harness_inbox WHERE job_id = ANY($1) ORDER BY seq";

const REMOVE: &str = "DELETE FROM harness_inbox WHERE seq = ANY($1)";

/// In one walk: where many rows were taken that Postgres cannot remove yet, that is what it costs.
const BACKLOG: &str = "
    SELECT count(*), coalesce(extract(epoch FROM now() - min(written_at)), 0)::float8
      FROM (SELECT written_at FROM harness_inbox ORDER BY seq LIMIT $1) counted";

const VIEW: &str =
    concat!("SELECT job_id, tenant, ", rfc3339!("written_at"), " FROM harness_inbox WHERE job_id = ANY($1)");

impl Store {
    /// Finds all tenants that have rows. It costs what lies there: where that is much, it is for now and then.
    pub async fn find_in_inbox(&self) -> Result<Vec<InboxTurn>, StoreError> {
        let rows = query(&self.pool, "find_in_inbox", FIND_ALL, &[]).await?;
        Ok(rows.iter().filter_map(read_turn).collect())
    }

    /// Finds the tenants of the next rows behind this place, at most `most` rows.
    pub async fn find_new_in_inbox(&self, behind: i64, most: i64) -> Result<Vec<InboxTurn>, StoreError> {
        let rows = query(&self.pool, "find_new_in_inbox", FIND_NEW, &[&behind, &most]).await?;
        Ok(rows.iter().filter_map(read_turn).collect())
    }

    /// Reads the next jobs of these tenants, each behind its place: of each at most `of_each`, at most `most` in all, and no
    /// more than `most_bytes`. So those of the last ones may be left. A job larger than `largest` comes without its text. Those at
    /// the places `apart` are left out.
    pub async fn read_inbox(
        &self,
        turns: &[(&Tenant, i64)],
        apart: &[i64],
        bounds: InboxBounds,
    ) -> Result<Vec<InboxRow>, StoreError> {
        let InboxBounds { of_each, most, largest, most_bytes } = bounds;
        let (tenants, places): (Vec<&str>, Vec<i64>) =
            turns.iter().map(|(tenant, place)| (tenant.as_str(), *place)).unzip();
        let params: [&(dyn ToSql + Sync); 7] =
            [&tenants, &places, &of_each, &most, &largest, &most_bytes, &apart];
        let rows = query(&self.pool, "read_inbox", READ, &params).await?;
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Reads those of these jobs that are in the inbox.
    pub async fn read_from_inbox(&self, jobs: &[JobId], largest: i64) -> Result<Vec<InboxRow>, StoreError> {
        let rows = query(&self.pool, "read_from_inbox", READ_THESE, &[&uuids(jobs), &largest]).await?;
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Removes rows whose jobs are in the ledger, or have ended.
    pub async fn leave_inbox(&self, places: &[i64]) -> Result<(), StoreError> {
        if !places.is_empty() {
            query(&self.pool, "leave_inbox", REMOVE, &[&places]).await?;
        }
        Ok(())
    }

    /// Counts what waits in the inbox.
    pub async fn inbox_backlog(&self) -> Result<InboxBacklog, StoreError> {
        let most = InboxBacklog::MOST as i64;
        let rows = query(&self.pool, "inbox_backlog", BACKLOG, &[&most]).await?;
        let read = |row: &Row| InboxBacklog {
            jobs: row.get::<_, i64>(0).unsigned_abs(),
            oldest: Duration::from_secs_f64(row.get::<_, f64>(1).max(0.0)),
        };
        Ok(rows.first().map(read).unwrap_or_default())
    }

    /// The jobs among these that are in the inbox, as their callers see them.
    pub(crate) async fn inbox_views(&self, jobs: &[JobId]) -> Result<Vec<JobView>, StoreError> {
        let rows = query(&self.pool, "inbox_views", VIEW, &[&uuids(jobs)]).await?;
        Ok(rows.iter().filter_map(read_view).collect())
    }
}

/// How much is read at a time.
#[derive(Clone, Copy, Debug)]
pub struct InboxBounds {
    /// Jobs of a tenant.
    pub of_each: i64,
    /// Jobs.
    pub most: i64,
    /// Bytes of a job.
    pub largest: i64,
    /// Bytes of all; one job may go beyond.
    pub most_bytes: i64,
}

/// A tenant that is no name was written by hand. No process could do anything with such a row; an audit finds it.
fn read(row: &Row) -> Option<InboxRow> {
    Some(InboxRow {
        seq: row.get(0),
        tenant: row.get::<_, &str>(1).parse().ok()?,
        job_id: read_job_id(row, 2),
        bytes: row.get::<_, i64>(3).unsigned_abs() as usize,
        may_reply: row.get(4),
        job: row.get(5),
        read_unix_ms: row.get::<_, i64>(6).unsigned_abs(),
    })
}

fn read_turn(row: &Row) -> Option<InboxTurn> {
    let tenant = row.get::<_, &str>(0).parse().ok()?;
    Some(InboxTurn { tenant, place: row.get::<_, i64>(1) - 1, last: row.get(2) })
}

fn read_view(row: &Row) -> Option<JobView> {
    let (job_id, tenant) = (read_job_id(row, 0), row.get::<_, &str>(1).parse::<Tenant>().ok()?);
    Some(JobView::scheduled(job_id, tenant, row.get(2)))
}
