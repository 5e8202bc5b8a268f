//! All routes, and the document that describes them.

use std::sync::Arc;

use axum::Router;
use axum::http::Uri;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use super::problem::{Kind, Problem};
use super::{Door, batch, jobs, lists, metrics};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "harness-fleet",
        description = "Submit jobs to a fleet of agent harnesses, follow them, and read their results. Errors are problem documents (RFC 9457)."
    ),
    tags(
        (name = "jobs", description = "Submit, read, wait, cancel, run again"),
        (name = "sessions", description = "What sessions have come to"),
        (name = "fleet", description = "Pools and workers")
    ),
    security(("key" = []))
)]
struct Document;

/// The API of this door.
pub fn router(door: Arc<Door>) -> Router {
    let (routes, mut document) = {
        let document = OpenApiRouter::with_openapi(Document::openapi());
        document.merge(jobs::routes()).merge(batch::routes()).merge(lists::routes()).split_for_parts()
    };
    let key = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("key", key);
    routes
        .merge(SwaggerUi::new("/docs").url("/v1/openapi.json", document))
        .fallback(|uri: Uri| async move {
            let detail =
                format!("there is nothing at {}; the routes are listed at /docs", job::shown(uri.path()));
            Problem::new(Kind::NotFound, detail)
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::MethodNotAllowed, "expected a method that the header Allow names")
        })
        .layer(axum::middleware::from_fn(metrics::measure))
        .with_state(door)
}
