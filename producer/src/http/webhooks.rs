//! `/v1/webhooks`: addresses to which the ends of the caller's jobs are sent.

mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, Request};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use job::{JobState, Tenant};
use store::{ChangedWebhook, Page, WebhookView};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::view::{Again, Delivery, NewWebhook, Resent, Rotation, Secret, Tried, Webhook};
use super::auth::{Principal, Scope};
use super::body::read_json;
use super::lists::{Listed, Paged, limit};
use super::path::Id;
use super::problem::{Kind, Problem};
use super::query::Query;
use super::shares::{Share, Shares};
use super::{Door, Shared};
use crate::webhooks::{self, MOST, Made, Probe, Wanted, create, new_secret};

/// The largest body.
const BODY: usize = 16 << 10;
/// For how long the secret before a rotation signs as well, where the caller names no time, and at most.
const OVERLAP_S: u64 = 86_400;
const MOST_OVERLAP_S: u64 = 30 * 86_400;

/// How many webhooks are tried at a time, in all and of one tenant: a receiver may take its time.
const TRIED: usize = 8;
const TRIED_OF_ONE: usize = 2;
/// When a caller is asked to come back that has met a bound of these.
const AGAIN: Duration = Duration::from_secs(5);

/// The webhooks that are being tried.
pub struct Trying(Shares<Tenant>);

impl Default for Trying {
    fn default() -> Trying {
        Trying(Shares::new(TRIED, TRIED_OF_ONE))
    }
}

impl Trying {
    /// A place for a message that tries one of this tenant's, until it is dropped.
    fn begin(&self, tenant: &Tenant) -> Result<Share<Tenant>, Problem> {
        self.0.take(Some(tenant), 1).map_err(|full| {
            let one = |most| format!("{most} webhooks of the tenant are tried at this moment; try again");
            let all = |most| format!("{most} webhooks are tried at this moment; try again");
            full.problem("tries", Kind::TooManyTries, (one, all)).retry_after(AGAIN)
        })
    }
}

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(read, remove))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(rotate))
        .routes(routes!(try_out))
        .routes(routes!(list_deliveries))
        .routes(routes!(resend))
}

/// List webhooks, oldest first
#[utoipa::path(
    get,
    path = "/v1/webhooks",
    tag = "webhooks",
    responses((status = 200, description = "The webhooks", body = Listed<Webhook>))
)]
async fn list(door: Shared, principal: Principal) -> Result<Json<Listed<Webhook>>, Problem> {
    principal.needs(Scope::Read)?;
    let found = principal.timeout().ask(door.dispatch.store.webhooks(Some(principal.tenant()))).await?;
    Ok(Json(Listed { items: found.into_iter().map(Webhook::from).collect(), next: None }))
}

/// Make a webhook
///
/// The ends of the caller's jobs are sent to it from now on, each at least once, signed by Standard Webhooks. The
/// answer has the secret, which is shown this once. A tenant may have 20 of them.
#[utoipa::path(
    post,
    path = "/v1/webhooks",
    tag = "webhooks",
    request_body(content = NewWebhook),
    responses(
        (status = 201, description = "It is made", body = Secret, headers(("Location" = String, description = "Where the webhook is"))),
        (status = 403, description = "The key lacks the scope `operate`, or `content` for that", body = Problem),
        (status = 409, description = "The tenant has as many as it may have, or a worker of an older release runs, which ends jobs without deliveries", body = Problem),
    )
)]
async fn make(door: Shared, mut principal: Principal, request: Request) -> Result<Response, Problem> {
    principal.needs(Scope::Operate)?;
    let NewWebhook { url, states, content, label } = read_json(&door, &mut principal, request, BODY).await?;
    if content {
        principal.needs(Scope::Content).map_err(|problem| problem.at("content"))?;
    }
    let states: Result<Vec<JobState>, String> = states.iter().map(|state| state.parse()).collect();
    let states = states.map_err(|why| Problem::invalid("states", job::shown(&why)))?;
    let wanted = Wanted { tenant: principal.tenant().clone(), url, states, content, label };
    let (store, allowed, actor) = (&door.dispatch.store, door.outbound.allowed(), principal.actor());
    match principal.timeout().ask(create(store, allowed, &actor, wanted)).await? {
        Made::Done { id, secret } => {
            let location = [(LOCATION, format!("/v1/webhooks/{id}"))];
            Ok((StatusCode::CREATED, location, Json(Secret { id, secret })).into_response())
        }
        Made::Refused { field, why } => Err(Problem::invalid(field, job::shown(&why))),
        Made::NoPlace => {
            let detail = format!("there are {MOST} webhooks, as many as a tenant may have");
            Err(Problem::new(Kind::Conflict, detail))
        }
        Made::OlderWorker(_) => Err(beside_older_workers()),
    }
}

