//! Schedules that are due. The process that leads reads them, decides which instants fire, and writes both in one
//! statement: the jobs in the inbox, and the next instant in the row.

use std::time::Duration;

use job::JobId;
use tokio_postgres::Row;
use uuid::Uuid;

use super::Instant;
use crate::database::{LOCK_LEADERSHIP, Tx, leads, query, uuids};
use crate::{Leadership, Store, StoreError};

/// A schedule that is due.
#[derive(Clone, Debug)]
pub struct DueSchedule {
    /// Its id.
    pub id: Uuid,
    /// What is decided on this row counts only while it is the same.
    pub version: i64,
    /// Whose it is, and its name, for people.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// A cron expression; without one, `at` is given.
    pub cron: Option<String>,
    /// The one moment: RFC 3339.
    pub at: Option<String>,
    /// An IANA time zone.
    pub zone: String,
    /// How long after its instant a firing may be due, in milliseconds.
    pub jitter_ms: u64,
    /// `skip`, `last` or `all`.
    pub catch_up: String,
    /// For how long an instant may be made up for, in milliseconds.
    pub within_ms: u64,
    /// `skip` or `on_busy`.
    pub overlap: String,
    /// Its next instant.
    pub next: Instant,
    /// Whether its tenant is closed.
    pub closed: bool,
    /// The size of its job.
    pub bytes: u64,
    /// Postgres's clock when this was read.
    pub now_ms: u64,
}

/// What was decided about a schedule.
#[derive(Clone, Debug)]
pub struct MovedSchedule {
    /// Its id.
    pub id: Uuid,
    /// The row that this was decided on.
    pub version: i64,
    /// The jobs of the instants that fire, oldest first.
    pub jobs: Vec<JobId>,
    /// How many instants are missed.
    pub missed: u64,
    /// Its next instant.
    pub next: Option<Instant>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// How many jobs were written to the inbox.
    pub fired: u64,
    /// How many instants were skipped: the job before had not ended, or as many of the tenant's jobs as may wait are in the inbox.
    pub skipped: u64,
    /// How many instants were missed.
    pub missed: u64,
}

/// How schedules stand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScheduleBacklog {
    /// Schedules that fire.
    pub active: u64,
    /// Paused ones.
    pub paused: u64,
    /// For how long the one that waits longest is due.
    pub late: Duration,
}

