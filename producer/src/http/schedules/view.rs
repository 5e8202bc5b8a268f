//! What is asked and answered about schedules.

use job::JobId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::ScheduleView;
use utoipa::ToSchema;

use crate::http::auth::{Principal, Scope};
use crate::http::view::{NewJob, size_and_digest};
use crate::schedules::FiringView;

/// A schedule to be made. Any other field is refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSchedule {
    /// Its name, and the label `schedule` of its jobs.
    #[schema(example = "nightly-report", max_length = 63)]
    pub name: String,
    /// When it fires: minute, hour, day, month, weekday. Either this or `at` is given.
    #[schema(example = "0 8 * * 1-5")]
    pub cron: Option<String>,
    /// The one moment at which it fires: RFC 3339.
    #[schema(format = DateTime)]
    pub at: Option<String>,
    /// The IANA time zone in which the expression is read; UTC when absent.
    #[schema(example = "Europe/Berlin")]
    pub zone: Option<String>,
    /// By how much a firing may be later than its instant, by chance: schedules of the same minute then do not start at
    /// once. Nothing when absent.
    #[schema(maximum = 86_400_000)]
    pub jitter_ms: Option<u64>,
    /// What is done about instants that were not fired within a minute: skip (nothing), last (the last of them fires), all;
    /// last when absent.
    #[schema(example = "last")]
    pub catch_up: Option<String>,
    /// For how long an instant may be made up for: up to half the results' retention; an hour when absent.
    pub within_ms: Option<u64>,
    /// What happens while the job before has not ended: skip (the instant is skipped) or on_busy (it fires, and the job's
    /// `on_busy` decides); on_busy when absent.
    #[schema(example = "on_busy")]
    pub overlap: Option<String>,
    /// The job of each instant, without `job_id`, `run_at`, `delay_ms` and `idempotency_key`. Without `session_id` each has a
    /// session of its own.
    #[schema(value_type = NewJob)]
    pub job: Box<RawValue>,
}

/// A schedule.
#[derive(Debug, Serialize, ToSchema)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// When it fires: minute, hour, day, month, weekday.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The one moment at which it fires: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The IANA time zone in which the expression is read.
    pub zone: String,
    /// By how much a firing may be later than its instant.
    pub jitter_ms: i64,
    /// What is done about instants that were not fired within a minute: skip, last or all.
    pub catch_up: String,
    /// For how long an instant may be made up for.
    pub within_ms: i64,
    /// What happens while the job before has not ended: skip or on_busy.
    pub overlap: String,
    /// The job of each instant; not in lists. Needs the scope `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub job: Option<Box<RawValue>>,
    /// The size of that job; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_bytes: Option<usize>,
    /// The SHA-256 of that job, in hexadecimal; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_sha256: Option<String>,
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
    #[schema(value_type = Option<Uuid>)]
    pub last_job: Option<JobId>,
    /// How many instants have fired.
    pub fired: i64,
    /// How many were not fired in time, and not made up for.
    pub missed: i64,
    /// How many were skipped: the job before had not ended, or the tenant had as many jobs waiting as it may.
    pub skipped: i64,
}

/// An instant at which a schedule fires.
#[derive(Debug, Serialize, ToSchema)]
pub struct Firing {
    /// RFC 3339, UTC.
    #[schema(example = "2026-03-29T01:00:00Z")]
    pub at: String,
    /// What the clock of the zone shows then: RFC 3339.
    #[schema(example = "2026-03-29T03:00:00+02:00")]
    pub local: String,
    /// By how many seconds that clock was changed since the instant before: forward, or back if negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_change_s: Option<i32>,
}

impl Schedule {
    /// As this caller may see it.
    pub fn of(schedule: ScheduleView, principal: &Principal) -> Schedule {
        let (job_bytes, job_sha256) = schedule.job.as_ref().map(size_and_digest).unzip();
        Schedule {
            name: schedule.name,
            cron: schedule.cron,
            at: schedule.at,
            zone: schedule.zone,
            jitter_ms: schedule.jitter_ms,
            catch_up: schedule.catch_up,
            within_ms: schedule.within_ms,
            overlap: schedule.overlap,
            job: schedule.job.filter(|_| principal.may(Scope::Content)),
            job_bytes,
            job_sha256,
            created_at: schedule.created_at,
            paused_at: schedule.paused_at,
            next_at: schedule.next_at,
            last_at: schedule.last_at,
            last_job: schedule.last_job,
            fired: schedule.fired,
            missed: schedule.missed,
            skipped: schedule.skipped,
        }
    }
}

impl From<FiringView> for Firing {
    fn from(firing: FiringView) -> Firing {
        let FiringView { at, local, clock_change_s } = firing;
        Firing { at, local, clock_change_s }
    }
}
