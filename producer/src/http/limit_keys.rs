//! `/v1/limits`: how many of the caller's jobs with a key may be at work at a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use job::Name;
use serde::{Deserialize, Serialize};
use store::{ChangedLimit, HIGHEST_LIMIT, LimitView, MOST_LIMITS};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::body::read_json;
use super::lists::Listed;
use super::path::Id;
use super::problem::{Kind, Problem};
use super::{Door, Shared};

/// The largest body.
const BODY: usize = 4 << 10;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(list, set)).routes(routes!(remove))
}

/// A limit to be set. Any other field is refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewLimit {
    /// The key, as jobs have it in `limits`.
    #[schema(pattern = "^[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,127}$", example = "customer-17")]
    key: String,
    /// How many jobs with the key may be at work in each pool; 0 holds all back.
    #[schema(maximum = 1_000_000)]
    max: u32,
}

/// A limit.
#[derive(Serialize, ToSchema)]
struct Limit {
    /// The key.
    key: String,
    /// How many jobs with the key may be at work in each pool.
    max: i64,
    /// RFC 3339, UTC.
    changed_at: String,
}

impl From<LimitView> for Limit {
    fn from(LimitView { tenant: _, key, max, changed_at }: LimitView) -> Limit {
        Limit { key, max, changed_at }
    }
}

/// List limits, by key
#[utoipa::path(
    get,
    path = "/v1/limits",
    tag = "limits",
    responses((status = 200, description = "The limits", body = Listed<Limit>))
)]
async fn list(door: Shared, principal: Principal) -> Result<Json<Listed<Limit>>, Problem> {
    principal.needs(Scope::Read)?;
    let found = principal.timeout().ask(door.dispatch.store.limits(Some(principal.tenant()))).await?;
    Ok(Json(Listed { items: found.into_iter().map(Limit::from).collect(), next: None }))
}

/// Set a limit
///
/// At most so many jobs with the key are at work in each pool that has a line: from a job's turn to its attempt's end. Those
/// that are at work already go on. A key has no limit before one is set.
#[utoipa::path(
    post,
    path = "/v1/limits",
    tag = "limits",
    request_body(content = NewLimit),
    responses(
        (status = 204, description = "It is so now"),
        (status = 409, description = "The tenant has as many limits as it may have", body = Problem),
    )
)]
async fn set(door: Shared, mut principal: Principal, request: Request) -> Result<StatusCode, Problem> {
    principal.needs(Scope::Operate)?;
    let NewLimit { key, max } = read_json(&door, &mut principal, request, BODY).await?;
    let key: Name = key.parse().map_err(|why: job::IdError| Problem::invalid("key", why.to_string()))?;
    if max > HIGHEST_LIMIT {
        return Err(Problem::invalid("max", format!("got {max}, expected 0 to {HIGHEST_LIMIT}")));
    }
    let (store, actor) = (&door.dispatch.store, principal.actor());
    let setting = store.set_limit(&actor, principal.tenant(), &key, max);
    match principal.timeout().ask(setting).await? {
        ChangedLimit::Done | ChangedLimit::Before => Ok(StatusCode::NO_CONTENT),
        ChangedLimit::Full => {
            let detail = format!("there are {MOST_LIMITS} limits, as many as a tenant may have");
            Err(Problem::new(Kind::Conflict, detail))
        }
    }
}

/// Remove a limit
#[utoipa::path(
    delete,
    path = "/v1/limits/{id}",
    tag = "limits",
    params(("id" = String, Path, description = "The key")),
    responses(
        (status = 204, description = "The key has no limit now"),
        (status = 404, description = "There is no such limit", body = Problem),
    )
)]
async fn remove(door: Shared, principal: Principal, Id(id): Id) -> Result<StatusCode, Problem> {
    principal.needs(Scope::Operate)?;
    let none = || Problem::new(Kind::NotFound, "there is no such limit");
    let key: Name = id.parse().map_err(|_| none())?;
    let (store, actor) = (&door.dispatch.store, principal.actor());
    match principal.timeout().ask(store.remove_limit(&actor, principal.tenant(), &key)).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(none()),
    }
}
