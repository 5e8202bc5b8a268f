//! Which protocol a request speaks, and how its provider says no.

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaks {
    /// Anthropic's Messages.
    Messages,
    /// OpenAI's Chat Completions.
    Chat,
    /// OpenAI's Responses.
    Responses,
}

impl Speaks {
    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Speaks::Messages => "/v1/messages",
            Speaks::Chat => "/v1/chat/completions",
            Speaks::Responses => "/v1/responses",
        }
    }

    /// Returns the key that a request brings.
    pub(super) fn key(self, headers: &HeaderMap) -> Option<&str> {
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let bearer = || header("authorization")?.strip_prefix("Bearer ");
        match self {
            // Anthropic's own SDKs send either.
            Speaks::Messages => header("x-api-key").or_else(bearer),
            Speaks::Chat | Speaks::Responses => bearer(),
        }
    }

    /// Returns an error in the provider's shape.
    pub(super) fn refusal(self, refused: &Refusal, request_id: &str) -> Response {
        let Refusal { status, message, param, code } = refused;
        let body = match self {
            Speaks::Messages => json!({"type": "error", "request_id": request_id,
                "error": {"type": refused.kind(), "message": message}}),
            Speaks::Chat | Speaks::Responses => json!({"error": {"message": message,
                "type": refused.openai_kind(), "param": param, "code": code}}),
        };
        (StatusCode::from_u16(*status).expect("a status"), Json(body)).into_response()
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: u16,
    pub message: String,
    /// OpenAI names the parameter.
    pub param: Option<String>,
    /// OpenAI has a code for some errors.
    pub code: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), param: None, code: None }
    }

    /// A request that is not valid.
    pub fn invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(400, message)
    }

    pub fn param(self, param: impl Into<String>) -> Refusal {
        Refusal { param: Some(param.into()), ..self }
    }

    pub fn code(self, code: &'static str) -> Refusal {
        Refusal { code: Some(code), ..self }
    }

    /// The type of Anthropic's errors by status (docs: Errors).
    fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            529 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        }
    }

    fn openai_kind(&self) -> &'static str {
        match self.status {
            429 => "requests",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }
}
