//! `/v1/tickets`: how a browser follows a job. Its `EventSource` sends no header of ours, and a key has no place in an
//! address.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use job::Tenant;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::body;
use super::events::session;
use super::jobs::{job_id, seen};
use super::problem::{Kind, Problem};
use super::shares::{Share, Shares};
use super::{Door, Shared};
use crate::access::{VALID_FOR, create_ticket};

/// The largest body.
const MOST_BYTES: usize = 4 << 10;

/// Live tickets of a key that were made here, and of all keys: each is a row of the ledger for a minute.
const MOST_OF_KEY: usize = 500;
const MOST: usize = 50_000;
/// When a caller is asked to come back.
const AGAIN: Duration = Duration::from_secs(5);

/// A key of a tenant; without keys, the tenant alone.
type Maker = (Tenant, String);

/// The tickets that were made here within the time in which they are valid, used or not.
pub struct Tickets {
    shares: Shares<Maker>,
    /// In the order in which they were made.
    made: Mutex<VecDeque<(Instant, Share<Maker>)>>,
}

impl Default for Tickets {
    fn default() -> Tickets {
        Tickets { shares: Shares::new(MOST, MOST_OF_KEY), made: Mutex::default() }
    }
}

impl Tickets {
    /// Counts a ticket that is to be made; without [`Tickets::keep`] it does not count any more when this is dropped.
    fn begin(&self, principal: &Principal) -> Result<Share<Maker>, Problem> {
        let mut over = Vec::new();
        {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(first) = made.pop_front_if(|(at, _)| at.elapsed() >= VALID_FOR) {
                over.push(first);
            }
        }
        drop(over);
        let maker = (principal.tenant().clone(), principal.key_id().to_owned());
        self.shares.take(Some(&maker), 1).map_err(|full| {
            let one = |most| format!("{most} tickets of the key were made within the last minute");
            let all = |most| format!("{most} tickets were made within the last minute");
            full.problem("tickets", Kind::TooManyTickets, (one, all)).retry_after(AGAIN)
        })
    }

    fn keep(&self, share: Share<Maker>) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push_back((Instant::now(), share));
    }
}

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
    let wanted = body::read_json(&door, &mut principal, request, MOST_BYTES).await?;
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
    let (place, now) = (door.tickets.begin(&principal)?, door.now_unix_ms()?);
    let making = create_ticket(&door.dispatch.store, principal.inner(), stream.clone(), now);
    let ticket = timeout.ask(making).await?;
    door.tickets.keep(place);
    let ticket = ticket.expose_secret().to_owned();
    door.sign_ins.made(&ticket);
    let events = format!("/v1/{stream}/events?ticket={ticket}");
    let made = Ticket { ticket, events, valid_for_s: VALID_FOR.as_secs() };
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(made)).into_response())
}
