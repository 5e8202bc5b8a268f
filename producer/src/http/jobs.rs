//! `/v1/jobs`: one job at a time.

use std::collections::{BTreeSet, HashMap};

use axum::Json;
use axum::extract::Request;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use dispatch::Candidate;
use job::{JobId, JobSpec, Limits, Name, RequestedJob, decode_strict};
use store::{Cancelled, JobHead, JobView, KeyKind, KnownJob, Taken};
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::body;
use super::keys::{self, FoundBy};
use super::ledger::Timeout;
use super::limits::{RateLimit, admit};
use super::path::Id;
use super::problem::{Kind, Problem};
use super::view::{Acted, Job};
use super::{Door, Shared, prefer};
use crate::cancel::{Answer, cancel};
use crate::dead::{Renewal, redrive_one};
use crate::same::is_same;
use crate::submit::{Submission, find_earlier, submit_one};

/// The routes.
pub fn routes() -> OpenApiRouter<std::sync::Arc<Door>> {
    OpenApiRouter::new()
        .routes(routes!(submit))
        .routes(routes!(read))
        .routes(routes!(cancel_job))
        .routes(routes!(redrive))
}

/// Submit a job
///
/// 202 means that the job is in the ledger: it has exactly one recorded end, whatever happens from now on. A `job_id`
/// of the caller's own makes the request safe to repeat: the same job again is answered with 200 and what became of
/// the first one, another job under the same id with 409. `Idempotency-Key` does the same for 24 hours without an id of
/// the caller's own. `unique` makes the job the only one with its key while it has not ended, and for a time: another
/// submission is answered with 200 and the job that is there. `Found-By` says what has found it. With `Prefer: wait=N`
/// (at most 60 seconds) the answer is 200 with the end, if that comes in time. A key without the scope `read` is shown
/// the job's id and state alone.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    tag = "jobs",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds for the job's end"),
        ("Idempotency-Key" = Option<String>, Header, description = "A key of the caller's own for this request, up to 255 characters, kept for 24 hours: the same request again is the same job"),
    ),
    request_body(content = super::view::NewJob),
    responses(
        (status = 202, description = "It is accepted", body = Acted, headers(("Location" = String, description = "Where the job is"))),
        (status = 200, description = "It has ended, or was accepted before", body = Acted, headers(
            ("Location" = String, description = "Where the job is"),
            ("Found-By" = Option<String>, description = "What has found the job that was accepted before: `job_id`, `idempotency_key` or `unique`"),
            ("Idempotency-Replayed" = Option<String>, description = "`true` where the request's key has found the job"),
        )),
        (status = 403, description = "The key lacks the scope `submit`, or `admin` for `reply_to`", body = Problem),
        (status = 409, description = "Another job has this id or key", body = Problem),
        (status = 413, description = "It is larger than MAX_MESSAGE_BYTES", body = Problem),
    )
)]
async fn submit(door: Shared, mut principal: Principal, request: Request) -> Result<Response, Problem> {
    principal.needs(Scope::Submit)?;
    let (parts, body) = body::receive(&door, &mut principal, request, door.max_bytes).await?;
    // Before anything is accepted: a caller that may not wait has done nothing then.
    let wait = prefer::wait(&parts.headers);
    let _place = wait.map(|_| door.followers.begin(&principal)).transpose()?;
    let timeout = principal.timeout();
    let limits = door.limits()?;
    let mut asked = keys::with_header(decode(&body, &principal, &limits)?, &parts.headers)?;
    if asked.spec.traceparent.is_none() {
        asked.spec.traceparent =
            parts.headers.get("traceparent").and_then(|value| value.to_str().ok()?.parse().ok());
    }
    let (tried, begun) = (asked.spec.job_id, Instant::now());
    let accepted = accept(&door, &principal, Candidate::new(asked, body.len()), &limits, timeout).await;
    let Accepted { mut job, found_by, rate } = accepted.map_err(|problem| problem.of_job(tried))?;
    let mut status = if found_by.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    if let Some(wait) = wait.filter(|_| !job.state.is_end()) {
        match after_its_end(&door, &principal, job.job_id, begun + wait).await {
            Ok(view) if view.state.is_end() => (status, job) = (StatusCode::OK, Job::of(view, &principal)),
            Err(problem) if problem.status() != StatusCode::SERVICE_UNAVAILABLE => {
                return Err(problem.of_job(job.job_id));
            }
            // It is accepted, whatever cannot be read now.
            Ok(_) | Err(_) => {}
        }
    }
    let mut response = at(status, job, &principal);
    if let Some(rate) = rate {
        rate.note(&mut response);
    }
    if let Some(found_by) = found_by {
        response.headers_mut().insert("found-by", HeaderValue::from_static(found_by.as_str()));
        if found_by == FoundBy::Key(KeyKind::Idempotency) {
            response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
        }
    }
    Ok(response)
}

