//! `/v1/jobs/batch`: many jobs in one request. Each is accepted or refused for itself.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use futures::StreamExt;
use job::{JobId, JobSpec, JobState, Limits};
use serde::Serialize;
use store::Taken;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::body::{self, media_type, other_media_type};
use super::items::{Format, Item, Items};
use super::jobs::{check, decode, known};
use super::keys::{self, FoundBy};
use super::ledger::Timeout;
use super::limits::admit;
use super::problem::{Kind, Problem};
use super::view::Job;
use super::{Door, Shared};
use crate::candidate::Candidate;
use crate::submit::submit_in_order;

/// The most jobs of a batch.
const MOST_JOBS: usize = 10_000;
/// The most bytes of a batch.
const MOST_BYTES: usize = 32 << 20;
/// Jobs that are accepted in one transaction.
const GROUP: usize = 256;
/// How long a batch may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(120);

/// The route.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(submit_batch))
}

/// What became of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct Batch {
    /// How many jobs are accepted now, those that were accepted before included.
    accepted: usize,
    /// How many were not.
    refused: usize,
    /// Whether the whole batch was read. If not, the last answer says why, and what follows it was not looked at.
    complete: bool,
    /// An answer for each item, in their order.
    items: Vec<Answer>,
}

/// What became of one item.
#[derive(Debug, Serialize, ToSchema)]
pub struct Answer {
    /// The status that the job would have been answered with alone.
    #[schema(example = 202)]
    status: u16,
    /// The job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    job_id: Option<JobId>,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<String>,
    /// Its state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    state: Option<JobState>,
    /// When it was accepted: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_at: Option<String>,
    /// What has found a job that was accepted before: job_id, idempotency_key or unique.
    #[serde(skip_serializing_if = "Option::is_none")]
    found_by: Option<&'static str>,
    /// Why it was not accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Answer {
        Answer {
            status: problem.status(),
            job_id: problem.job_id(),
            session_id: None,
            state: None,
            accepted_at: None,
            found_by: None,
            problem: Some(problem),
        }
    }
}

/// Submit many jobs
///
/// A JSON array, or one JSON object a line (NDJSON): up to 10,000 jobs and 32 MiB. Each job is accepted or refused
/// for itself, while the rest still arrives, and has an answer of its own, in order. Jobs with ids of the caller's
/// own, or with an `idempotency_key` each, make the batch safe to repeat.
#[utoipa::path(
    post,
    path = "/v1/jobs/batch",
    tag = "jobs",
    request_body(content(
        (Vec<super::view::NewJob> = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 200, description = "An answer for each job", body = Batch),
        (status = 413, description = "It is larger than 32 MiB", body = Problem),
        (status = 415, description = "It is neither `application/json` nor `application/x-ndjson`", body = Problem),
    )
)]
async fn submit_batch(door: Shared, principal: Principal, request: Request) -> Result<Json<Batch>, Problem> {
    principal.needs(Scope::Submit)?;
    keys::no_header(request.headers())?;
    let format = match media_type(request.headers()).as_str() {
        "application/json" => Format::Array,
        "application/x-ndjson" | "application/jsonl" => Format::Lines,
        given => return Err(other_media_type(given, "application/json or application/x-ndjson")),
    };
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: usize| bytes > MOST_BYTES) {
        return Err(body::too_large(MOST_BYTES));
    }
    let limits = door.limits()?;
    let mut reading = Reading { door: &door, principal: &principal, limits, answers: Vec::new() };
    let read = reading.read(request, format).await;
    let complete = read.is_ok();
    let mut items = reading.answers;
    items.extend(read.err().map(Answer::from));
    let accepted = items.iter().filter(|answer| answer.problem.is_none()).count();
    Ok(Json(Batch { accepted, refused: items.len() - accepted, complete, items }))
}

struct Reading<'a> {
    door: &'a Door,
    principal: &'a Principal,
    limits: Limits,
    answers: Vec<Answer>,
}

