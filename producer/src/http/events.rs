//! `/v1/jobs/{id}/events` and `/v1/sessions/{id}/events`: server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::RawQuery;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use job::{JobId, JobState, Json, Name, Note, SessionKey, TextPiece, Usd};
use serde::Serialize;
use store::{LiveJob, Step, StepPlace};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::followers::FollowerPlace;
use super::jobs::{job_id, seen};
use super::ledger::Timeout;
use super::metrics::FollowerGauge;
use super::path::Id;
use super::problem::Problem;
use super::query::Query;
use super::view::{Job, Question, size_and_digest};
use super::{Door, Shared};
use crate::following::{Event, Followed, Follower, News, Position, Sequence, Wish};

/// When clients come back after the end of this process. They are spread over as long again.
const RETRY_MS: u64 = 1_000;
/// When clients come back whose stream was ended because what it follows cannot be read.
const UNREADABLE_RETRY_MS: u64 = 30_000;
/// What is asked of a stream that goes on may lie this long before its last event.
const OVERLAP_MS: i64 = 15_000;
/// Caches ask for it anew, and proxies (nginx) pass each event on at once.
const HEADERS: [(&str, &str); 3] =
    [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("x-accel-buffering", "no")];
/// A line that clients ignore.
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(follow_job)).routes(routes!(follow_session))
}

/// An event of a stream: its lines `event`, `id` and `data`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `lines` writes")]
pub struct StreamEvent {
    /// Its kind: `state`, `iteration`, `text`, `note`, `gap` or `end`.
    event: String,
    /// Where a later stream goes on, by `Last-Event-ID`. Texts and notes have none, because they are not repeated.
    id: Option<String>,
    /// JSON, by the kind: `StateEvent`, `IterationEvent`, `TextEvent`, `NoteEvent`, `GapEvent`, or the job as it is read.
    data: String,
}

/// The data of the event `state`: where a job is.
#[derive(Debug, Serialize, ToSchema)]
pub struct StateEvent {
    /// The job.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// Its state.
    #[schema(value_type = String, example = "running")]
    state: JobState,
    /// Attempts spent.
    attempts: i32,
    /// The code of the last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// What it asks persons, where it is `awaiting_input`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    questions: Vec<Question>,
}

/// The data of the event `iteration`: what a checkpoint added, which is safe in the ledger.
#[derive(Debug, Serialize, ToSchema)]
pub struct IterationEvent {
    /// The job.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// Iterations it finished.
    iterations: i64,
    /// What they cost, in US dollars.
    #[schema(value_type = f64)]
    cost_usd: Usd,
    /// Tokens read.
    input_tokens: i64,
    /// Tokens written.
    output_tokens: i64,
    /// What they changed in `feature_progress`: a JSON merge patch; for keys with the scope `content`. A large one is
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    progress: Option<Json>,
    /// The size of that patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_bytes: Option<usize>,
    /// The SHA-256 of that patch, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_sha256: Option<String>,
}

/// The data of the event `text`: what a job streams; for keys with the scope `content`.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextEvent {
    /// The job.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// What it wrote since the last one.
    text: String,
}

/// The data of the event `note`: what a job's harness shows beside its text, such as the calls of tools (`tool_call`,
/// `tool_result`); for keys with the scope `content`.
#[derive(Debug, Serialize, ToSchema)]
pub struct NoteEvent {
    /// The job.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// What happened, in the harness's own words.
    name: String,
    /// Details, in the harness's own shape.
    #[schema(value_type = serde_json::Value)]
    data: Json,
}

/// The data of the event `gap`: what cannot be shown, iterations of a job or ends of a session.
#[derive(Debug, Serialize, ToSchema)]
pub struct GapEvent {
    /// The job whose iterations are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    job_id: Option<JobId>,
    /// How many.
    iterations: i64,
    /// True where ends of the session's jobs may be missing: it has more ended jobs than are looked at.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ends: bool,
}

/// What callers that cannot send headers give in the address.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query` reads")]
struct WithoutHeaders {
    /// The same, for callers that cannot send headers
    last_event_id: Option<String>,
    /// A ticket for this stream, in the place of a key
    ticket: Option<String>,
}

