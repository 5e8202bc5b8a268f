//! `/v1/schedules`: the caller's jobs that are made by the clock.

mod view;

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, Request};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use job::Limits;
use store::ScheduleView;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::view::{Firing, NewSchedule, Schedule};
use super::auth::{Principal, Scope};
use super::body::read_json;
use super::limits::admit;
use super::lists::{Listed, Paged, limit};
use super::path::Id;
use super::problem::{Kind, Problem};
use super::query::Query;
use super::{Door, Shared};
use crate::schedules::{self, Change, MOST, Made, Wanted, create};

/// How many instants are shown where the caller names no number, and at most.
const FIRINGS: usize = 10;
const MOST_FIRINGS: usize = 100;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(read, remove))
        .routes(routes!(next))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

/// List schedules, by name
#[utoipa::path(
    get,
    path = "/v1/schedules",
    tag = "schedules",
    params(Paged),
    responses(
        (status = 200, description = "A page", body = Listed<Schedule>),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn list(
    door: Shared,
    principal: Principal,
    RawQuery(given): RawQuery,
) -> Result<Json<Listed<Schedule>>, Problem> {
    principal.needs(Scope::Read)?;
    let query = Query::parse(given.as_deref())?;
    let (behind, limit) = (query.one::<String>("cursor")?, limit(&query)?);
    let listing = door.dispatch.store.schedules(principal.tenant(), behind.as_deref(), limit);
    let found = principal.timeout().ask(listing).await?;
    let last = found.last().map(|schedule| schedule.name.clone());
    let next = last.filter(|_| found.len() == limit);
    let items = found.into_iter().map(|schedule| Schedule::of(schedule, &principal)).collect();
    Ok(Json(Listed { items, next }))
}

/// Make a schedule
///
/// At each of its instants the job is submitted, under an id that follows from the schedule and the instant. The jobs have
/// the label `schedule` with its name. A tenant may have 1000 schedules. Making one counts against the limits of what the
/// tenant may submit like a job.
#[utoipa::path(
    post,
    path = "/v1/schedules",
    tag = "schedules",
    request_body(content = NewSchedule),
    responses(
        (status = 201, description = "It is made", body = Schedule, headers(("Location" = String, description = "Where the schedule is"))),
        (status = 403, description = "The key lacks the scope `submit`", body = Problem),
        (status = 409, description = "There is one of this name, or as many as a tenant may have, or a worker of an older release runs, which fires none", body = Problem),
        (status = 422, description = "A field is unknown or wrong, the expression never fires, or the moment is over", body = Problem),
    )
)]
async fn make(door: Shared, mut principal: Principal, request: Request) -> Result<Response, Problem> {
    principal.needs(Scope::Submit)?;
    let limits = door.limits()?;
    let asked = read_json(&door, &mut principal, request, limits.max_bytes).await?;
    let NewSchedule { name, cron, at, zone, jitter_ms, catch_up, within_ms, overlap, job } = asked;
    let wanted = Wanted {
        tenant: principal.tenant().clone(),
        name: name.clone(),
        cron,
        at,
        zone,
        jitter_ms,
        catch_up,
        within_ms,
        overlap,
        job: job.get().to_owned(),
        may_reply: principal.may(Scope::Admin),
    };
    // It makes jobs, so it counts like one.
    let admitted = admit(&door, &principal, 1, principal.timeout()).await?;
    if let Some(refused) = admitted.refused {
        return Err(refused);
    }
    let (store, actor) = (&door.dispatch.store, principal.actor());
    match principal.timeout().ask(create(store, &limits, &actor, wanted)).await? {
        Made::Done => {
            let made = seen(&door, &principal, &name).await?;
            let location = [(LOCATION, format!("/v1/schedules/{name}"))];
            let body = Json(Schedule::of(made, &principal));
            let mut response = (StatusCode::CREATED, location, body).into_response();
            if let Some(rate) = admitted.rate {
                rate.note(&mut response);
            }
            Ok(response)
        }
        Made::Refused { field, why } => Err(Problem::invalid(field, job::shown(&why))),
        Made::NameTaken => {
            Err(Problem::new(Kind::Conflict, "there is a schedule of this name, expected a new one")
                .at("name"))
        }
        Made::Full => {
            let detail = format!("there are {MOST} schedules, as many as a tenant may have");
            Err(Problem::new(Kind::Conflict, detail))
        }
        Made::NoTenant => Err(Problem::new(Kind::Conflict, "the tenant is closed")),
        Made::OlderWorker(_) => Err(beside_older_workers()),
    }
}

/// Read a schedule
#[utoipa::path(
    get,
    path = "/v1/schedules/{id}",
    tag = "schedules",
    params(("id" = String, Path, description = "The schedule's name")),
    responses(
        (status = 200, description = "The schedule", body = Schedule),
        (status = 404, description = "There is no such schedule", body = Problem),
    )
)]
async fn read(door: Shared, principal: Principal, Id(name): Id) -> Result<Json<Schedule>, Problem> {
    principal.needs(Scope::Read)?;
    Ok(Json(Schedule::of(seen(&door, &principal, &name).await?, &principal)))
}

