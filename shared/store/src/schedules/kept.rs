//! Schedules are made, looked at, paused, resumed and removed. Each of these acts is in the operators' log, by the
//! statement that does it.

use job::{JobId, Name, Tenant};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::access::logged;
use crate::database::{query, rfc3339};
use crate::{Store, StoreError};

/// An instant of a schedule. Unix times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// When it is.
    pub at_ms: u64,
    /// When its firing is due.
    pub due_ms: u64,
}

/// A schedule to be made.
#[derive(Clone, Debug)]
pub struct NewSchedule {
    /// Its id. The ids of its jobs follow from it.
    pub id: Uuid,
    /// Whose jobs it makes.
    pub tenant: Tenant,
    /// Its name: one of the tenant's.
    pub name: Name,
    /// A cron expression of five fields; without one, `at_ms` is given.
    pub cron: Option<String>,
    /// The one moment: Unix time in milliseconds.
    pub at_ms: Option<u64>,
    /// An IANA time zone.
    pub zone: String,
    /// How long after its instant a firing may be due, in milliseconds.
    pub jitter_ms: u64,
    /// `skip`, `last` or `all`.
    pub catch_up: &'static str,
    /// For how long an instant may be made up for, in milliseconds.
    pub within_ms: u64,
    /// `skip` or `on_busy`.
    pub overlap: &'static str,
    /// The object that is enqueued, as text.
    pub job: String,
    /// Whether it may name a queue for replies.
    pub may_reply: bool,
    /// Its first instant.
    pub first: Instant,
}

/// A schedule.
#[derive(Clone, Debug, Serialize)]
pub struct ScheduleView {
    /// Its id.
    pub id: Uuid,
    /// Whose jobs it makes.
    pub tenant: String,
    /// Its name.
    pub name: String,
    /// A cron expression of five fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The one moment: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// In which the expression is read: an IANA time zone.
    pub zone: String,
    /// How long after its instant a firing may be due, in milliseconds.
    pub jitter_ms: i64,
    /// `skip`, `last` or `all`.
    pub catch_up: String,
    /// For how long an instant may be made up for, in milliseconds.
    pub within_ms: i64,
    /// `skip` or `on_busy`.
    pub overlap: String,
    /// The object that is enqueued; not in lists, where many of them would be read at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<RawValue>>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Since when it does not fire: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<String>,
    /// Its next instant, if one is left: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<String>,
    /// The last instant that fired: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_at: Option<String>,
    /// The job of that instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_job: Option<JobId>,
    /// How many instants have fired.
    pub fired: i64,
    /// How many were not fired in time, and not made up for.
    pub missed: i64,
    /// How many were skipped, because the job before had not ended.
    pub skipped: i64,
    /// Its next instant as Unix time in milliseconds.
    #[serde(skip)]
    pub next_ms: Option<u64>,
    /// How often it was changed: what is decided on this row counts only while it is the same.
    #[serde(skip)]
    pub version: i64,
}

/// The answer to a request for a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreatedSchedule {
    /// It is made.
    Done,
    /// The tenant has one of this name.
    NameTaken,
    /// The tenant has as many as it may have.
    Full,
    /// There is no such tenant, or it is closed.
    NoTenant,
}

/// The answer to a change of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedSchedule {
    /// It is changed.
    Done,
    /// It was so before, or has changed meanwhile.
    Before,
}

/// The tenant's row is locked, so that two at once do not both take the last place, and it is not closed meanwhile.
const CREATE: &str = concat!(
    "WITH tenant AS MATERIALIZED (
         SELECT name FROM harness_tenants WHERE name = $2 AND closed_at IS NULL FOR NO KEY UPDATE
     ), made AS (
         INSERT INTO harness_schedules
                (id, tenant, name, cron, at, zone, jitter_ms, catch_up, within_ms, overlap, job, may_reply, next_at, due_at)
         SELECT $3::uuid, name, $4::text, $5::text, to_timestamp($6::float8 / 1000), $7::text, $8::bigint, $9::text,
                $10::bigint, $11::text, $12::text::json, $13::bool, to_timestamp($14::float8 / 1000),
                to_timestamp($15::float8 / 1000)
           FROM tenant
          WHERE (SELECT count(*) FROM harness_schedules s WHERE s.tenant = $2) < $17::bigint
         ON CONFLICT DO NOTHING
         RETURNING tenant)",
    logged!("schedule_created", "tenant", "$16::jsonb", "made")
);

