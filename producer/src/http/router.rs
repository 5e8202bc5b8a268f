//! All routes, and the document that describes them.

use std::sync::Arc;

use axum::http::Uri;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Extension, Router};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Header, HeaderBuilder, ObjectBuilder, Ref, RefOr, ResponseBuilder, Type,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use super::cors::Origins;
use super::events::{GapEvent, IterationEvent, NoteEvent, StateEvent, TextEvent};
use super::problem::{Kind, PROBLEM_JSON, Problem};
use super::query::KnownNames;
use super::{
    Door, answers, batch, body, events, inputs, jobs, limit_keys, lists, metrics, removal, schedules,
    sessions, spend, tickets, webhooks,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "harness-fleet",
        description = "Submit jobs to a fleet of agent harnesses, follow them, and read their results. Errors are problem documents (RFC 9457)."
    ),
    tags(
        (name = "jobs", description = "Submit, read, wait, cancel, run again"),
        (name = "limits", description = "How many jobs with a key are at work at a time"),
        (name = "schedules", description = "Jobs that are made by the clock"),
        (name = "webhooks", description = "Addresses to which ends are sent"),
        (name = "sessions", description = "What sessions have come to"),
        (name = "spend", description = "What model calls have cost"),
        (name = "fleet", description = "Pools and workers")
    ),
    security(("key" = [])),
    components(schemas(Problem, StateEvent, IterationEvent, TextEvent, NoteEvent, GapEvent))
)]
struct Document;

/// The server answers so before there is a request, and so without a problem document.
const TOO_LARGE_A_HEAD: &str = "431";

/// Answers that say when to come back.
const LATER: [&str; 2] = ["429", "503"];

/// What any route may answer beside its own.
const COMMON: [(&str, &str); 7] = [
    ("401", "No key, or an unknown one"),
    ("403", "The key lacks the scope"),
    ("422", "A parameter of the query is unknown"),
    (
        "429",
        "A limit of the tenant, of the key or of the caller's address. Try again after `Retry-After` seconds",
    ),
    (TOO_LARGE_A_HEAD, "It has more than 100 headers, or 64 KiB of them; the answer has no body"),
    ("500", "The ledger refuses to work; the log of the API says why"),
    (
        "503",
        "Postgres is away or silent: whether anything was done is not known. Or nothing was done, because too many jobs have not ended (`backlog`), or this process has too much of this kind to do (`busy`). Try again after `Retry-After` seconds",
    ),
];

/// What any route that reads a body may answer beside its own.
const WITH_BODY: [(&str, &str); 5] = [
    ("400", "No JSON"),
    ("408", "The body took too long"),
    ("413", "It is too large"),
    ("415", "It is not `application/json`"),
    ("422", "A field is unknown or wrong"),
];

/// Adds what all routes have in common, and the media type of problems.
fn complete(document: &mut utoipa::openapi::OpenApi) {
    let key = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("key", key);
    let problem = || ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    for path in document.paths.paths.values_mut() {
        for operation in [&mut path.get, &mut path.post, &mut path.delete].into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            let with_body = operation.request_body.is_some().then_some(WITH_BODY).into_iter().flatten();
            // What is said first of a status is kept.
            for (status, description) in with_body.chain(COMMON) {
                let response = ResponseBuilder::new().description(description).build();
                responses.entry(status.to_owned()).or_insert_with(|| response.into());
            }
            for (status, response) in responses {
                let RefOr::T(response) = response else { continue };
                if !status.starts_with('2') && status != TOO_LARGE_A_HEAD {
                    response.content = [(PROBLEM_JSON.to_owned(), problem().into())].into_iter().collect();
                }
                if LATER.contains(&status.as_str()) {
                    response.headers.insert("Retry-After".to_owned(), RefOr::T(retry_after()));
                }
            }
        }
    }
}

/// The header `Retry-After`.
fn retry_after() -> Header {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let description = "In how many seconds to try again";
    HeaderBuilder::new().schema(Some(seconds)).description(Some(description)).build()
}

/// Names the formats of unsigned numbers as OpenAPI's registry does. The library calls them `u-int32` and `u-int64`.
fn name_formats(document: &mut Value) {
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().and_then(|format| format.strip_prefix("u-int")) {
                    Some(bits) if name == "format" => *value = format!("uint{bits}").into(),
                    _ => name_formats(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(name_formats),
        _ => {}
    }
}

/// The API of this door, for pages of these origins as well.
pub fn router(door: Arc<Door>, origins: &Origins) -> Router {
    let (routes, mut document) = {
        let document = OpenApiRouter::with_openapi(Document::openapi());
        document
            .merge(jobs::routes())
            .merge(inputs::routes())
            .merge(batch::routes())
            .merge(lists::routes())
            .merge(sessions::routes())
            .merge(spend::routes())
            .merge(removal::routes())
            .merge(events::routes())
            .merge(tickets::routes())
            .merge(limit_keys::routes())
            .merge(schedules::routes())
            .merge(webhooks::routes())
            .split_for_parts()
    };
    complete(&mut document);
    let known = KnownNames::of(&document);
    // It is made of texts and maps: it always has a JSON form.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    name_formats(&mut document);
    metrics::register();
    let routes = routes
        .merge(SwaggerUi::new("/docs").external_url_unchecked("/v1/openapi.json", document))
        .fallback(|uri: Uri| async move {
            let detail =
                format!("there is nothing at {}; the routes are listed at /docs", job::shown(uri.path()));
            Problem::new(Kind::NotFound, detail)
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::MethodNotAllowed, "expected a method that the header Allow names")
        })
        .layer(from_fn_with_state(door.clone(), answers::count))
        .layer(from_fn_with_state(door.clone(), body::arrive))
        .layer(from_fn(metrics::measure))
        .layer(Extension(origins.clone()))
        .layer(Extension(known))
        .with_state(door);
    if origins.is_empty() { routes } else { routes.layer(origins.layer()) }
}