/// List the next instants of a schedule
///
/// By the clock of its zone and in UTC; where that clock was changed since the instant before, by how much.
#[utoipa::path(
    get,
    path = "/v1/schedules/{id}/next",
    tag = "schedules",
    params(
        ("id" = String, Path, description = "The schedule's name"),
        ("limit" = Option<usize>, Query, description = "How many: 1 to 100, 10 when absent"),
    ),
    responses(
        (status = 200, description = "The instants; none where the schedule has none left", body = Listed<Firing>),
        (status = 404, description = "There is no such schedule", body = Problem),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn next(
    door: Shared,
    principal: Principal,
    Id(name): Id,
    RawQuery(given): RawQuery,
) -> Result<Json<Listed<Firing>>, Problem> {
    principal.needs(Scope::Read)?;
    let query = Query::parse(given.as_deref())?;
    let limit = query.one("limit")?.unwrap_or(FIRINGS);
    if !(1..=MOST_FIRINGS).contains(&limit) {
        return Err(Problem::invalid("limit", format!("got {limit}, expected 1 to {MOST_FIRINGS}")));
    }
    let schedule = seen(&door, &principal, &name).await?;
    let Limits { now_unix_ms, .. } = door.limits()?;
    let firings = schedules::next(&schedule, now_unix_ms, limit)?;
    Ok(Json(Listed { items: firings.into_iter().map(Firing::from).collect(), next: None }))
}

/// Pause a schedule
///
/// It does not fire until it is resumed.
#[utoipa::path(
    post,
    path = "/v1/schedules/{id}/pause",
    tag = "schedules",
    params(("id" = String, Path, description = "The schedule's name")),
    responses(
        (status = 200, description = "It is paused", body = Schedule),
        (status = 404, description = "There is no such schedule", body = Problem),
    )
)]
async fn pause(door: Shared, principal: Principal, Id(name): Id) -> Result<Json<Schedule>, Problem> {
    principal.needs(Scope::Submit)?;
    seen(&door, &principal, &name).await?;
    let (store, actor) = (&door.dispatch.store, principal.actor());
    principal.timeout().ask(store.pause_schedule(&actor, principal.tenant(), &name)).await?;
    Ok(Json(Schedule::of(seen(&door, &principal, &name).await?, &principal)))
}

/// Resume a schedule
///
/// It fires from its next instant on. What was its instant meanwhile is not made up for.
#[utoipa::path(
    post,
    path = "/v1/schedules/{id}/resume",
    tag = "schedules",
    params(("id" = String, Path, description = "The schedule's name")),
    responses(
        (status = 200, description = "It fires", body = Schedule),
        (status = 404, description = "There is no such schedule", body = Problem),
        (status = 409, description = "Its one instant is over, or a worker of an older release runs, which fires none", body = Problem),
    )
)]
async fn resume(door: Shared, principal: Principal, Id(name): Id) -> Result<Json<Schedule>, Problem> {
    principal.needs(Scope::Submit)?;
    let schedule = seen(&door, &principal, &name).await?;
    let (store, actor, now) = (&door.dispatch.store, principal.actor(), door.limits()?.now_unix_ms);
    let resuming = schedules::resume(store, &actor, principal.tenant(), &schedule, now);
    match principal.timeout().ask(resuming).await? {
        Ok(Change::Done | Change::Before) => {
            Ok(Json(Schedule::of(seen(&door, &principal, &name).await?, &principal)))
        }
        Ok(Change::Over) => Err(Problem::new(Kind::Conflict, "its one instant is over")),
        Err(_) => Err(beside_older_workers()),
    }
}

/// Remove a schedule
///
/// The jobs that it has made stay.
#[utoipa::path(
    delete,
    path = "/v1/schedules/{id}",
    tag = "schedules",
    params(("id" = String, Path, description = "The schedule's name")),
    responses(
        (status = 204, description = "It is removed"),
        (status = 404, description = "There is no such schedule", body = Problem),
    )
)]
async fn remove(door: Shared, principal: Principal, Id(name): Id) -> Result<StatusCode, Problem> {
    principal.needs(Scope::Submit)?;
    let (store, actor) = (&door.dispatch.store, principal.actor());
    let removing = store.remove_schedule(&actor, principal.tenant(), &name);
    if principal.timeout().ask(removing).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::no_schedule())
    }
}

/// The caller's schedule, or a 404: another tenant's schedule is answered like one that is not there.
async fn seen(door: &Door, principal: &Principal, name: &str) -> Result<ScheduleView, Problem> {
    let found = principal.timeout().ask(door.dispatch.store.schedule(principal.tenant(), name)).await?;
    found.ok_or_else(Problem::no_schedule)
}

/// Which worker it is, is for operators alone.
fn beside_older_workers() -> Problem {
    let detail =
        "a worker of an older release runs, which fires no schedules; expected all workers to be newer";
    Problem::new(Kind::Conflict, detail)
}
