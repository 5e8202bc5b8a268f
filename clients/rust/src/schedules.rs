//! Schedules: jobs that are made by the clock.

use futures::stream::Stream;
use job::{JobId, Json, Name};
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::Error;
use crate::lists::{Page, asked};
use crate::send::Ask;

/// Schedules of a page.
const PAGE: usize = 500;

/// A schedule to be made. What is `None` is as the API has it.
#[derive(Clone, Debug, Serialize)]
pub struct NewSchedule {
    /// Its name, at most 63 characters. It is the label `schedule` of its jobs.
    pub name: Name,
    /// When it fires.
    #[serde(flatten)]
    pub when: When,
    /// The IANA time zone in which the expression is read; UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// By how many milliseconds a firing may be later than its instant, by chance; none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<u64>,
    /// What is done about instants that were not fired in time; the last of them fires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<CatchUp>,
    /// For how many milliseconds an instant may be made up for; an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
    /// What happens while the job before has not ended; each instant fires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// The job of each instant: the object that a submission has, without `job_id`, `run_at`, `delay_ms` and
    /// `idempotency_key`. Without `session_id` each has a session of its own.
    pub job: Json,
}

/// When a schedule fires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// By an expression: minute, hour, day of the month, month, day of the week.
    Cron(String),
    /// Once: RFC 3339.
    At(String),
}

/// What is done about instants that were not fired within a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// Nothing.
    Skip,
    /// The last of them fires.
    Last,
    /// All of them fire.
    All,
}

/// What happens at an instant while the job of the one before has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The instant is skipped.
    Skip,
    /// It fires, and the job's own `on_busy` decides.
    OnBusy,
}

/// A schedule. Times are RFC 3339, UTC.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// The expression, if it has one.
    pub cron: Option<String>,
    /// Its one moment, if it has no expression.
    pub at: Option<String>,
    /// The IANA time zone in which the expression is read.
    pub zone: String,
    /// By how many milliseconds a firing may be later than its instant.
    pub jitter_ms: i64,
    /// What is done about instants that were not fired in time: skip, last or all.
    pub catch_up: String,
    /// For how many milliseconds an instant may be made up for.
    pub within_ms: i64,
    /// What happens while the job before has not ended: skip or on_busy.
    pub overlap: String,
    /// The job of each instant; for keys with the scope `content`.
    pub job: Option<Json>,
    /// The size of that job.
    pub job_bytes: Option<u64>,
    /// The SHA-256 of that job, in hexadecimal.
    pub job_sha256: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// Since when it does not fire.
    pub paused_at: Option<String>,
    /// Its next instant, if one is left.
    pub next_at: Option<String>,
    /// The last instant that fired.
    pub last_at: Option<String>,
    /// The job of that instant.
    pub last_job: Option<JobId>,
    /// How many instants have fired.
    pub fired: u64,
    /// How many were not fired in time, and not made up for.
    pub missed: u64,
    /// How many were skipped, because the job before had not ended.
    pub skipped: u64,
}

/// An instant at which a schedule fires.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Firing {
    /// RFC 3339, UTC.
    pub at: String,
    /// What the clock of the zone shows then: RFC 3339.
    pub local: String,
    /// By how many seconds that clock was changed since the instant before: forward, or back if negative.
    pub clock_change_s: Option<i32>,
}

impl NewSchedule {
    /// A schedule with nothing but what every schedule has.
    pub fn new(name: Name, when: When, job: Json) -> NewSchedule {
        let (zone, jitter_ms, within_ms) = (None, None, None);
        NewSchedule { name, when, zone, jitter_ms, catch_up: None, within_ms, overlap: None, job }
    }
}

impl Client {
    /// Makes a schedule. It is refused (409) where there is one of this name, or as many as a tenant may have.
    ///
    /// If the answer of a first try was lost, the second try is refused too: read the schedule then.
    pub async fn make_schedule(&self, schedule: &NewSchedule) -> Result<Schedule, Error> {
        let body = serde_json::to_string(schedule).expect("a schedule is JSON");
        self.api.ask(Ask::post("/v1/schedules").json(body)).await
    }

    /// Schedules, by name.
    pub fn schedules(&self) -> impl Stream<Item = Result<Schedule, Error>> + use<> {
        self.pages("/v1/schedules", vec![("limit", PAGE.to_string())])
    }

    /// Reads a schedule.
    pub async fn schedule(&self, name: &Name) -> Result<Schedule, Error> {
        self.api.ask(Ask::get(&of(name, ""))).await
    }

    /// Returns the next instants of a schedule, at most so many (100 at most); none where it has none left.
    pub async fn next_firings(&self, name: &Name, limit: usize) -> Result<Vec<Firing>, Error> {
        let path = asked(&of(name, "/next"), &[("limit", limit.to_string())], None);
        let page: Page<Firing> = self.api.ask(Ask::get(&path)).await?;
        Ok(page.items)
    }

    /// Lets a schedule fire no more until it is resumed.
    pub async fn pause_schedule(&self, name: &Name) -> Result<Schedule, Error> {
        self.api.ask(Ask::post(&of(name, "/pause"))).await
    }

    /// Lets a schedule fire from its next instant on. It is refused (409) where its one instant is over.
    pub async fn resume_schedule(&self, name: &Name) -> Result<Schedule, Error> {
        self.api.ask(Ask::post(&of(name, "/resume"))).await
    }

    /// Removes a schedule. The jobs that it has made stay.
    ///
    /// If the answer of a first try was lost, the second try finds none (404).
    pub async fn remove_schedule(&self, name: &Name) -> Result<(), Error> {
        self.api.answer(Ask::delete(&of(name, ""))).await.map(drop)
    }
}

/// Where a schedule is, or something of it.
fn of(name: &Name, what: &str) -> String {
    format!("/v1/schedules/{name}{what}")
}