/// Read a job
///
/// With `Prefer: wait=N` (at most 60 seconds) the answer is 200 with the end, if that comes in time, else 202.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(
        ("id" = uuid::Uuid, Path, description = "The job's id"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds for the job's end"),
    ),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 202, description = "The job, which has not ended in the time that the caller waited", body = Job),
        (status = 404, description = "There is no such job", body = Problem),
    )
)]
async fn read(
    door: Shared,
    principal: Principal,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    principal.needs(Scope::Read)?;
    let (job_id, begun, timeout) = (job_id(&id)?, Instant::now(), principal.timeout());
    let view = seen(&door, &principal, job_id, timeout).await?;
    let Some(wait) = prefer::wait(&headers).filter(|_| !view.state.is_end()) else {
        let known = timeout.ask(door.dispatch.store.known_job(job_id)).await?;
        let envelope = known.and_then(|known| known.message);
        return Ok(Json(Job::of(view, &principal).given(envelope.as_deref(), &principal)).into_response());
    };
    let _place = door.followers.begin(&principal)?;
    let view = after_its_end(&door, &principal, job_id, begun + wait).await?;
    let status = if view.state.is_end() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(Job::of(view, &principal))).into_response())
}

/// Cancel a job
///
/// A job that waits has ended when this is answered (200). A running one is asked to stop and ends soon (202). A key
/// without the scope `read` is shown the job's id and state alone.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/cancel",
    tag = "jobs",
    params(("id" = uuid::Uuid, Path, description = "The job's id")),
    responses(
        (status = 200, description = "It is cancelled", body = Acted),
        (status = 202, description = "Its worker was asked to stop it", body = Acted),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 409, description = "It had ended before", body = Problem),
    )
)]
async fn cancel_job(door: Shared, principal: Principal, Id(id): Id) -> Result<Response, Problem> {
    principal.needs(Scope::Operate)?;
    let (job_id, timeout) = (job_id(&id)?, principal.timeout());
    let limits = door.limits()?;
    // An id that the ledger does not know is not cancelled ahead: it may become another tenant's.
    seen(&door, &principal, job_id, timeout).await?;
    let (dispatch, actor) = (door.dispatch.clone(), principal.actor());
    // The reply to the job's caller follows the commit.
    let cancelling =
        door.to_the_end(async move { cancel(&dispatch, &actor, vec![job_id], None, &limits).await });
    let answered = timeout.ask(cancelling).await.map_err(|problem| problem.of_job(job_id))?;
    let answer = match answered {
        Answer::Done(answers) => answers.first().map(|(_, answer)| *answer),
        // It has ended since it was seen, and its result is so old that it was removed.
        Answer::Refused(_) => None,
    };
    let status = match answer {
        Some(Cancelled::Now | Cancelled::Unseen) => StatusCode::OK,
        Some(Cancelled::Stopping) => StatusCode::ACCEPTED,
        Some(Cancelled::Before(state)) if state != job::JobState::Cancelled => {
            let detail = format!("it had ended before: {state}");
            return Err(Problem::new(Kind::Conflict, detail).of_job(job_id));
        }
        Some(Cancelled::Before(_)) => StatusCode::OK,
        None => return Err(Problem::no_job()),
    };
    let view = seen(&door, &principal, job_id, timeout).await?;
    Ok((status, Json(Acted::of(Job::of(view, &principal), &principal))).into_response())
}

