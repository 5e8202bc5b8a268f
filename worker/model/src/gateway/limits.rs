//! What an answer says of the rate limits of its key: in its headers, and in the body of a refusal.
//!
//! Sources: platform.claude.com/docs/en/api/rate-limits (`anthropic-ratelimit-*`, `retry-after`; 529 is an overload of the
//! provider), platform.openai.com/docs/guides/rate-limits (`x-ratelimit-*`) and guides/error-codes (429 with
//! `insufficient_quota` when the account has no credit), RFC 9110 section 10.2.3 (`Retry-After`).

use std::time::Duration;

use axum::http::header::{DATE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::ledger::{KeyRefused, Learnt, RateLimits, RefusedFor};
use crate::provider::Provider;

/// Reads the head of an answer.
pub(super) fn learnt(provider: Provider, status: StatusCode, headers: &HeaderMap) -> Learnt {
    let limit = |name: &str| number(headers, name).filter(|limit| *limit > 0);
    let limits = match provider {
        Provider::Anthropic => RateLimits {
            requests: limit("anthropic-ratelimit-requests-limit"),
            input_tokens: limit("anthropic-ratelimit-input-tokens-limit"),
            output_tokens: limit("anthropic-ratelimit-output-tokens-limit"),
            tokens: None,
        },
        Provider::OpenAi => RateLimits {
            requests: limit("x-ratelimit-limit-requests"),
            tokens: limit("x-ratelimit-limit-tokens"),
            ..RateLimits::default()
        },
    };
    let why = match status.as_u16() {
        429 => Some(RefusedFor::RateLimit),
        529 => Some(RefusedFor::Overloaded),
        _ => None,
    };
    let refused = why.map(|why| KeyRefused { why, retry_after: retry_after(headers) });
    Learnt { limits, refused }
}

/// Reads the body of a refusal: no wait mends that an account has no credit left.
pub(super) fn learnt_from_body(learnt: &mut Learnt, body: &[u8]) {
    let Some(refused) = &mut learnt.refused else { return };
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let names = [&body["error"]["code"], &body["error"]["type"]];
    if names.iter().any(|name| name.as_str() == Some("insufficient_quota")) {
        refused.why = RefusedFor::Quota;
    }
}

/// Returns how long to wait: seconds, or the time until a date by the provider's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    if let Some(seconds) = number(headers, RETRY_AFTER.as_str()) {
        return Some(Duration::from_secs(seconds));
    }
    let date = |name| DateTime::parse_from_rfc2822(headers.get(name)?.to_str().ok()?).ok();
    let now = date(DATE).map_or_else(Utc::now, |now| now.to_utc());
    Some((date(RETRY_AFTER)?.to_utc() - now).to_std().unwrap_or_default())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(given: &[(&'static str, &'static str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        given.iter().map(header).collect()
    }

    fn refused(status: u16, given: &[(&'static str, &'static str)]) -> Option<KeyRefused> {
        learnt(Provider::OpenAi, StatusCode::from_u16(status).expect("a status"), &headers(given)).refused
    }

    #[test]
    fn limits_are_read_as_each_provider_names_them() {
        let given = headers(&[
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-input-tokens-limit", "30000"),
            ("anthropic-ratelimit-output-tokens-limit", "8000"),
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-limit-tokens", "150000"),
        ]);
        let of = |provider| learnt(provider, StatusCode::OK, &given).limits;
        let anthropic = RateLimits {
            requests: Some(50),
            input_tokens: Some(30_000),
            output_tokens: Some(8_000),
            tokens: None,
        };
        assert_eq!(of(Provider::Anthropic), anthropic);
        let openai = RateLimits { requests: Some(60), tokens: Some(150_000), ..RateLimits::default() };
        assert_eq!(of(Provider::OpenAi), openai);
        let odd = headers(&[("x-ratelimit-limit-requests", "-1"), ("x-ratelimit-limit-tokens", "0")]);
        assert_eq!(learnt(Provider::OpenAi, StatusCode::OK, &odd), Learnt::default());
    }

    #[test]
    fn a_refusal_says_how_long_to_wait_in_seconds_or_by_a_date() {
        let wait = |status, given: &[_]| refused(status, given).and_then(|refused| refused.retry_after);
        assert_eq!(wait(429, &[("retry-after", "7")]), Some(Duration::from_secs(7)));
        let date =
            [("date", "Wed, 21 Oct 2026 07:28:00 GMT"), ("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT")];
        assert_eq!(wait(529, &date), Some(Duration::from_secs(30)));
        let past =
            [("date", "Wed, 21 Oct 2026 07:28:00 GMT"), ("retry-after", "Wed, 21 Oct 2026 07:27:00 GMT")];
        assert_eq!(wait(429, &past), Some(Duration::ZERO));
        assert_eq!(wait(429, &[("retry-after", "soon")]), None);
        assert_eq!(refused(503, &[("retry-after", "7")]), None);
    }

    #[test]
    fn an_account_without_credit_is_no_rate_limit() {
        let mut read = learnt(Provider::OpenAi, StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new());
        learnt_from_body(&mut read, br#"{"error": {"type": "requests", "code": "rate_limit_exceeded"}}"#);
        assert_eq!(read.refused.as_ref().map(|refused| refused.why), Some(RefusedFor::RateLimit));
        learnt_from_body(
            &mut read,
            br#"{"error": {"type": "insufficient_quota", "code": "insufficient_quota"}}"#,
        );
        assert_eq!(read.refused.map(|refused| refused.why), Some(RefusedFor::Quota));
    }
}
