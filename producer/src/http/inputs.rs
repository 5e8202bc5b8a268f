//! `/v1/jobs/{id}/answers`: what persons answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use job::{CallId, Input};
use serde::{Deserialize, Deserializer};
use store::Answered;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::body::read_json;
use super::jobs::{job_id, seen};
use super::path::Id;
use super::problem::{Kind, Problem};
use super::view::{Acted, Job};
use super::{Door, Shared};

/// The largest body: an answer and what is around it.
const BODY: usize = job::MAX_ANSWER_BYTES + (16 << 10);

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(answer))
}

/// An answer: `answer` to a question, or `approve` to a request for approval.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAnswer {
    /// The call that is answered.
    #[schema(value_type = String, pattern = "^[!-~]{1,128}$", example = "toolu_01A")]
    call_id: CallId,
    /// Any JSON, of at most 64 KiB.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<serde_json::Value>)]
    answer: Option<job::Json>,
    /// Yes or no.
    approve: Option<bool>,
    /// Who answers; the key's id when absent.
    #[schema(min_length = 1, max_length = 200)]
    by: Option<String>,
}

/// An answer of `null` is an answer.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<job::Json>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

/// Answer a question of a job
///
/// The first answer to a call counts, and the job goes on when all its questions are answered. The same answer again is
/// answered as the first. A job that has not asked yet takes an answer in advance. A key without the scope `read` is shown
/// the job's id and state alone.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/answers",
    tag = "jobs",
    params(("id" = uuid::Uuid, Path, description = "The job's id")),
    request_body(content = NewAnswer),
    responses(
        (status = 200, description = "It counts", body = Acted),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 409, description = "The call was answered in another way, its time is over, or the job has ended or waits for other calls", body = Problem),
    )
)]
async fn answer(
    door: Shared,
    mut principal: Principal,
    Id(id): Id,
    request: Request,
) -> Result<Json<Acted>, Problem> {
    principal.needs(Scope::Submit)?;
    let job_id = job_id(&id)?;
    let NewAnswer { call_id, answer, approve, by } = read_json(&door, &mut principal, request, BODY).await?;
    let by = by.or_else(|| (!principal.key_id().is_empty()).then(|| principal.actor()));
    let input = Input::of(job_id, call_id, (answer, approve), by)?;
    let (store, timeout) = (&door.dispatch.store, principal.timeout());
    let actor = principal.actor();
    let asked = timeout.ask(store.answer(Some(&actor), &input, Some(principal.tenant()))).await;
    let answered = asked.map_err(|problem| problem.of_job(job_id))?;
    match (&answered, answered.refused(&input.call_id)) {
        (Answered::Unknown, _) => Err(Problem::no_job()),
        (Answered::WrongKind { .. }, Some((field, why))) => Err(Problem::invalid(field, why).of_job(job_id)),
        (_, Some((field, why))) => Err(Problem::new(Kind::Conflict, why).at(field).of_job(job_id)),
        (_, None) => {
            let view = seen(&door, &principal, job_id, timeout).await?;
            Ok(Json(Acted::of(Job::of(view, &principal), &principal)))
        }
    }
}
