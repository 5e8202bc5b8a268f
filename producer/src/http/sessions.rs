//! `/v1/sessions`: the caller's sessions, and what one of them has come to.

use std::sync::Arc;

use axum::Json;
use axum::extract::RawQuery;
use job::Name;
use serde::Serialize;
use store::{Page, SessionFilter, SessionLine};
use tracing::error;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::lists::{Listed, Paged, limit};
use super::path::Id;
use super::problem::{Kind, Problem};
use super::query::{Moment, Query};
use super::view::size_and_digest;
use super::{Door, Shared};
use crate::SessionNow;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(list_sessions)).routes(routes!(read_session))
}

/// Which sessions.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query` reads")]
struct ChosenSessions {
    /// The agent of its first job
    agent: Option<String>,
    /// Created at this time or later; RFC 3339, UTC
    #[param(example = "2026-01-31T08:00:00Z")]
    created_since: Option<String>,
    /// Created before this time; RFC 3339, UTC
    created_before: Option<String>,
    /// Last updated, by the end of a job, at this time or later; RFC 3339, UTC
    updated_since: Option<String>,
    /// Last updated before this time; RFC 3339, UTC
    updated_before: Option<String>,
}

/// A session in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionEntry {
    /// Its name.
    session_id: String,
    /// The agent of its first job.
    agent_id: String,
    /// RFC 3339, UTC.
    created_at: String,
    /// RFC 3339, UTC.
    last_updated: String,
    /// Jobs folded so far.
    jobs: i64,
}

/// A session.
#[derive(Debug, Serialize, ToSchema)]
pub struct Session {
    /// Its name.
    session_id: String,
    /// The agent of its first job.
    agent_id: String,
    /// RFC 3339, UTC.
    created_at: String,
    /// RFC 3339, UTC.
    last_updated: String,
    /// Jobs folded so far.
    jobs: i64,
    /// Iterations in all.
    iterations: i64,
    /// Spend in all, in US dollars.
    #[schema(value_type = f64)]
    cost_usd: job::Usd,
    /// Tokens read in all.
    input_tokens: i64,
    /// Tokens written in all.
    output_tokens: i64,
    /// Its memory as of its last checkpoint; for keys with the scope `content`, like its context and progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<serde_json::Value>,
    /// The size of its memory.
    memory_bytes: usize,
    /// The SHA-256 of its memory, in hexadecimal.
    memory_sha256: String,
    /// Its context as of its last checkpoint: a list, whose entries are as they were written, to the letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    context_window: Option<Vec<job::Json>>,
    /// The size of its context.
    context_window_bytes: usize,
    /// The SHA-256 of its context, in hexadecimal.
    context_window_sha256: String,
    /// Its progress as of its last checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_progress: Option<serde_json::Value>,
    /// The size of its progress.
    feature_progress_bytes: usize,
    /// The SHA-256 of its progress, in hexadecimal.
    feature_progress_sha256: String,
}

/// List sessions, by name
///
/// A session is listed from the first time that a worker takes one of its jobs.
#[utoipa::path(
    get,
    path = "/v1/sessions",
    tag = "sessions",
    params(ChosenSessions, Paged),
    responses(
        (status = 200, description = "A page", body = Listed<SessionEntry>),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn list_sessions(
    door: Shared,
    principal: Principal,
    RawQuery(given): RawQuery,
) -> Result<Json<Listed<SessionEntry>>, Problem> {
    principal.needs(Scope::Read)?;
    let query = Query::parse(given.as_deref())?;
    let time = |name| query.one(name).map(|time| time.map(|Moment(unix_ms)| unix_ms));
    let filter = SessionFilter {
        agent: query.one("agent")?,
        created_since: time("created_since")?,
        created_before: time("created_before")?,
        updated_since: time("updated_since")?,
        updated_before: time("updated_before")?,
    };
    let (after, limit) = (query.one::<Name>("cursor")?, limit(&query)?);
    let listing = door.dispatch.store.list_sessions(principal.tenant(), &filter, after.as_ref(), limit);
    let Page { found, next } = principal.timeout().ask(listing).await?;
    Ok(Json(Listed { items: found.into_iter().map(SessionEntry::from).collect(), next }))
}

/// Read a session
///
/// It is there as soon as a job of it is accepted. Until a worker takes the first one, its state is empty, its counters are
/// 0, and its times are those of that job.
#[utoipa::path(
    get,
    path = "/v1/sessions/{id}",
    tag = "sessions",
    params(("id" = String, Path, description = "The session's name")),
    responses(
        (status = 200, description = "The session", body = Session),
        (status = 404, description = "There is no such session", body = Problem),
    )
)]
async fn read_session(door: Shared, principal: Principal, Id(id): Id) -> Result<Json<Session>, Problem> {
    principal.needs(Scope::Read)?;
    let key = principal.session_key(&id)?;
    let view = principal.timeout().ask(door.dispatch.store.session(&key)).await?;
    let view = SessionNow::of(view.ok_or_else(Problem::no_session)?).map_err(|error| unreadable(&error))?;
    let may_see = principal.may(Scope::Content);
    let (memory_bytes, memory_sha256) = size_and_digest(&view.memory);
    let (context_window_bytes, context_window_sha256) = size_and_digest(&view.context_window);
    let (feature_progress_bytes, feature_progress_sha256) = size_and_digest(&view.feature_progress);
    Ok(Json(Session {
        session_id: view.head.session_id,
        agent_id: view.head.agent_id,
        created_at: view.head.created_at,
        last_updated: view.head.last_updated,
        jobs: view.head.version,
        iterations: view.head.iteration_count,
        cost_usd: view.head.cost_usd,
        input_tokens: view.head.input_tokens,
        output_tokens: view.head.output_tokens,
        memory: may_see.then_some(view.memory),
        memory_bytes,
        memory_sha256,
        context_window: may_see.then_some(view.context_window),
        context_window_bytes,
        context_window_sha256,
        feature_progress: may_see.then_some(view.feature_progress),
        feature_progress_bytes,
        feature_progress_sha256,
    }))
}

fn unreadable(cause: &serde_json::Error) -> Problem {
    error!(cause = cause as &dyn std::error::Error, "a session's state cannot be read");
    Problem::new(Kind::Internal, "the session's state cannot be read; the log of the API says why")
}

impl From<SessionLine> for SessionEntry {
    fn from(line: SessionLine) -> SessionEntry {
        SessionEntry {
            session_id: line.session_id,
            agent_id: line.agent_id,
            created_at: line.created_at,
            last_updated: line.last_updated,
            jobs: line.jobs,
        }
    }
}