/// Read a webhook
#[utoipa::path(
    get,
    path = "/v1/webhooks/{id}",
    tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses(
        (status = 200, description = "The webhook", body = Webhook),
        (status = 404, description = "There is no such webhook", body = Problem),
    )
)]
async fn read(door: Shared, principal: Principal, Id(id): Id) -> Result<Json<Webhook>, Problem> {
    principal.needs(Scope::Read)?;
    Ok(Json(seen(&door, &principal, &id).await?.into()))
}

/// Remove a webhook
///
/// Nothing is sent to it any more.
#[utoipa::path(
    delete,
    path = "/v1/webhooks/{id}",
    tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses(
        (status = 204, description = "It is removed"),
        (status = 404, description = "There is no such webhook", body = Problem),
    )
)]
async fn remove(door: Shared, principal: Principal, Id(id): Id) -> Result<StatusCode, Problem> {
    principal.needs(Scope::Operate)?;
    let (store, actor) = (&door.dispatch.store, principal.actor());
    let removing = store.remove_webhook(&actor, principal.tenant(), &id);
    if principal.timeout().ask(removing).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::no_webhook())
    }
}

/// Enable a webhook
///
/// What waits is sent, and so are the ends from now on. Those in between are not; a resend has them sent.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/enable",
    tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses(
        (status = 200, description = "It is enabled", body = Webhook),
        (status = 404, description = "There is no such webhook", body = Problem),
        (status = 409, description = "A worker of an older release runs, which ends jobs without deliveries", body = Problem),
    )
)]
async fn enable(door: Shared, principal: Principal, Id(id): Id) -> Result<Json<Webhook>, Problem> {
    principal.needs(Scope::Operate)?;
    let (store, actor) = (&door.dispatch.store, principal.actor());
    let enabling = webhooks::enable(store, &actor, principal.tenant(), &id);
    let change = principal.timeout().ask(enabling).await?.map_err(|_| beside_older_workers())?;
    answer(&door, &principal, &id, change).await
}

/// Disable a webhook
///
/// Nothing is sent to it until it is enabled, and ends in between are not kept for it.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/disable",
    tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses(
        (status = 200, description = "It is disabled", body = Webhook),
        (status = 404, description = "There is no such webhook", body = Problem),
    )
)]
async fn disable(door: Shared, principal: Principal, Id(id): Id) -> Result<Json<Webhook>, Problem> {
    principal.needs(Scope::Operate)?;
    let (store, actor) = (&door.dispatch.store, principal.actor());
    let disabling = store.disable_webhook(&actor, principal.tenant(), &id);
    let change = principal.timeout().ask(disabling).await?;
    answer(&door, &principal, &id, change).await
}

/// Give a webhook a new secret
///
/// Deliveries are signed with both for a while. The answer has the new one, which is shown this once.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/rotate",
    tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    request_body(content = Rotation),
    responses(
        (status = 200, description = "The new secret", body = Secret),
        (status = 404, description = "There is no such webhook", body = Problem),
    )
)]
async fn rotate(
    door: Shared,
    mut principal: Principal,
    Id(id): Id,
    request: Request,
) -> Result<Json<Secret>, Problem> {
    principal.needs(Scope::Operate)?;
    let Rotation { overlap_s } = read_json(&door, &mut principal, request, BODY).await?;
    let overlap_s = overlap_s.unwrap_or(OVERLAP_S);
    if overlap_s > MOST_OVERLAP_S {
        let detail = format!("got {overlap_s}, expected at most {MOST_OVERLAP_S}");
        return Err(Problem::invalid("overlap_s", detail));
    }
    let secret = new_secret().map_err(|error| Problem::from(anyhow::Error::new(error)))?;
    let (store, actor) = (&door.dispatch.store, principal.actor());
    let overlap = Duration::from_secs(overlap_s);
    let rotating = store.rotate_webhook(&actor, principal.tenant(), &id, &secret, overlap);
    if !principal.timeout().ask(rotating).await? {
        return Err(Problem::no_webhook());
    }
    Ok(Json(Secret { id, secret }))
}

