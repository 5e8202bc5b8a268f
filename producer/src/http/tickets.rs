//! `/v1/tickets`: how a browser follows a job. Its `EventSource` sends no header of ours, and a key has no place in an
//! address.

use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::body;
use super::events::session;
use super::jobs::{job_id, seen};
use super::problem::Problem;
use super::{Door, Shared};
use crate::access::{VALID_FOR, create_ticket};

/// The largest body.
const MOST: usize = 4 << 10;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(make))
}

/// Which stream a ticket is for: one of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WantedTicket {
    /// The job to follow.
    #[schema(value_type = Option<uuid::Uuid>)]
    job_id: Option<String>,
    /// The session to follow.
    session_id: Option<String>,
}

/// A ticket.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ticket {
    /// To be given as `ticket` in the stream's address.
    #[schema(example = "hft_…")]
    ticket: String,
    /// The address of the stream, with the ticket in it.
    #[schema(example = "/v1/jobs/0198c0de-7a00-7000-8000-000000000001/events?ticket=hft_…")]
    events: String,
    /// For how many seconds it is valid.
    valid_for_s: u64,
}

/// Make a ticket
///
/// It opens one stream, once, within 60 seconds, at any door, and shows what its caller's key may see. When the key is
/// revoked, the stream ends.
#[utoipa::path(
    post,
    path = "/v1/tickets",
    tag = "jobs",
    request_body(content = WantedTicket),
    responses(
        (status = 201, description = "The ticket", body = Ticket),
        (status = 404, description = "There is no such job or session", body = Problem),
        (status = 413, description = "It is larger than 4 KiB", body = Problem),
    )
)]
async fn make(door: Shared, mut principal: Principal, request: Request) -> Result<Response, Problem> {
    principal.needs(Scope::Read)?;
    let wanted = body::read_json(&mut principal, request, MOST).await?;
    let timeout = principal.timeout();
    let stream = match wanted {
        WantedTicket { job_id: Some(given), session_id: None } => {
            let job_id = job_id(&given)?;
            seen(&door, &principal, job_id, timeout).await?;
            format!("jobs/{job_id}")
        }
        WantedTicket { job_id: None, session_id: Some(name) } => {
            session(&door, &principal, &name, timeout).await?;
            format!("sessions/{name}")
        }
        _ => return Err(Problem::invalid("job_id", "expected either job_id or session_id")),
    };
    let now = door.now_unix_ms()?;
    let making = create_ticket(&door.dispatch.store, principal.inner(), stream.clone(), now);
    let ticket = timeout.ask(making).await?;
    let ticket = ticket.expose_secret().to_owned();
    let events = format!("/v1/{stream}/events?ticket={ticket}");
    let made = Ticket { ticket, events, valid_for_s: VALID_FOR.as_secs() };
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(made)).into_response())
}
