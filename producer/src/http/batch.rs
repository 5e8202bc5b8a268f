//! `/v1/jobs/batch`: many jobs in one request. Each is accepted or refused for itself.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use dispatch::Candidate;
use futures::StreamExt;
use job::{JobId, JobSpec, JobState, Limits, Name};
use serde::Serialize;
use store::{JobHead, StoreError, Taken};
use tokio::time::{Instant, sleep, timeout_at};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::body::{self, media_type, other_media_type};
use super::items::{Format, Item, Items};
use super::jobs::{all_known, all_seen, decode, is_served, may_submit};
use super::keys::{self, FoundBy};
use super::ledger::Timeout;
use super::limits::admit;
use super::problem::{Kind, Problem};
use super::{Door, Shared};
use crate::submit::{find_earlier, submit_in_order};

/// The most jobs of a batch.
const MOST_JOBS: usize = 10_000;
/// The most bytes of a batch.
const MOST_BYTES: usize = 32 << 20;
/// Jobs that are accepted together, at most, and about as many bytes of them.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 4 << 20;
/// How long a batch may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(120);
/// For how long a batch that arrives without a pause is read on when the process is asked to stop. It has its answer
/// before requests under way are cut off.
const READ_ON: Duration = Duration::from_secs(5);

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
    /// Whether the whole batch was read. If not, the last answer says why, and the items from its place on were not looked
    /// at: the batch is malformed or too large, the key was revoked, Postgres is silent, or the process that reads it
    /// stops.
    complete: bool,
    /// An answer for each item, in their order; and one more where the batch was not read to its end.
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
    /// When it was accepted: RFC 3339, UTC; for keys with the scope `read`, like the session.
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
/// own, or with an `idempotency_key` each, make the batch safe to repeat. A batch that cannot be read to its end has
/// the answers of what came before, and `"complete": false`.
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
        (status = 503, description = "Postgres is away or silent, or too many batches are read at this time: 8 of the tenant, or 16 in all. Try again after `Retry-After` seconds", body = Problem),
        (status = 415, description = "It is neither `application/json` nor `application/x-ndjson`", body = Problem),
        (status = 422, description = "It has the header `Idempotency-Key`: each job of a batch has a key of its own", body = Problem),
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
    let _place = door.batches.begin(principal.tenant())?;
    let mut reading =
        Reading { door: &door, principal: &principal, limits, answers: Vec::new(), refused: None };
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
    /// Why what comes behind the answers is not looked at.
    refused: Option<Problem>,
}