/// Try a webhook
///
/// Sends a message of the type `webhook.test`, once and now, and answers with what became of it.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/test",
    tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    responses(
        (status = 200, description = "What the message was answered with", body = Tried),
        (status = 404, description = "There is no such webhook", body = Problem),
        (status = 429, description = "Two of the tenant are tried at this moment. Try again after `Retry-After` seconds", body = Problem),
    )
)]
async fn try_out(door: Shared, principal: Principal, Id(id): Id) -> Result<Json<Tried>, Problem> {
    principal.needs(Scope::Operate)?;
    let webhook = seen(&door, &principal, &id).await?;
    let _place = door.trying.begin(principal.tenant())?;
    // The receiver has a time of its own.
    let probe = principal.timeout().ask(Probe::of(&door.dispatch.store, &webhook)).await?;
    let answer = probe.ok_or_else(Problem::no_webhook)?.send(&door.outbound).await;
    Ok(Json(Tried { delivered: answer.problem.is_none(), status: answer.status, problem: answer.problem }))
}

/// List deliveries, newest job first
///
/// They are kept for a week.
#[utoipa::path(
    get,
    path = "/v1/webhooks/{id}/deliveries",
    tag = "webhooks",
    params(
        ("id" = String, Path, description = "The webhook's id"),
        ("state" = Option<String>, Query, description = "pending, delivered or failed"),
        Paged
    ),
    responses(
        (status = 200, description = "A page", body = Listed<Delivery>),
        (status = 404, description = "There is no such webhook", body = Problem),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn list_deliveries(
    door: Shared,
    principal: Principal,
    Id(id): Id,
    RawQuery(given): RawQuery,
) -> Result<Json<Listed<Delivery>>, Problem> {
    principal.needs(Scope::Read)?;
    let query = Query::parse(given.as_deref())?;
    let (state, before, limit) = (query.one("state")?, query.one("cursor")?, limit(&query)?);
    seen(&door, &principal, &id).await?;
    let listing = door.dispatch.store.deliveries(&id, state, before, limit);
    let Page { found, next } = principal.timeout().ask(listing).await?;
    let items = found.into_iter().map(Delivery::from).collect();
    Ok(Json(Listed { items, next: next.map(|id| id.to_string()) }))
}

/// Send again
///
/// The end of a job, whether or not it was sent before, or what was given up: 10,000 at a time, those of the oldest jobs
/// first. The message has the same `webhook-id` as before.
#[utoipa::path(
    post,
    path = "/v1/webhooks/{id}/resend",
    tag = "webhooks",
    params(("id" = String, Path, description = "The webhook's id")),
    request_body(content = Again),
    responses(
        (status = 202, description = "They are due", body = Resent),
        (status = 404, description = "There is no such webhook, or no such end", body = Problem),
        (status = 409, description = "The webhook is disabled", body = Problem),
    )
)]
async fn resend(
    door: Shared,
    mut principal: Principal,
    Id(id): Id,
    request: Request,
) -> Result<Response, Problem> {
    principal.needs(Scope::Operate)?;
    let Again { job_id, failed } = read_json(&door, &mut principal, request, BODY).await?;
    if job_id.is_some() == failed {
        return Err(Problem::invalid("job_id", "expected either a job's id or \"failed\": true"));
    }
    if seen(&door, &principal, &id).await?.disabled_at.is_some() {
        return Err(Problem::new(Kind::Conflict, "the webhook is disabled; enable it first"));
    }
    let (store, actor, timeout) = (&door.dispatch.store, principal.actor(), principal.timeout());
    let resent = match job_id {
        None => {
            let resent = timeout.ask(store.resend_failed(&actor, principal.tenant(), &id)).await?;
            Resent { deliveries: resent.due, left: resent.left }
        }
        Some(job_id) => {
            let job_id = super::jobs::job_id(&job_id)?;
            let resending = store.resend(&actor, principal.tenant(), &id, job_id);
            if !timeout.ask(resending).await? {
                return Err(Problem::no_job());
            }
            Resent { deliveries: 1, left: 0 }
        }
    };
    Ok((StatusCode::ACCEPTED, Json(resent)).into_response())
}

/// The caller's webhook, or a 404: another tenant's webhook is answered like one that is not there.
async fn seen(door: &Door, principal: &Principal, id: &str) -> Result<WebhookView, Problem> {
    let found = principal.timeout().ask(door.dispatch.store.webhook(principal.tenant(), id)).await?;
    found.ok_or_else(Problem::no_webhook)
}

/// Which worker it is, is for operators alone.
fn beside_older_workers() -> Problem {
    let detail = "a worker of an older release runs, which ends jobs without deliveries; expected all workers to be newer";
    Problem::new(Kind::Conflict, detail)
}

/// The webhook after a change.
async fn answer(
    door: &Door,
    principal: &Principal,
    id: &str,
    change: ChangedWebhook,
) -> Result<Json<Webhook>, Problem> {
    match change {
        ChangedWebhook::Done | ChangedWebhook::Before => Ok(Json(seen(door, principal, id).await?.into())),
        ChangedWebhook::Unknown => Err(Problem::no_webhook()),
    }
}
