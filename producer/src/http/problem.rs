//! What a request is answered with when it fails: a problem document (RFC 9457), which names the field.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use job::{DecodeError, JobId};
use serde::Serialize;
use store::StoreError;
use tracing::{debug, error};
use utoipa::ToSchema;

use super::limits::RateLimit;

/// The media type.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// When a caller is asked to come back.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// Why a request failed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The kind of problem, from a fixed set: `urn:harness:` and a word such as `invalid`.
    #[serde(rename = "type")]
    #[schema(example = "urn:harness:invalid")]
    kind: String,
    /// The kind in words.
    #[schema(example = "The request is not valid")]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 422)]
    status: u16,
    /// What was given, and what would be right.
    #[schema(
        example = "got \"a b\", expected 1 to 128 characters of A-Z a-z 0-9 . _ : @ - that do not start with a dot"
    )]
    detail: String,
    /// The field, header or parameter that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "agent_id")]
    field: Option<String>,
    /// The job that was tried. After a 503 it may have been accepted: the same request with this id is the same job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    job_id: Option<JobId>,
    /// When to come back, in seconds; for 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    retry_after_s: Option<NonZeroU32>,
    /// What is left of the tenant's rate.
    #[serde(skip)]
    rate: Option<Box<RateLimit>>,
}

/// The kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Malformed,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    TooSlow,
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    Invalid,
    Internal,
    Unavailable,
    Busy,
    RateLimited,
    TenantBacklog,
    Backlog,
    TooManySignIns,
    TooManyFollowers,
    TooManyBodies,
    TooManyAnswers,
    TooManyTickets,
    TooManyTries,
}

impl Kind {
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Kind::Malformed => (StatusCode::BAD_REQUEST, "malformed", "The request cannot be read"),
            Kind::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "A key is needed"),
            Kind::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "The key does not allow this"),
            Kind::NotFound => (StatusCode::NOT_FOUND, "not_found", "There is no such thing"),
            Kind::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The method is not allowed here")
            }
            Kind::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow", "The request took too long to arrive"),
            Kind::Conflict => (StatusCode::CONFLICT, "conflict", "The present state does not allow this"),
            Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The request is too large"),
            Kind::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body has another media type than is read here",
            ),
            Kind::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The request is not valid"),
            Kind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The request failed here"),
            Kind::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "The API takes no more of this now"),
            Kind::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The ledger does not answer")
            }
            Kind::RateLimited => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limited", "The tenant submits too fast")
            }
            Kind::TenantBacklog => {
                (StatusCode::TOO_MANY_REQUESTS, "tenant_backlog", "Too many jobs of the tenant wait")
            }
            Kind::TooManySignIns => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_sign_ins",
                "Too many keys that are not valid came from this address",
            ),
            Kind::TooManyFollowers => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_followers",
                "Too many streams and waits of the caller are open",
            ),
            Kind::TooManyBodies => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_bodies",
                "Too many bytes of the caller are arriving at a time",
            ),
            Kind::TooManyAnswers => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_answers",
                "Too many bytes of answers wait for the caller to take them",
            ),
            Kind::TooManyTickets => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_tickets", "Too many tickets of the key are valid")
            }
            Kind::TooManyTries => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_tries", "Too many webhooks of the tenant are tried")
            }
            Kind::Backlog => (StatusCode::SERVICE_UNAVAILABLE, "backlog", "Too many jobs have not ended"),
        }
    }
}

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        let (status, word, title) = kind.parts();
        Problem {
            kind: format!("urn:harness:{word}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            job_id: None,
            retry_after_s: None,
            rate: None,
        }
    }

    /// A field that is wrong.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Problem {
        Problem::new(Kind::Invalid, detail).at(field)
    }

    /// What is not there, or is another tenant's.
    pub fn no_job() -> Problem {
        Problem::new(Kind::NotFound, "there is no job of this id")
    }

    /// What is not there, or is another tenant's.
    pub fn no_session() -> Problem {
        Problem::new(Kind::NotFound, "there is no session of this name")
    }

    /// What is not there, or is another tenant's.
    pub fn no_webhook() -> Problem {
        Problem::new(Kind::NotFound, "there is no webhook of this id")
    }

    /// What is not there, or is another tenant's.
    pub fn no_schedule() -> Problem {
        Problem::new(Kind::NotFound, "there is no schedule of this name")
    }

    /// Postgres is away or silent.
    pub fn unavailable() -> Problem {
        Problem::new(
            Kind::Unavailable,
            "Postgres does not answer in time; the same request may be sent again",
        )
    }

    /// It is about this field, header or parameter.
    pub fn at(self, field: impl Into<String>) -> Problem {
        Problem { field: Some(field.into()), ..self }
    }

    /// It is about this job.
    pub fn of_job(self, job_id: JobId) -> Problem {
        Problem { job_id: Some(job_id), ..self }
    }

    /// It may be tried again after this time.
    pub fn retry_after(self, time: Duration) -> Problem {
        let seconds = u32::try_from(time.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX);
        Problem { retry_after_s: Some(NonZeroU32::new(seconds).unwrap_or(NonZeroU32::MIN)), ..self }
    }

    /// This is what is left of the tenant's rate.
    pub fn of_rate(self, rate: Option<RateLimit>) -> Problem {
        Problem { rate: rate.map(Box::new), ..self }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The job that was tried.
    pub fn job_id(&self) -> Option<JobId> {
        self.job_id
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Problem {
        Problem::invalid(error.field, error.problem)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Unavailable(_) | StoreError::TooMuch(_) | StoreError::Closed => {
                // That Postgres is away was logged once, by `pulse`.
                debug!(cause = error.as_dyn(), "a request was answered with 503");
                Problem::unavailable()
            }
            StoreError::Refused { .. } => Problem::invalid("body", error.to_string()),
            StoreError::Broken { .. } => {
                error!(cause = error.as_dyn(), "a request failed in the ledger");
                Problem::new(Kind::Internal, "the ledger failed; the log of the API says why")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Every status is one of `Kind::parts`.
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(rate) = &self.rate {
            rate.note(&mut response);
        }
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, seconds.get().into());
        }
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                response.headers_mut().entry(RETRY_AFTER).or_insert(RETRY_AFTER_S);
            }
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