/// Follow a job
///
/// Server-sent events: `state`, `iteration`, `text`, `note`, `gap` and `end`, whose data is the job as it is read. The
/// stream ends behind `end`, which always comes. It begins with the job's first iteration, or behind the event that
/// `Last-Event-ID` names; iterations that are gone by then are a `gap`. `text` and `note` come as they are written, and
/// never again.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    tag = "jobs",
    params(
        ("id" = Uuid, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that was received"),
        WithoutHeaders,
    ),
    responses(
        (status = 200, description = "The events", content_type = "text/event-stream", body = StreamEvent),
        (status = 404, description = "There is no such job", body = Problem),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn follow_job(
    door: Shared,
    Id(id): Id,
    RawQuery(given): RawQuery,
    parts: Parts,
) -> Result<Response, Problem> {
    let (principal, from) = caller(&door, &parts, given.as_deref(), &format!("jobs/{id}")).await?;
    let job_id = job_id(&id)?;
    let view = seen(&door, &principal, job_id, principal.timeout()).await?;
    let from = from.unwrap_or(Position::START);
    // A job that was cancelled before it was seen has no session.
    let session = view.session_id.parse::<Name>().ok();
    let shard = session.map(|session| SessionKey::new(&view.tenant, &session).shard());
    let wish = Wish {
        followed: Followed::Job(job_id),
        behind: from.place,
        since: None,
        text: shard.filter(|_| principal.may(Scope::Content)),
        key_id: principal.key_id().to_owned(),
    };
    let sequence = Sequence::of_job(job_id, from);
    let place = door.followers.begin(&principal)?;
    Ok(answer(&door, principal, sequence, wish, place).await)
}

/// Follow a session
///
/// The events of all its jobs, as those of one job. It begins now, or behind the event that `Last-Event-ID` names, and
/// goes on until the caller or the API ends it. An end near the place where a stream goes on may come twice. Of a session
/// with more than 10,000 ended jobs, a stream that goes on says by a `gap` with `ends` that ends may be missing.
#[utoipa::path(
    get,
    path = "/v1/sessions/{id}/events",
    tag = "sessions",
    params(
        ("id" = String, Path, description = "The session's name"),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that was received"),
        WithoutHeaders,
    ),
    responses(
        (status = 200, description = "The events", content_type = "text/event-stream", body = StreamEvent),
        (status = 404, description = "There is no such session", body = Problem),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn follow_session(
    door: Shared,
    Id(id): Id,
    RawQuery(given): RawQuery,
    parts: Parts,
) -> Result<Response, Problem> {
    let (principal, resumed) = caller(&door, &parts, given.as_deref(), &format!("sessions/{id}")).await?;
    let now = door.now_unix_ms()?;
    let (session, last) = session(&door, &principal, &id, principal.timeout()).await?;
    let from = resumed.unwrap_or(Position { at: now as i64, place: last, ..Position::START });
    let since = if resumed.is_some() { from.at.saturating_sub(OVERLAP_MS) } else { from.at };
    let shard = session.shard();
    let wish = Wish {
        followed: Followed::Session(session),
        behind: from.place,
        since: Some(since),
        text: Some(shard).filter(|_| principal.may(Scope::Content)),
        key_id: principal.key_id().to_owned(),
    };
    let sequence = Sequence::of_session(from, resumed.is_none());
    let place = door.followers.begin(&principal)?;
    Ok(answer(&door, principal, sequence, wish, place).await)
}

/// The caller's session and the place of its last checkpoint, or a 404.
pub async fn session(
    door: &Door,
    principal: &Principal,
    name: &str,
    timeout: Timeout,
) -> Result<(SessionKey, StepPlace), Problem> {
    let key = principal.session_key(name)?;
    let last = timeout.ask(door.dispatch.store.last_place(&key)).await?;
    Ok((key, last.ok_or_else(Problem::no_session)?))
}

/// Who asks, by a key or by a ticket for this stream, and from where the stream goes on.
async fn caller(
    door: &Arc<Door>,
    parts: &Parts,
    query: Option<&str>,
    stream: &str,
) -> Result<(Principal, Option<Position>), Problem> {
    let query = Query::parse(query);
    let ticket = query.as_ref().ok().and_then(|query| query.one::<String>("ticket").ok()?);
    let principal = match ticket {
        Some(ticket) => Principal::of_ticket(parts, door, &ticket, stream).await?,
        None => Principal::of_request(parts, door).await?,
    };
    principal.needs(Scope::Read)?;
    let query = query?;
    let from = match parts.headers.get("last-event-id") {
        Some(given) => {
            let wrong = |problem: String| Problem::invalid("last-event-id", problem);
            let given = given.to_str().map_err(|_| wrong("expected the id of an event".to_owned()))?;
            Some(given.parse().map_err(wrong)?)
        }
        None => query.one("last_event_id")?,
    };
    Ok((principal, from))
}

async fn answer(
    door: &Door,
    principal: Principal,
    sequence: Sequence,
    wish: Wish,
    place: FollowerPlace,
) -> Response {
    let follower = door.following.follow(wish).await;
    let gauge = FollowerGauge::begin();
    let events = VecDeque::new();
    let spread = follower.id() % RETRY_MS;
    let streamed = Streamed {
        follower,
        sequence,
        content: principal.may(Scope::Content),
        events,
        spread,
        over: false,
        _gauge: gauge,
        _place: place,
    };
    (HEADERS, Body::from_stream(streamed.into_stream())).into_response()
}

/// A stream under way.
struct Streamed {
    follower: Follower,
    sequence: Sequence,
    /// Whether the caller is shown what was said. The rest of it is not kept: there are thousands of streams.
    content: bool,
    /// What was read and not sent yet. Each is written as text when its turn has come.
    events: VecDeque<(Position, Event)>,
    spread: u64,
    over: bool,
    _gauge: FollowerGauge,
    _place: FollowerPlace,
}

impl Streamed {
    /// Ends the stream; its client comes back after so long.
    fn end(&mut self, retry_ms: u64) -> Bytes {
        self.over = true;
        format!("retry: {retry_ms}\n\n").into()
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        // A future has what it is given twice, once before and once while it runs. So it is given a pointer.
        let this = Box::new(self);
        stream::unfold(this, async |mut streamed| Some((Ok(streamed.next().await?), streamed)))
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some((position, event)) = self.events.pop_front() {
                if self.events.is_empty() {
                    // An idle stream keeps no room for events.
                    self.events = VecDeque::new();
                }
                return Some(written(event, position, self.content));
            }
            if self.over {
                return None;
            }
            match self.follower.next().await? {
                News::Seen(seen) => {
                    let events = self.sequence.events(&seen);
                    let is_end = |(_, event): &(Position, Event)| matches!(event, Event::End(_));
                    // The end of the job that is followed alone is the stream's.
                    self.over = self.sequence.job_id().is_some() && events.iter().any(is_end);
                    self.events = events.into();
                }
                News::Text(piece) if self.sequence.job_id().is_none_or(|job_id| job_id == piece.job_id) => {
                    let TextPiece { job_id, text, note, .. } = TextPiece::clone(&piece);
                    return Some(match note {
                        Some(Note { name, data }) => lines("note", None, &NoteEvent { job_id, name, data }),
                        None => lines("text", None, &TextEvent { job_id, text }),
                    });
                }
                News::Text(_) => {}
                News::Quiet => return Some(COMMENT),
                News::Unreadable => return Some(self.end(UNREADABLE_RETRY_MS)),
                News::Stopping => return Some(self.end(RETRY_MS + self.spread)),
            }
        }
    }
}

/// An event as it is sent.
fn written(event: Event, position: Position, content: bool) -> Bytes {
    let at = Some(position);
    match event {
        Event::State(LiveJob { job_id, state, attempts, code, questions, .. }) => {
            let questions = questions.into_iter().map(|open| Question::of(open, content)).collect();
            lines("state", at, &StateEvent { job_id, state, attempts, code, questions })
        }
        Event::Iteration(step) => {
            let Step { job_id, iterations, cost: cost_usd, input_tokens, output_tokens, progress, .. } = step;
            let (progress_bytes, progress_sha256) = progress.as_ref().map(size_and_digest).unzip();
            let iteration = IterationEvent {
                job_id,
                iterations,
                cost_usd,
                input_tokens,
                output_tokens,
                progress: progress.filter(|_| content),
                progress_bytes,
                progress_sha256,
            };
            lines("iteration", at, &iteration)
        }
        Event::Gap(job_id, iterations) => {
            lines("gap", at, &GapEvent { job_id: Some(job_id), iterations, ends: false })
        }
        Event::EndsGap => lines("gap", at, &GapEvent { job_id: None, iterations: 0, ends: true }),
        Event::End(view) => lines("end", at, &Job::shown((*view).clone(), content)),
    }
}

/// The lines of an event, as WHATWG HTML 9.2 has them. None of the values has a line end.
fn lines(name: &'static str, id: Option<Position>, data: &impl Serialize) -> Bytes {
    let data = job::one_line(serde_json::to_string(data).expect("what we show is plain JSON"));
    let mut lines = format!("event: {name}\ndata: {data}\n");
    if let Some(id) = id {
        writeln!(lines, "id: {id}").expect("a String takes all");
    }
    lines.push('\n');
    lines.into()
}