/// Run a failed job again
///
/// A new job does its work, under a new id. That happens once for each failed job. It counts against the tenant's limits
/// like a submission. A key without the scope `read` is shown the new job's id and state alone.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/redrive",
    tag = "jobs",
    params(("id" = uuid::Uuid, Path, description = "The failed job's id")),
    responses(
        (status = 202, description = "The new job", body = Acted, headers(("Location" = String, description = "Where the new job is"))),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 409, description = "It has not failed, or was dealt with before", body = Problem),
    )
)]
async fn redrive(door: Shared, principal: Principal, Id(id): Id) -> Result<Response, Problem> {
    principal.needs(Scope::Operate)?;
    let (job_id, timeout) = (job_id(&id)?, principal.timeout());
    let limits = door.limits()?;
    seen(&door, &principal, job_id, timeout).await?;
    // It is one more job of the tenant, like one that is submitted.
    let admitted = admit(&door, &principal, 1, timeout).await?;
    if let Some(refused) = admitted.refused {
        return Err(refused.of_job(job_id));
    }
    let (own, actor, tenant) = (door.0.clone(), principal.actor(), principal.tenant().clone());
    // The new job is published after the commit.
    let renewing = door.to_the_end(async move {
        let renewal = redrive_one(&own.dispatch, &actor, job_id, &limits).await?;
        Ok(match renewal {
            Renewal::Redriven(new, submitted) => {
                own.backlog.taken_in(&tenant, 1);
                own.publishing.hand_over(*submitted);
                Ok(new)
            }
            Renewal::Kept(why) => Err(why),
        })
    });
    match timeout.ask(renewing).await.map_err(|problem| problem.of_job(job_id))? {
        Ok(new) => {
            let view = seen(&door, &principal, new, timeout).await.map_err(|problem| problem.of_job(new))?;
            let mut response = at(StatusCode::ACCEPTED, Job::of(view, &principal), &principal);
            if let Some(rate) = admitted.rate {
                rate.note(&mut response);
            }
            Ok(response)
        }
        Err(why) => Err(Problem::new(Kind::Conflict, why).of_job(job_id)),
    }
}

/// A job from a body.
pub fn decode(body: &[u8], principal: &Principal, limits: &Limits) -> Result<RequestedJob, Problem> {
    let text = body::utf8(body)?;
    // What counts is the message that is made of it, which has more members.
    let unbounded = Limits { max_bytes: usize::MAX, ..limits.clone() };
    let mut asked = match decode_strict(text, &unbounded) {
        Ok(asked) => asked,
        Err(wrong) => {
            // What is no JSON has another answer.
            body::json_text(body)?;
            return Err(wrong.into());
        }
    };
    asked.spec.tenant = principal.tenant().clone();
    if text.len() + 1_024 > limits.max_bytes && job::encode(&asked.spec).len() > limits.max_bytes {
        return Err(body::too_large(limits.max_bytes).of_job(asked.spec.job_id));
    }
    Ok(asked)
}

/// A job that is in the ledger.
struct Accepted {
    job: Job,
    /// What has found it, if it was there before.
    found_by: Option<FoundBy>,
    /// What is left of its tenant's rate, if that has one.
    rate: Option<RateLimit>,
}

/// Takes a job into the ledger, or finds the one that was accepted under its id or that holds a key of it.
async fn accept(
    door: &Door,
    principal: &Principal,
    candidate: Candidate,
    limits: &Limits,
    timeout: Timeout,
) -> Result<Accepted, Problem> {
    let (spec, is_idempotent) = (candidate.spec.clone(), candidate.is_idempotent());
    may_submit(principal, &spec)?;
    let pools = [spec.pool.clone()].into();
    let unserved = timeout.ask(door.served.unserved(&door.dispatch.store, pools)).await?;
    is_served(&spec, &unserved)?;
    let admitted = admit(door, principal, 1, timeout).await?;
    let submission = match admitted.refused {
        None => timeout.ask(submit_one(&door.dispatch, candidate, limits)).await?,
        // The repeat of a request that was accepted takes nothing more in.
        Some(refused) => {
            let earlier = timeout.ask(find_earlier(&door.dispatch, &[candidate])).await?;
            match earlier.into_iter().next().flatten() {
                Some(Taken::Found { by, job_id, same }) => Submission::Found(by, job_id, same),
                Some(Taken::Known) => Submission::Known,
                Some(Taken::New { .. }) | None => return Err(refused),
            }
        }
    };
    let (job, found_by) = match submission {
        Submission::New(accepted_at, state, submitted) => {
            door.backlog.taken_in(principal.tenant(), 1);
            door.publishing.hand_over(*submitted);
            (Job::accepted(&spec, state, accepted_at), None)
        }
        Submission::Refused(why) => return Err(Problem::invalid("body", why)),
        Submission::Known => {
            let job = known(door, principal, &spec, timeout).await?;
            (job, Some(FoundBy::of_known(is_idempotent)))
        }
        Submission::Found(by, job_id, same) => {
            let job = keys::found(door, principal, by, job_id, same, timeout).await?;
            (job, Some(FoundBy::Key(by)))
        }
    };
    Ok(Accepted { job, found_by, rate: admitted.rate })
}

/// Refuses what the caller may not ask for.
pub fn may_submit(principal: &Principal, spec: &JobSpec) -> Result<(), Problem> {
    match spec.reply_to {
        Some(_) => principal.needs(Scope::Admin).map_err(|problem| problem.at("reply_to")),
        None => Ok(()),
    }
}

