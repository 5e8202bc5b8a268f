//! What callers remove: a session's state, and dead letters.

use std::sync::Arc;

use axum::http::StatusCode;
use store::Emptied;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::jobs::{job_id, seen};
use super::path::Id;
use super::problem::{Kind, Problem};
use super::{Door, Shared};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(empty_session)).routes(routes!(drop_dead))
}

/// Empty a session
///
/// Its memory, context window and progress are removed; its counters stay. A job that comes after this begins with an
/// empty state. The operators' log names the key that asked.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{id}",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's name")),
    responses(
        (status = 204, description = "Its state is empty"),
        (status = 404, description = "There is no such session", body = Problem),
        (status = 409, description = "It has jobs that have not ended, begun or not", body = Problem),
    )
)]
async fn empty_session(door: Shared, principal: Principal, Id(id): Id) -> Result<StatusCode, Problem> {
    principal.needs(Scope::Operate)?;
    let (key, actor) = (principal.session_key(&id)?, principal.actor());
    let emptying = door.dispatch.store.empty_session(&actor, &key);
    match principal.timeout().ask(emptying).await? {
        Emptied::Done => Ok(StatusCode::NO_CONTENT),
        Emptied::Unknown => Err(Problem::no_session()),
        Emptied::Busy => {
            let detail = "the session has jobs that have not ended; cancel them or wait for their ends first";
            Err(Problem::new(Kind::Conflict, detail))
        }
    }
}

/// Drop a dead letter
///
/// The failed job leaves the list of dead letters and can no longer be run again. Its result stays. The operators' log names
/// the key that asked.
#[utoipa::path(
    delete,
    path = "/v1/dead/{id}",
    tag = "jobs",
    params(("id" = uuid::Uuid, Path, description = "The failed job's id")),
    responses(
        (status = 204, description = "It is dropped"),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 409, description = "It has not failed, or was dealt with before", body = Problem),
    )
)]
async fn drop_dead(door: Shared, principal: Principal, Id(id): Id) -> Result<StatusCode, Problem> {
    principal.needs(Scope::Operate)?;
    let (job_id, timeout) = (job_id(&id)?, principal.timeout());
    seen(&door, &principal, job_id, timeout).await?;
    if timeout.ask(door.dispatch.store.dismiss(&principal.actor(), &[job_id])).await?.is_empty() {
        let detail = "it has not failed, or was redriven or dropped before";
        return Err(Problem::new(Kind::Conflict, detail).of_job(job_id));
    }
    Ok(StatusCode::NO_CONTENT)
}
