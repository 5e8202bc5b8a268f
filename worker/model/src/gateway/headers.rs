//! Which headers pass, and which do not.

use axum::http::HeaderMap;
use axum::http::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use super::bearer;
use crate::provider::Provider;

const X_API_KEY: &str = "x-api-key";
const AUTHORIZATION: &str = "authorization";

/// Asks for an answer that an earlier attempt has paid, and for none of a model.
pub(super) const ONLY_STORED: &str = "x-harness-only-stored";

/// Names a call whose answer its run takes into its session itself ([`crate::Ledger::settle`]).
const TAKEN_AS: &str = "x-harness-taken-as";

/// Not passed to the provider: what belongs to one connection, keys and accounts (ours alone pay), the encodings of
/// answers (their bytes are read beside), and what is said to the gateway.
const NOT_SENT: [&str; 18] = [
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "openai-organization",
    "openai-project",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    TAKEN_AS,
];
/// Headers of a program that change what is answered.
pub(super) const CHANGES_ANSWERS: [&str; 3] = ["anthropic-beta", "anthropic-version", "openai-beta"];
/// Not passed to the program.
const NOT_RETURNED: [&str; 7] =
    ["connection", "content-length", "keep-alive", "set-cookie", "trailer", "transfer-encoding", "upgrade"];

/// Returns the token that a program has sent, as an SDK sends its key.
pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let key = headers.get(X_API_KEY).and_then(|value| value.to_str().ok());
    key.or_else(|| headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer "))
}

/// Returns the number under which the run takes the answer, if it does.
pub(super) fn taken_as(headers: &HeaderMap) -> Option<u64> {
    headers.get(TAKEN_AS)?.to_str().ok()?.parse().ok()
}

/// Returns whose protocol a program speaks where the path does not say it.
pub(super) fn spoken(headers: &HeaderMap) -> Provider {
    let anthropic = headers.contains_key("anthropic-version") || headers.contains_key(X_API_KEY);
    if anthropic { Provider::Anthropic } else { Provider::OpenAi }
}

/// Returns what is sent to a provider: the program's headers with the real key.
pub(super) fn to_provider(program: &HeaderMap, provider: Provider, key: &SecretString) -> HeaderMap {
    let mut sent = without(program, &NOT_SENT);
    let (name, text) = match provider {
        Provider::Anthropic => (X_API_KEY, key.expose_secret().to_owned()),
        Provider::OpenAi => (AUTHORIZATION, bearer(key)),
    };
    if let Ok(mut value) = HeaderValue::try_from(text) {
        value.set_sensitive(true);
        sent.insert(name, value);
    }
    sent
}

/// Returns what is passed to the program.
pub(super) fn to_program(provider: &HeaderMap) -> HeaderMap {
    without(provider, &NOT_RETURNED)
}

/// Returns the id by which a provider finds a call again.
pub(super) fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("request-id").or_else(|| headers.get("x-request-id"))?;
    id.to_str().ok().map(str::to_owned)
}

fn without(headers: &HeaderMap, left_out: &[&str]) -> HeaderMap {
    let kept = headers.iter().filter(|(name, _)| !left_out.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}
