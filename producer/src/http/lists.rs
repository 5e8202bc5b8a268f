//! Lists: jobs, dead letters, pools and workers; and why a job is where it is.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::RawQuery;
use job::{JobId, JobState, Name};
use serde::Serialize;
use store::{JobFilter, JobLine, Page, PoolSeen};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::jobs::job_id;
use super::path::Id;
use super::problem::Problem;
use super::query::{Moment, Query};
use super::{Door, Shared};
use crate::why::{Fleet, why};

/// Entries of a page where the caller names no number, and at most.
const USUAL: usize = 50;
const MOST: usize = 500;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new()
        .routes(routes!(list_jobs))
        .routes(routes!(list_dead))
        .routes(routes!(list_pools))
        .routes(routes!(list_workers))
        .routes(routes!(explain))
}

/// Which jobs.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query` reads")]
struct Chosen {
    /// The agent
    agent: Option<String>,
    /// The session
    session: Option<String>,
    /// The pool
    pool: Option<String>,
    /// A label that the job has, as `key=value`; if several are given, it has them all
    #[param(max_items = 8, example = json!(["team=search"]))]
    label: Option<Vec<String>>,
    /// Submitted at this time or later, by the time in the job's id; RFC 3339, UTC
    #[param(example = "2026-01-31T08:00:00Z")]
    since: Option<String>,
    /// Submitted before this time, likewise
    #[param(example = "2026-02-01T00:00:00Z")]
    before: Option<String>,
}

/// Which page.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query` reads")]
pub struct Paged {
    /// Entries of the page: 1 to 500, 50 when absent
    limit: Option<usize>,
    /// `next` of the page before
    cursor: Option<String>,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listed<T> {
    /// The entries.
    pub items: Vec<T>,
    /// To be given as `cursor` for the next page; absent where there is no more. A page may have fewer entries than
    /// were asked for, or none, and a next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A job in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobEntry {
    /// Its id.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// Its session.
    session_id: String,
    /// Its agent.
    agent_id: String,
    /// Its pool.
    pool: String,
    /// Its state.
    #[schema(value_type = String, example = "failed")]
    state: JobState,
    /// Attempts spent.
    attempts: i32,
    /// RFC 3339, UTC.
    accepted_at: String,
    /// RFC 3339, UTC.
    finished_at: Option<String>,
    /// The code of the last failure.
    code: Option<String>,
}

/// A pool.
#[derive(Debug, Serialize, ToSchema)]
pub struct PoolEntry {
    /// Its name.
    pool: String,
    /// Workers that take jobs.
    workers: i64,
    /// Workers that drain.
    draining: i64,
    /// For how long the job has waited that was queued first, in milliseconds.
    oldest_queued_ms: u64,
    /// What waits in its line, if it has one; counted up to about 10,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<LineEntry>,
}

/// What waits in a pool's line.
#[derive(Debug, Serialize, ToSchema)]
pub struct LineEntry {
    /// All jobs there.
    waiting: u64,
    /// Those that nothing holds back but the number of slots.
    could_run: u64,
}

/// A worker.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerEntry {
    /// Its id.
    #[schema(value_type = Uuid)]
    worker_id: job::WorkerId,
    /// Its pool.
    pool: String,
    /// Its host.
    host: String,
    /// Its pod, in Kubernetes.
    pod_name: Option<String>,
    /// How many jobs it runs at a time.
    slots: u32,
    /// How many it runs.
    busy: u64,
    /// Whether it takes no more jobs.
    draining: bool,
    /// Whether its lease is fresh.
    fresh: bool,
    /// How long ago it started, in milliseconds.
    age_ms: u64,
}

/// Why a job is where it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Why {
    /// The job.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// Its state.
    #[schema(value_type = String, example = "queued")]
    state: JobState,
    /// One sentence.
    #[schema(example = "queued for 40 s: no worker serves pool gpu")]
    why: String,
}