const WHY_NOT: &str = "
    SELECT EXISTS (SELECT FROM harness_tenants WHERE name = $1 AND closed_at IS NULL),
           EXISTS (SELECT FROM harness_schedules WHERE tenant = $1 AND name = $2)";

const PAUSE: &str = concat!(
    "WITH made AS (
         UPDATE harness_schedules SET paused_at = now(), version = version + 1
          WHERE tenant = $2 AND name = $3 AND paused_at IS NULL RETURNING tenant, name)",
    logged!("schedule_paused", "tenant", "jsonb_build_object('schedule', name)", "made")
);

/// What was its instant meanwhile is not made up for.
const RESUME: &str = concat!(
    "WITH made AS (
         UPDATE harness_schedules
            SET paused_at = NULL, version = version + 1, next_at = to_timestamp($5::float8 / 1000),
                due_at = to_timestamp($6::float8 / 1000)
          WHERE tenant = $2 AND name = $3 AND version = $4 AND paused_at IS NOT NULL RETURNING tenant, name)",
    logged!("schedule_resumed", "tenant", "jsonb_build_object('schedule', name)", "made")
);

/// The jobs that it has made stay.
const REMOVE: &str = concat!(
    "WITH made AS (DELETE FROM harness_schedules WHERE tenant = $2 AND name = $3 RETURNING tenant, name)",
    logged!("schedule_removed", "tenant", "jsonb_build_object('schedule', name)", "made")
);

macro_rules! view {
    (job: $job:literal) => {
        concat!(
            "SELECT id, tenant, name, cron, ",
            rfc3339!("at"),
            ", zone, jitter_ms, catch_up, within_ms, overlap, ",
            $job,
            ", ",
            rfc3339!("created_at"),
            ", ",
            rfc3339!("paused_at"),
            ", ",
            rfc3339!("next_at"),
            ", ",
            rfc3339!("last_at"),
            ", last_job, fired, missed, skipped, (extract(epoch FROM next_at) * 1000)::bigint, version
               FROM harness_schedules"
        )
    };
}

const LIST: &str =
    concat!(view!(job: "NULL::text"), " WHERE tenant = $1 AND name > $2 ORDER BY name LIMIT $3");
const LIST_ALL: &str =
    concat!(view!(job: "NULL::text"), " WHERE (tenant, name) > ($1, $2) ORDER BY tenant, name LIMIT $3");
const ONE: &str = concat!(view!(job: "job::text"), " WHERE tenant = $1 AND name = $2");

impl Store {
    /// Makes a schedule; not if its tenant has `most` of them.
    pub async fn create_schedule(
        &self,
        actor: &str,
        schedule: &NewSchedule,
        most: i64,
    ) -> Result<CreatedSchedule, StoreError> {
        let NewSchedule { id, tenant, name, cron, zone, catch_up, overlap, job, may_reply, .. } = schedule;
        let (tenant, name) = (tenant.as_str(), name.as_str());
        let at = schedule.at_ms.map(|ms| ms as f64);
        let (jitter, within) = (bounded(schedule.jitter_ms), bounded(schedule.within_ms));
        let (next, due) = (schedule.first.at_ms as f64, schedule.first.due_ms as f64);
        let detail = json!({"schedule": name, "cron": cron, "at_unix_ms": schedule.at_ms, "zone": zone});
        let made = self
            .act(
                "create_schedule",
                CREATE,
                &[
                    &actor, &tenant, id, &name, cron, &at, zone, &jitter, catch_up, &within, overlap, job,
                    may_reply, &next, &due, &detail, &most,
                ],
            )
            .await?;
        if made > 0 {
            return Ok(CreatedSchedule::Done);
        }
        let rows = query(&self.pool, "why_no_schedule", WHY_NOT, &[&tenant, &name]).await?;
        Ok(match rows.first().map(|row| (row.get(0), row.get(1))) {
            Some((true, true)) => CreatedSchedule::NameTaken,
            Some((true, false)) => CreatedSchedule::Full,
            Some((false, _)) | None => CreatedSchedule::NoTenant,
        })
    }

