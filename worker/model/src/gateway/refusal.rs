//! What the gateway itself answers, in the shape of the provider that the program believes to talk to.
//!
//! Sources: platform.claude.com/docs/en/api/errors, platform.openai.com/docs/guides/error-codes.

use std::error::Error;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::lines::spread;
use crate::ledger::Unavailable;
use crate::provider::Provider;

/// The SDKs of both providers read this first. Whole seconds are too coarse to keep short waits apart.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
    code: &'static str,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), retry_after: None }
    }

    pub fn no_token() -> Refusal {
        Refusal::new(
            StatusCode::UNAUTHORIZED,
            "invalid_api_key",
            "there is no key: use the one in the environment",
        )
    }

    pub fn dead_token() -> Refusal {
        let message = "the key is not that of a running attempt: it is wrong, or its attempt has ended";
        Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    pub fn too_slow() -> Refusal {
        let message = "the request was not sent within a minute";
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    pub fn no_key(provider: Provider) -> Refusal {
        let setting = match provider {
            Provider::Anthropic => "ANTHROPIC_API_KEY",
            Provider::OpenAi => "OPENAI_API_KEY",
        };
        let message = format!("this worker has no key for the provider: {setting} is not set");
        Refusal::new(StatusCode::FORBIDDEN, "no_provider_key", message)
    }

    pub fn invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub fn model(model: &str, allowed: &[String]) -> Refusal {
        let message = format!("the agent may not use the model `{model}`; it may use {}", allowed.join(", "));
        Refusal::new(StatusCode::FORBIDDEN, "model_not_allowed", message)
    }

    pub fn not_served(method: &Method, path: &str) -> Refusal {
        let message = format!("`{method} {path}` is not served: nothing is passed on that is not metered");
        Refusal::new(StatusCode::NOT_FOUND, "not_served", message)
    }

    pub fn unreadable(error: &dyn Error) -> Refusal {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", format!("the request: {error}"))
    }

    pub fn wait(code: &'static str, message: &str, retry_after: Duration) -> Refusal {
        let retry_after = Some(retry_after);
        Refusal { retry_after, ..Refusal::new(StatusCode::TOO_MANY_REQUESTS, code, message) }
    }

    pub fn spent(limit: &str) -> Refusal {
        Refusal::new(
            StatusCode::PAYMENT_REQUIRED,
            "budget_exhausted",
            format!("the budget is spent: {limit}"),
        )
    }

    pub fn ledger(error: &Unavailable) -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ledger_unavailable",
            format!("nothing was sent: {error}"),
        )
    }

    pub fn unreachable(error: &reqwest::Error) -> Refusal {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Refusal::new(StatusCode::BAD_GATEWAY, "provider_unreachable", format!("the provider{cause}"))
    }

    pub fn cut(message: &str) -> Refusal {
        Refusal::new(StatusCode::BAD_GATEWAY, "provider_unreachable", message)
    }

    pub fn not_stored() -> Refusal {
        let message = "no earlier attempt at this job has paid an answer to this request";
        Refusal::new(StatusCode::NOT_FOUND, "not_stored", message)
    }

    pub fn not_open() -> Refusal {
        let message =
            "call_id: this attempt has no open reservation of this id: it was settled, or never made";
        Refusal::new(StatusCode::NOT_FOUND, "not_open", message)
    }

    /// Returns it in no provider's shape (RFC 9457).
    pub fn problem(&self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let body = json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "code": self.code,
            "detail": self.message});
        self.with_body(&body, "application/problem+json")
    }

    pub fn response(&self, provider: Provider) -> Response {
        let body = match provider {
            Provider::Anthropic => {
                json!({"type": "error", "error": {"type": self.anthropic_type(), "message": self.message}})
            }
            Provider::OpenAi => {
                json!({"error": {"message": self.message, "type": self.openai_type(), "param": null,
                "code": self.code}})
            }
        };
        self.with_body(&body, "application/json")
    }

    fn with_body(&self, body: &serde_json::Value, content_type: &'static str) -> Response {
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let whole = spread(Duration::from_secs(seconds.max(1))).as_secs();
            headers.insert(RETRY_AFTER, HeaderValue::from(whole));
            let millis = spread(wait).as_millis();
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)));
        }
        response
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400 => "invalid_request_error",
            _ => "api_error",
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.status.as_u16() {
            402 => "insufficient_quota",
            429 => "rate_limit_exceeded",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }
}