const DUE: &str = "
    SELECT s.id, s.version, s.tenant, s.name, s.cron, to_char(s.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'),
           s.zone, s.jitter_ms, s.catch_up, s.within_ms, s.overlap, (extract(epoch FROM s.next_at) * 1000)::bigint,
           (extract(epoch FROM s.due_at) * 1000)::bigint,
           (SELECT t.closed_at IS NOT NULL FROM harness_tenants t WHERE t.name = s.tenant) IS NOT FALSE,
           octet_length(s.job::text)::bigint, (extract(epoch FROM now()) * 1000)::bigint
      FROM harness_schedules s
     WHERE paused_at IS NULL AND due_at IS NOT NULL AND due_at <= now()
     ORDER BY due_at LIMIT $1";

/// While the transaction runs, the leadership cannot be renewed: it must end before that runs out.
const SET_TIMEOUT: &str = "SELECT set_config('statement_timeout', '2s', true)";

/// Follows [`LOCK_LEADERSHIP`]. A row that is locked or has changed since it was read is left, and so are its jobs. One whose
/// overlaps are skipped fires its first instant alone, and that only if the job before is neither live nor in the inbox. And a
/// tenant with a bound of what waits has no more in the inbox than that: the rest is skipped.
const FIRE: &str = concat!(
    "
    WITH given AS (
        SELECT * FROM unnest($4::uuid[], $5::bigint[], $6::bigint[], $7::float8[], $8::float8[])
               AS t(id, version, missed, next_ms, due_ms)
    ), held AS MATERIALIZED (
        SELECT s.id, s.tenant, s.job, s.may_reply, s.overlap = 'skip' AS alone, s.last_job
          FROM harness_schedules s
         WHERE s.id = ANY($4) AND s.version = ($5::bigint[])[array_position($4, s.id)] AND s.paused_at IS NULL
           AND ",
    leads!(),
    "
         ORDER BY s.id FOR UPDATE OF s SKIP LOCKED
    ), candidates AS MATERIALIZED (
        SELECT f.job_id, f.turn, h.*,
               NOT alone OR (row_number() OVER (PARTITION BY h.id ORDER BY f.turn) = 1
                             AND (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = h.last_job) IS NULL
                             AND (SELECT i.seq FROM harness_inbox i
                                   WHERE i.job_id = h.last_job AND i.tenant = h.tenant) IS NULL) AS may
          FROM unnest($9::uuid[], $10::uuid[]) WITH ORDINALITY AS f(id, job_id, turn) JOIN held h ON h.id = f.id
    ), bounds AS MATERIALIZED (
        SELECT t.name AS tenant, t.max_waiting - (
                   SELECT count(*) FROM (SELECT FROM harness_inbox i WHERE i.tenant = t.name LIMIT t.max_waiting) waits) AS room
          FROM harness_tenants t
         WHERE t.max_waiting IS NOT NULL AND t.name = ANY(ARRAY(SELECT tenant FROM held))
    ), firings AS MATERIALIZED (
        SELECT c.*, may AND coalesce(count(*) FILTER (WHERE may) OVER (PARTITION BY c.tenant ORDER BY turn) <= b.room, true)
                    AS fires
          FROM candidates c LEFT JOIN bounds b ON b.tenant = c.tenant
    ), put AS (
        INSERT INTO harness_inbox (tenant, job_id, job, bytes, role, may_reply)
        SELECT tenant, job_id, job, octet_length(job::text), 'schedule', may_reply FROM firings WHERE fires ORDER BY turn
        ON CONFLICT (job_id, tenant) DO NOTHING
    ), moved AS (
        UPDATE harness_schedules s
           SET version = version + 1,
               next_at = (SELECT to_timestamp(g.next_ms / 1000) FROM given g WHERE g.id = s.id),
               due_at = (SELECT to_timestamp(g.due_ms / 1000) FROM given g WHERE g.id = s.id),
               missed = missed + (SELECT g.missed FROM given g WHERE g.id = s.id),
               fired = fired + (SELECT count(*) FROM firings f WHERE f.id = s.id AND fires),
               skipped = skipped + (SELECT count(*) FROM firings f WHERE f.id = s.id AND NOT fires),
               last_job = coalesce((SELECT f.job_id FROM firings f WHERE f.id = s.id AND fires ORDER BY turn DESC LIMIT 1),
                                   s.last_job),
               last_at = coalesce((SELECT to_timestamp(('x' || left(translate(f.job_id::text, '-', ''), 12))::bit(48)::bigint
                                                       / 1000.0)
                                     FROM firings f WHERE f.id = s.id AND fires ORDER BY turn DESC LIMIT 1), s.last_at)
         WHERE s.id = ANY(ARRAY(SELECT id FROM held))
        RETURNING s.id
    )
    SELECT (SELECT count(*) FROM firings WHERE fires), (SELECT count(*) FROM firings WHERE NOT fires),
           (SELECT coalesce(sum(g.missed), 0)::bigint FROM given g WHERE g.id IN (SELECT id FROM moved))"
);

/// A schedule of one instant is kept for a while after it, so that it can be seen.
const FORGET: &str =
    "DELETE FROM harness_schedules WHERE next_at IS NULL AND at < now() - interval '30 days'";

const BACKLOG: &str = "
    SELECT count(*) FILTER (WHERE paused_at IS NULL AND next_at IS NOT NULL), count(*) FILTER (WHERE paused_at IS NOT NULL),
           coalesce(extract(epoch FROM now() - (SELECT due_at FROM harness_schedules
                                                 WHERE paused_at IS NULL AND due_at IS NOT NULL ORDER BY due_at LIMIT 1)), 0)::float8
      FROM harness_schedules";

impl Store {
    /// Reads schedules that are due, those that wait longest first.
    pub async fn due_schedules(&self, limit: i64) -> Result<Vec<DueSchedule>, StoreError> {
        let rows = query(&self.pool, "due_schedules", DUE, &[&limit]).await?;
        Ok(rows.iter().map(read_due).collect())
    }

    /// Moves schedules on, and writes the jobs of the instants that fire to the inbox: all of it in one transaction,
    /// while this leadership holds. A schedule that is locked or has changed since it was read is left as it is.
    pub async fn fire_schedules(
        &self,
        leadership: &Leadership,
        moved: &[MovedSchedule],
    ) -> Result<Fired, StoreError> {
        let Leadership { name, holder, epoch, .. } = leadership;
        let ids: Vec<Uuid> = moved.iter().map(|it| it.id).collect();
        let versions: Vec<i64> = moved.iter().map(|it| it.version).collect();
        let missed: Vec<i64> = moved.iter().map(|it| it.missed as i64).collect();
        let next: Vec<Option<f64>> = moved.iter().map(|it| it.next.map(|next| next.at_ms as f64)).collect();
        let due: Vec<Option<f64>> = moved.iter().map(|it| it.next.map(|next| next.due_ms as f64)).collect();
        let of: Vec<Uuid> = moved.iter().flat_map(|it| it.jobs.iter().map(|_| it.id)).collect();
        let jobs = uuids(&moved.iter().flat_map(|it| it.jobs.clone()).collect::<Vec<JobId>>());
        let tx = Tx::prepare(&self.pool, "fire_schedules", [SET_TIMEOUT, LOCK_LEADERSHIP, FIRE]).await?;
        let [_, _, fired] = tx
            .run([
                &[],
                &[name, holder, epoch],
                &[name, holder, epoch, &ids, &versions, &missed, &next, &due, &of, &jobs],
            ])
            .await?;
        let count = |row: &Row, column| row.get::<_, i64>(column).unsigned_abs();
        let read = |row: &Row| Fired { fired: count(row, 0), skipped: count(row, 1), missed: count(row, 2) };
        Ok(fired.first().map(read).unwrap_or_default())
    }

    /// Removes schedules whose one instant was a month ago.
    pub async fn forget_schedules(&self) -> Result<(), StoreError> {
        query(&self.pool, "forget_schedules", FORGET, &[]).await?;
        Ok(())
    }

    /// Counts schedules.
    pub async fn schedule_backlog(&self) -> Result<ScheduleBacklog, StoreError> {
        let rows = query(&self.pool, "schedule_backlog", BACKLOG, &[]).await?;
        let read = |row: &Row| ScheduleBacklog {
            active: row.get::<_, i64>(0).unsigned_abs(),
            paused: row.get::<_, i64>(1).unsigned_abs(),
            late: Duration::from_secs_f64(row.get::<_, f64>(2).max(0.0)),
        };
        Ok(rows.first().map(read).unwrap_or_default())
    }
}

fn read_due(row: &Row) -> DueSchedule {
    let ms = |column| row.get::<_, i64>(column).unsigned_abs();
    DueSchedule {
        id: row.get(0),
        version: row.get(1),
        tenant: row.get(2),
        name: row.get(3),
        cron: row.get(4),
        at: row.get(5),
        zone: row.get(6),
        jitter_ms: ms(7),
        catch_up: row.get(8),
        within_ms: ms(9),
        overlap: row.get(10),
        next: Instant { at_ms: ms(11), due_ms: ms(12) },
        closed: row.get(13),
        bytes: ms(14),
        now_ms: ms(15),
    }
}