impl Reading<'_> {
    /// Accepts the items as they come. An error ends the batch where it is.
    async fn read(&mut self, request: Request, format: Format) -> Result<(), Problem> {
        let deadline = Instant::now() + ARRIVES_WITHIN;
        let mut items = Items::new(format, self.limits.max_bytes);
        let (mut pieces, mut found) = (request.into_body().into_data_stream(), Vec::new());
        let (mut bytes, mut accepted_bytes) = (0, 0);
        let malformed = |why: &str| Problem::new(Kind::Malformed, why).at("body");
        let stop = &self.door.stop;
        let cut_off = async {
            stop.cancelled().await;
            sleep(READ_ON).await;
        };
        tokio::pin!(cut_off);
        loop {
            // What has arrived is taken before a stop counts.
            let piece = tokio::select! {
                biased;
                () = &mut cut_off => Err(stopping()),
                piece = timeout_at(deadline, pieces.next()) => match piece {
                    Ok(Some(Ok(piece))) => Ok(piece),
                    Ok(Some(Err(_))) => Err(malformed("the batch did not arrive whole")),
                    Ok(None) => break,
                    Err(_) => Err(body::too_slow(ARRIVES_WITHIN)),
                },
                () = stop.cancelled() => Err(stopping()),
            };
            let piece = match piece {
                Ok(piece) => piece,
                Err(why) => {
                    self.accept(found).await?;
                    return Err(why);
                }
            };
            bytes += piece.len();
            let fed = items.feed(&piece, &mut found);
            let is_over = fed.is_err() || bytes > MOST_BYTES || self.answers.len() + found.len() > MOST_JOBS;
            let is_refused = self.refused.is_some() && !found.is_empty();
            let all = bytes - accepted_bytes >= GROUP_BYTES || is_over || is_refused;
            // What is no whole group yet costs less together with what comes next.
            let count = if all { found.len() } else { found.len() - found.len() % GROUP };
            if count > 0 {
                self.accept(found.drain(..count).collect()).await?;
                accepted_bytes = bytes;
            }
            fed.map_err(malformed)?;
            if bytes > MOST_BYTES {
                return Err(body::too_large(MOST_BYTES));
            }
        }
        let ended = items.end(&mut found);
        self.accept(found).await?;
        ended.map_err(malformed)
    }

    /// Accepts these in groups, and answers each.
    async fn accept(&mut self, found: Vec<Item>) -> Result<(), Problem> {
        let mut found = found.into_iter();
        loop {
            let room = GROUP.min(MOST_JOBS - self.answers.len());
            let group: Vec<Item> = found.by_ref().take(room).collect();
            if group.is_empty() {
                break;
            }
            if let Some(refused) = self.refused.take() {
                return Err(refused);
            }
            self.accept_group(group).await?;
        }
        if found.next().is_some() {
            let detail = format!("expected at most {MOST_JOBS} jobs");
            return Err(Problem::new(Kind::TooLarge, detail).at("body"));
        }
        Ok(())
    }

    /// Submits a group in one go, so that jobs of one session keep their order. The ledger has one time limit for all
    /// questions about it. If what comes behind it would fare no better, `refused` holds the reason afterwards.
    async fn accept_group(&mut self, group: Vec<Item>) -> Result<(), Problem> {
        let timeout = self.door.timeout();
        self.principal.still_counts(&self.door.keys, timeout).await?;
        let decoded: Vec<Result<Candidate, Problem>> =
            group.into_iter().map(|item| self.decoded(item)).collect();
        let pools: BTreeSet<Name> = decoded.iter().flatten().map(|job| job.spec.pool.clone()).collect();
        let unserved = timeout.ask(self.door.served.unserved(&self.door.dispatch.store, pools)).await;
        let (mut answers, mut jobs) = (Vec::with_capacity(decoded.len()), Vec::new());
        for decoded in decoded {
            let checked = decoded.and_then(|job| {
                let checked = match &unserved {
                    Ok(unserved) => is_served(&job.spec, unserved),
                    Err(problem) => Err(problem.clone()),
                };
                match checked {
                    Ok(()) => Ok(job),
                    Err(problem) => Err(problem.of_job(job.spec.job_id)),
                }
            });
            match checked {
                Ok(job) => {
                    answers.push(None);
                    jobs.push(job);
                }
                Err(problem) => answers.push(Some(Answer::from(problem))),
            }
        }
        let (accepted, refused) =
            if jobs.is_empty() { (Vec::new(), None) } else { self.admit(jobs, timeout).await? };
        let mut accepted = accepted.into_iter();
        let answers = answers.into_iter().filter_map(|refused| refused.or_else(|| accepted.next()));
        let before = self.answers.len();
        self.answers.extend(answers);
        // The rest would fare no better, and the caller waits.
        let is_away = self.answers[before..].iter().any(|answer| answer.status == 503);
        self.refused = refused.or_else(|| is_away.then(Problem::unavailable));
        Ok(())
    }

    /// Submits those that the limits admit. Where they refuse some, a repeat of a request that was accepted has its answer all
    /// the same, because it takes nothing more in. Returns an answer for each job, and why some are refused.
    async fn admit(
        &self,
        jobs: Vec<Candidate>,
        timeout: Timeout,
    ) -> Result<(Vec<Answer>, Option<Problem>), Problem> {
        let admitted = admit(self.door, self.principal, jobs.len(), timeout).await?;
        let Some(problem) = admitted.refused else { return Ok((self.submit(jobs, timeout).await, None)) };
        let earlier = match timeout.ask(find_earlier(&self.door.dispatch, &jobs)).await {
            Ok(earlier) => earlier,
            Err(_) => jobs.iter().map(|_| None).collect(),
        };
        let (mut taken, mut new, mut ways) = (Vec::new(), Vec::new(), Vec::new());
        let idempotent = idempotent(&jobs);
        for (job, earlier) in jobs.into_iter().zip(earlier) {
            let job_id = job.spec.job_id;
            ways.push((job_id, earlier.is_some(), new.len() < admitted.count));
            match earlier {
                Some(earlier) => taken.push((job.spec, Ok(earlier))),
                None if new.len() < admitted.count => new.push(job),
                None => {}
            }
        }
        let is_refused = ways.iter().any(|(_, is_known, has_room)| !is_known && !has_room);
        let mut known = self.answered(taken, &idempotent, timeout).await.into_iter();
        let mut new = self.submit(new, timeout).await.into_iter();
        let answer = |(job_id, is_known, has_room): (JobId, bool, bool)| {
            let answer = match (is_known, has_room) {
                (true, _) => known.next(),
                (false, true) => new.next(),
                (false, false) => None,
            };
            answer.unwrap_or_else(|| problem.clone().of_job(job_id).into())
        };
        let answers = ways.into_iter().map(answer).collect();
        Ok((answers, is_refused.then_some(problem)))
    }

    fn decoded(&self, item: Item) -> Result<Candidate, Problem> {
        let Item::Text(text) = item else { return Err(body::too_large(self.limits.max_bytes)) };
        let candidate = Candidate::new(decode(&text, self.principal, &self.limits)?, text.len());
        let spec = &candidate.spec;
        may_submit(self.principal, spec).map_err(|problem| problem.of_job(spec.job_id))?;
        Ok(candidate)
    }

    /// An answer for each job.
    async fn submit(&self, jobs: Vec<Candidate>, timeout: Timeout) -> Vec<Answer> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let idempotent = idempotent(&jobs);
        let (taken, submitted) =
            submit_in_order(&self.door.dispatch, jobs, &self.limits, timeout.left()).await;
        self.door.backlog.taken_in(self.principal.tenant(), submitted.new.len());
        self.door.publishing.hand_over(submitted);
        // What was taken in time has its answer, too, if the ledger is not silent.
        let is_silent = taken.iter().any(|(_, taken)| taken.as_ref().is_err_and(StoreError::is_retryable));
        let timeout = if is_silent { timeout } else { self.door.timeout() };
        self.answered(taken, &idempotent, timeout).await
    }

    /// An answer for each job, of which the ledger has said this. Some of them have a key of their request.
    async fn answered(
        &self,
        taken: Vec<(JobSpec, Result<Taken, StoreError>)>,
        idempotent: &HashSet<JobId>,
        timeout: Timeout,
    ) -> Vec<Answer> {
        let before: Vec<&JobSpec> = taken
            .iter()
            .filter_map(|(spec, taken)| matches!(taken, Ok(Taken::Known)).then_some(spec))
            .collect();
        let mut known = match before.is_empty() {
            true => Vec::new().into_iter(),
            false => match all_known(self.door, self.principal, &before, timeout).await {
                Ok(known) => known.into_iter(),
                Err(problem) => before.iter().map(|_| Err(problem.clone())).collect::<Vec<_>>().into_iter(),
            },
        };
        let found: Vec<JobId> = taken
            .iter()
            .filter_map(|(_, taken)| match taken {
                Ok(Taken::Found { job_id, .. }) => Some(*job_id),
                Ok(Taken::New { .. } | Taken::Known) | Err(_) => None,
            })
            .collect();
        let found = match found.is_empty() {
            true => Ok(HashMap::new()),
            false => all_seen(self.door, self.principal, &found, timeout).await,
        };
        let mut answers = Vec::with_capacity(taken.len());
        for (spec, taken) in taken {
            let answer = match taken {
                Ok(Taken::New { accepted_at, state }) => Ok(self.accepted(&spec, state, accepted_at)),
                Ok(Taken::Known) => {
                    // One for each, in their order.
                    let job = known.next().unwrap_or_else(|| Err(Problem::no_job()));
                    let is_idempotent = idempotent.contains(&spec.job_id);
                    job.map(|job| self.found(job, FoundBy::of_known(is_idempotent)))
                }
                Ok(Taken::Found { by, job_id, same }) => {
                    let job = keys::refuse_another(by, job_id, same).and_then(|()| match &found {
                        Ok(found) => found.get(&job_id).cloned().ok_or_else(Problem::no_job),
                        Err(problem) => Err(problem.clone()),
                    });
                    job.map(|job| self.found(job, FoundBy::Key(by)))
                }
                Err(error) => Err(error.into()),
            };
            answers.push(answer.unwrap_or_else(|problem: Problem| problem.of_job(spec.job_id).into()));
        }
        answers
    }

    fn accepted(&self, spec: &JobSpec, state: JobState, accepted_at: String) -> Answer {
        let reads = self.principal.may(Scope::Read);
        Answer {
            status: 202,
            job_id: Some(spec.job_id),
            session_id: reads.then(|| spec.session_id.to_string()),
            state: Some(state),
            accepted_at: Some(accepted_at).filter(|_| reads),
            found_by: None,
            problem: None,
        }
    }

    fn found(&self, job: JobHead, found_by: FoundBy) -> Answer {
        let reads = self.principal.may(Scope::Read);
        Answer {
            status: 200,
            found_by: Some(found_by.as_str()),
            job_id: Some(job.job_id),
            session_id: Some(job.session_id).filter(|_| reads),
            state: Some(job.state),
            accepted_at: Some(job.accepted_at).filter(|_| reads),
            problem: None,
        }
    }
}

/// The jobs that have a key of their request.
fn idempotent(jobs: &[Candidate]) -> HashSet<JobId> {
    jobs.iter().filter(|job| job.is_idempotent()).map(|job| job.spec.job_id).collect()
}

/// Why a batch is not read on.
fn stopping() -> Problem {
    Problem::new(Kind::Busy, "this process stops; the rest of the batch may be sent again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_is_too_slow_is_answered_with_its_own_time_limit() {
        let problem = serde_json::to_value(body::too_slow(ARRIVES_WITHIN)).unwrap();
        assert_eq!(problem["detail"], "the body did not arrive within 120 s");
    }
}