    /// Returns schedules of a tenant, by name, behind this one.
    pub async fn schedules(
        &self,
        tenant: &Tenant,
        behind: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ScheduleView>, StoreError> {
        let (behind, limit) = (behind.unwrap_or_default(), limit as i64);
        let rows = query(&self.pool, "schedules", LIST, &[&tenant.as_str(), &behind, &limit]).await?;
        Ok(rows.iter().map(read_view).collect())
    }

    /// Returns schedules of all tenants, by tenant and name, behind this one.
    pub async fn schedules_of_all(
        &self,
        behind: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Vec<ScheduleView>, StoreError> {
        let ((tenant, name), limit) = (behind.unwrap_or_default(), limit as i64);
        let rows = query(&self.pool, "schedules_of_all", LIST_ALL, &[&tenant, &name, &limit]).await?;
        Ok(rows.iter().map(read_view).collect())
    }

    /// Returns the tenant's schedule of this name.
    pub async fn schedule(&self, tenant: &Tenant, name: &str) -> Result<Option<ScheduleView>, StoreError> {
        let rows = query(&self.pool, "schedule", ONE, &[&tenant.as_str(), &name]).await?;
        Ok(rows.first().map(read_view))
    }

    /// Lets a schedule fire no more, until it is resumed.
    pub async fn pause_schedule(
        &self,
        actor: &str,
        tenant: &Tenant,
        name: &str,
    ) -> Result<ChangedSchedule, StoreError> {
        let paused = self.act("pause_schedule", PAUSE, &[&actor, &tenant.as_str(), &name]).await?;
        Ok(if paused > 0 { ChangedSchedule::Done } else { ChangedSchedule::Before })
    }

    /// Lets a paused schedule go on, with this instant.
    pub async fn resume_schedule(
        &self,
        actor: &str,
        tenant: &Tenant,
        schedule: &ScheduleView,
        next: Option<Instant>,
    ) -> Result<ChangedSchedule, StoreError> {
        let (at, due) = (next.map(|next| next.at_ms as f64), next.map(|next| next.due_ms as f64));
        let resumed = self
            .act(
                "resume_schedule",
                RESUME,
                &[&actor, &tenant.as_str(), &schedule.name, &schedule.version, &at, &due],
            )
            .await?;
        Ok(if resumed > 0 { ChangedSchedule::Done } else { ChangedSchedule::Before })
    }

    /// Removes a schedule; false if the tenant has no such schedule.
    pub async fn remove_schedule(
        &self,
        actor: &str,
        tenant: &Tenant,
        name: &str,
    ) -> Result<bool, StoreError> {
        Ok(self.act("remove_schedule", REMOVE, &[&actor, &tenant.as_str(), &name]).await? > 0)
    }
}

fn bounded(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn read_view(row: &Row) -> ScheduleView {
    ScheduleView {
        id: row.get(0),
        tenant: row.get(1),
        name: row.get(2),
        cron: row.get(3),
        at: row.get(4),
        zone: row.get(5),
        jitter_ms: row.get(6),
        catch_up: row.get(7),
        within_ms: row.get(8),
        overlap: row.get(9),
        job: row
            .get::<_, Option<String>>(10)
            .map(|job| RawValue::from_string(job).expect("Postgres has checked that it is JSON")),
        created_at: row.get(11),
        paused_at: row.get(12),
        next_at: row.get(13),
        last_at: row.get(14),
        last_job: row.get::<_, Option<Uuid>>(15).map(JobId::of_ledger),
        fired: row.get(16),
        missed: row.get(17),
        skipped: row.get(18),
        next_ms: row.get::<_, Option<i64>>(19).map(i64::unsigned_abs),
        version: row.get(20),
    }
}