impl Reading<'_> {
    /// Accepts the items as they come. An error ends the batch where it is.
    async fn read(&mut self, request: Request, format: Format) -> Result<(), Problem> {
        let deadline = Instant::now() + ARRIVES_WITHIN;
        let mut items = Items::new(format, self.limits.max_bytes);
        let (mut pieces, mut found, mut bytes) = (request.into_body().into_data_stream(), Vec::new(), 0);
        let malformed = |why: &str| Problem::new(Kind::Malformed, why).at("body");
        loop {
            let piece = match timeout_at(deadline, pieces.next()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(_))) => {
                    self.accept(&mut found).await?;
                    return Err(malformed("the batch did not arrive whole"));
                }
                Ok(None) => break,
                Err(_) => {
                    self.accept(&mut found).await?;
                    return Err(body::too_slow());
                }
            };
            bytes += piece.len();
            let fed = items.feed(&piece, &mut found);
            let is_over = fed.is_err() || bytes > MOST_BYTES || self.answers.len() + found.len() > MOST_JOBS;
            if found.len() >= GROUP || is_over {
                self.accept(&mut found).await?;
            }
            fed.map_err(malformed)?;
            if bytes > MOST_BYTES {
                return Err(body::too_large(MOST_BYTES));
            }
        }
        let ended = items.end(&mut found);
        self.accept(&mut found).await?;
        ended.map_err(malformed)
    }

    /// Accepts these in groups, and answers each.
    async fn accept(&mut self, found: &mut Vec<Item>) -> Result<(), Problem> {
        let mut found = std::mem::take(found).into_iter();
        loop {
            let room = GROUP.min(MOST_JOBS - self.answers.len());
            let group: Vec<Item> = found.by_ref().take(room).collect();
            if group.is_empty() {
                break;
            }
            self.accept_group(group).await?;
        }
        if found.next().is_some() {
            let detail = format!("expected at most {MOST_JOBS} jobs");
            return Err(Problem::new(Kind::TooLarge, detail).at("body"));
        }
        Ok(())
    }

    /// One transaction, so that jobs of one session keep their order.
    async fn accept_group(&mut self, group: Vec<Item>) -> Result<(), Problem> {
        let (mut answers, mut jobs) = (Vec::with_capacity(group.len()), Vec::new());
        for item in group {
            match self.checked(item).await {
                Ok(job) => {
                    answers.push(None);
                    jobs.push(job);
                }
                Err(problem) => answers.push(Some(Answer::from(problem))),
            }
        }
        let refused = match jobs.len() {
            0 => None,
            count => {
                let admitted = admit(self.door, self.principal, count, Timeout::begin()).await?;
                admitted.refused.map(|problem| (jobs.split_off(admitted.count), problem))
            }
        };
        let mut accepted = self.submit(jobs).await;
        if let Some((jobs, problem)) = &refused {
            let answer = |job: &Candidate| Answer::from(problem.clone().of_job(job.spec.job_id));
            accepted.extend(jobs.iter().map(answer));
        }
        let mut accepted = accepted.into_iter();
        let answers = answers.into_iter().filter_map(|refused| refused.or_else(|| accepted.next()));
        let before = self.answers.len();
        self.answers.extend(answers);
        // The rest would fare no better, and the caller waits.
        let is_away = self.answers[before..].iter().any(|answer| answer.status == 503);
        match refused {
            Some((_, problem)) => Err(problem),
            None if is_away => Err(Problem::unavailable()),
            None => Ok(()),
        }
    }

    async fn checked(&self, item: Item) -> Result<Candidate, Problem> {
        let Item::Text(text) = item else { return Err(body::too_large(self.limits.max_bytes)) };
        let candidate = Candidate::new(decode(&text, self.principal, &self.limits)?, text.len());
        let checked = check(self.door, self.principal, &candidate.spec, Timeout::begin()).await;
        checked.map_err(|problem| problem.of_job(candidate.spec.job_id))?;
        Ok(candidate)
    }

    /// An answer for each job.
    async fn submit(&self, jobs: Vec<Candidate>) -> Vec<Answer> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let specs: Vec<JobSpec> = jobs.iter().map(|job| job.spec.clone()).collect();
        let submitting =
            async { Ok::<_, Problem>(submit_in_order(&self.door.dispatch, jobs, &self.limits).await) };
        let (taken, submitted) = match Timeout::begin().ask(submitting).await {
            Ok(submitted) => submitted,
            Err(_) => {
                let unknown = |spec: &JobSpec| Problem::unavailable().of_job(spec.job_id).into();
                return specs.iter().map(unknown).collect();
            }
        };
        self.door.backlog.taken_in(self.principal.tenant(), submitted.new.len());
        self.door.publishing.hand_over(submitted);
        let mut answers = Vec::with_capacity(specs.len());
        for (spec, taken) in specs.iter().zip(taken) {
            let accepted = match taken {
                Ok(Taken::New { accepted_at }) => Ok((Job::accepted(spec, accepted_at), None)),
                Ok(Taken::Known) => {
                    let job = known(self.door, self.principal, spec, Timeout::begin()).await;
                    job.map(|job| (job, Some(FoundBy::JobId)))
                }
                Ok(Taken::Found { by, job_id, same }) => {
                    let timeout = Timeout::begin();
                    let job = keys::found(self.door, self.principal, by, job_id, same, timeout).await;
                    job.map(|job| (job, Some(FoundBy::Key(by))))
                }
                Err(error) => Err(error.into()),
            };
            answers.push(match accepted {
                Ok((job, found_by)) => Answer {
                    status: if found_by.is_some() { 200 } else { 202 },
                    found_by: found_by.map(FoundBy::as_str),
                    job_id: Some(job.job_id),
                    session_id: Some(job.session_id),
                    state: Some(job.state),
                    accepted_at: Some(job.accepted_at),
                    problem: None,
                },
                Err(problem) => problem.of_job(spec.job_id).into(),
            });
        }
        answers
    }
}