/// Refuses a pool that would be a queue which no worker reads.
pub fn is_served(spec: &JobSpec, unserved: &BTreeSet<Name>) -> Result<(), Problem> {
    if unserved.contains(&spec.pool) {
        return Err(Problem::invalid(
            "pool",
            format!("got \"{}\", which no worker has ever served", spec.pool),
        ));
    }
    Ok(())
}

/// The job that was accepted under this one's id before, if it is the same.
async fn known(door: &Door, principal: &Principal, spec: &JobSpec, timeout: Timeout) -> Result<Job, Problem> {
    refuse_another(spec, are_same(door, &[spec], timeout).await?.contains(&true))?;
    Ok(Job::of(seen(door, principal, spec.job_id, timeout).await?, principal))
}

/// The jobs that were accepted under the ids of these before, each if it is the same. There may be many, and their
/// outputs may be large, so of each the head alone is read.
pub async fn all_known(
    door: &Door,
    principal: &Principal,
    specs: &[&JobSpec],
    timeout: Timeout,
) -> Result<Vec<Result<JobHead, Problem>>, Problem> {
    let ids: Vec<JobId> = specs.iter().map(|spec| spec.job_id).collect();
    let same = are_same(door, specs, timeout).await?;
    let heads = all_seen(door, principal, &ids, timeout).await?;
    let found = |(spec, is_same): (&&JobSpec, bool)| {
        refuse_another(spec, is_same)?;
        heads.get(&spec.job_id).cloned().ok_or_else(Problem::no_job)
    };
    Ok(specs.iter().zip(same).map(found).collect())
}

/// Whether each of these is the job that the ledger has under its id.
async fn are_same(door: &Door, specs: &[&JobSpec], timeout: Timeout) -> Result<Vec<bool>, Problem> {
    // An id may come twice, with another content.
    let ids: BTreeSet<JobId> = specs.iter().map(|spec| spec.job_id).collect();
    let ids: Vec<JobId> = ids.into_iter().collect();
    let mut same = vec![false; specs.len()];
    let compare = |job_id: JobId, known: KnownJob| {
        for (spec, same) in specs.iter().zip(&mut same).filter(|(spec, _)| spec.job_id == job_id) {
            *same = is_same(spec, &known);
        }
    };
    timeout.ask(door.dispatch.store.known_jobs(&ids, compare)).await?;
    Ok(same)
}

fn refuse_another(spec: &JobSpec, is_same: bool) -> Result<(), Problem> {
    if is_same {
        return Ok(());
    }
    let detail = format!("the id {} is taken by another job, expected a new one", spec.job_id);
    Err(Problem::new(Kind::Conflict, detail).at("job_id"))
}

/// The heads of those of these jobs that are the caller's. The ledger is asked for all of them at once.
pub async fn all_seen(
    door: &Door,
    principal: &Principal,
    ids: &[JobId],
    timeout: Timeout,
) -> Result<HashMap<JobId, JobHead>, Problem> {
    let mut heads = timeout.ask(door.dispatch.store.job_heads(ids)).await?;
    heads.retain(|_, head| head.tenant == *principal.tenant());
    Ok(heads)
}

/// The caller's job, or a 404: another tenant's job is answered like one that is not there.
pub async fn seen(
    door: &Door,
    principal: &Principal,
    job_id: JobId,
    timeout: Timeout,
) -> Result<JobView, Problem> {
    let views = timeout.ask(door.dispatch.store.jobs(&[job_id])).await?;
    views.into_iter().find(|view| view.tenant == *principal.tenant()).ok_or_else(Problem::no_job)
}

/// The job after its end, or as it is at this time, or when this process stops. The key may have been revoked while its
/// caller waited.
async fn after_its_end(
    door: &Door,
    principal: &Principal,
    job_id: JobId,
    until: Instant,
) -> Result<JobView, Problem> {
    let ended = door.following.end_of(job_id, until).await;
    let timeout = door.timeout();
    principal.still_counts(&door.keys, timeout).await?;
    match ended {
        // An id that was not in the ledger yet may have become another tenant's job.
        Some(view) if view.tenant == *principal.tenant() => Ok((*view).clone()),
        Some(_) => Err(Problem::no_job()),
        None => seen(door, principal, job_id, timeout).await,
    }
}

/// What is no id is no job's.
pub fn job_id(given: &str) -> Result<JobId, Problem> {
    given.parse().map_err(|_| Problem::no_job())
}

/// The job, with the place where it can be read.
fn at(status: StatusCode, job: Job, principal: &Principal) -> Response {
    let location: Option<HeaderValue> = format!("/v1/jobs/{}", job.job_id).parse().ok();
    let mut response = (status, Json(Acted::of(job, principal))).into_response();
    if let Some(location) = location {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