/// List jobs, newest first
#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    params(
        ("state" = Option<String>, Query, description = "States, separated by commas"),
        Chosen,
        Paged
    ),
    responses(
        (status = 200, description = "A page", body = Listed<JobEntry>),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn list_jobs(
    door: Shared,
    principal: Principal,
    RawQuery(given): RawQuery,
) -> Result<Json<Listed<JobEntry>>, Problem> {
    principal.needs(Scope::Read)?;
    let query = Query::parse(given.as_deref())?;
    let states = query.all("state")?;
    jobs_page(&door, &principal, query, JobFilter { states, ..JobFilter::default() }).await
}

/// List dead letters, newest first
///
/// Failed jobs that were neither redriven nor dismissed. Messages that no worker could read are listed by `producer
/// dead list`.
#[utoipa::path(
    get,
    path = "/v1/dead",
    tag = "jobs",
    params(Chosen, Paged),
    responses(
        (status = 200, description = "A page", body = Listed<JobEntry>),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn list_dead(
    door: Shared,
    principal: Principal,
    RawQuery(given): RawQuery,
) -> Result<Json<Listed<JobEntry>>, Problem> {
    principal.needs(Scope::Read)?;
    let query = Query::parse(given.as_deref())?;
    jobs_page(&door, &principal, query, JobFilter { dead: true, ..JobFilter::default() }).await
}

async fn jobs_page(
    door: &Door,
    principal: &Principal,
    query: Query,
    filter: JobFilter,
) -> Result<Json<Listed<JobEntry>>, Problem> {
    let filter = JobFilter {
        tenant: principal.tenant().clone(),
        agent: query.one("agent")?,
        session: query.one("session")?,
        pool: query.one("pool")?,
        labels: query.labels()?,
        since_unix_ms: query.one("since")?.map(|Moment(unix_ms)| unix_ms),
        before_unix_ms: query.one("before")?.map(|Moment(unix_ms)| unix_ms),
        ..filter
    };
    let (before, limit) = (query.one("cursor")?, limit(&query)?);
    let listing = door.dispatch.store.list_jobs(&filter, before, limit);
    let Page { found, next } = principal.timeout().ask(listing).await?;
    let items = found.into_iter().map(JobEntry::from).collect();
    Ok(Json(Listed { items, next: next.map(|id| id.to_string()) }))
}

/// List pools
///
/// For keys with the scope `admin`, because all tenants share them.
#[utoipa::path(
    get,
    path = "/v1/pools",
    tag = "fleet",
    responses(
        (status = 200, description = "The pools", body = Listed<PoolEntry>),
    )
)]
async fn list_pools(door: Shared, principal: Principal) -> Result<Json<Listed<PoolEntry>>, Problem> {
    principal.needs(Scope::Admin)?;
    let (store, timeout) = (&door.dispatch.store, principal.timeout());
    let pools = timeout.ask(store.pool_gauges()).await?;
    let lines = timeout.ask(store.pools()).await?.into_iter().filter(|pool| pool.line);
    let lines: HashMap<Name, PoolSeen> =
        lines.map(|pool| (pool.pool, pool.seen.unwrap_or_default())).collect();
    let entry = |gauges: store::PoolGauges| PoolEntry {
        line: lines
            .get(&gauges.pool)
            .map(|seen| LineEntry { waiting: seen.waiting(), could_run: seen.could_run }),
        pool: gauges.pool.to_string(),
        workers: gauges.alive,
        draining: gauges.draining,
        oldest_queued_ms: u64::try_from(gauges.oldest_queued.as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Json(Listed { items: pools.into_iter().map(entry).collect(), next: None }))
}

/// List workers, oldest first
///
/// For keys with the scope `admin`, because all tenants share them.
#[utoipa::path(
    get,
    path = "/v1/workers",
    tag = "fleet",
    responses(
        (status = 200, description = "The workers that have not ended", body = Listed<WorkerEntry>),
    )
)]
async fn list_workers(door: Shared, principal: Principal) -> Result<Json<Listed<WorkerEntry>>, Problem> {
    principal.needs(Scope::Admin)?;
    let (store, timeout) = (&door.dispatch.store, principal.timeout());
    let pools = timeout.ask(store.pool_gauges()).await?;
    let pools: Vec<Name> = pools.into_iter().map(|gauges| gauges.pool).collect();
    let workers = timeout.ask(store.pool_workers(&pools)).await?;
    let entry = |worker: store::WorkerView| WorkerEntry {
        worker_id: worker.worker,
        pool: worker.pool.to_string(),
        host: worker.host,
        pod_name: worker.pod_name,
        slots: worker.slots,
        busy: worker.held,
        draining: worker.draining || worker.mark.is_some(),
        fresh: worker.fresh,
        age_ms: worker.age_ms,
    };
    Ok(Json(Listed { items: workers.into_iter().map(entry).collect(), next: None }))
}

/// Explain where a job is
///
/// The numbers of workers and slots are for keys with the scope `admin`, because all tenants share them; the message of
/// a failure is for keys with `content`.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/why",
    tag = "jobs",
    params(("id" = Uuid, Path, description = "The job's id")),
    responses(
        (status = 200, description = "One sentence", body = Why),
        (status = 404, description = "There is no such job", body = Problem),
    )
)]
async fn explain(door: Shared, principal: Principal, Id(id): Id) -> Result<Json<Why>, Problem> {
    principal.needs(Scope::Read)?;
    let job_id = job_id(&id)?;
    let facts = principal.timeout().ask(door.dispatch.store.facts(job_id)).await?;
    let mut facts = facts.filter(|facts| facts.tenant == *principal.tenant()).ok_or_else(Problem::no_job)?;
    // It may repeat what the program said.
    facts.message = facts.message.filter(|_| principal.may(Scope::Content));
    let fleet = if principal.may(Scope::Admin) { Fleet::Numbers } else { Fleet::Words };
    Ok(Json(Why { job_id, state: facts.state, why: why(&facts, fleet) }))
}

pub fn limit(query: &Query) -> Result<usize, Problem> {
    match query.one("limit")? {
        None => Ok(USUAL),
        Some(limit @ 1..=MOST) => Ok(limit),
        Some(other) => Err(Problem::invalid("limit", format!("got {other}, expected 1 to {MOST}"))),
    }
}

impl From<JobLine> for JobEntry {
    fn from(line: JobLine) -> JobEntry {
        JobEntry {
            job_id: line.job_id,
            session_id: line.session_id,
            agent_id: line.agent_id,
            pool: line.pool,
            state: line.state,
            attempts: line.attempts,
            accepted_at: line.accepted_at,
            finished_at: line.finished_at,
            code: line.code,
        }
    }
}
