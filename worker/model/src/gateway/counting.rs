//! Asks a provider how many tokens a request has, which is free. Without it, input is bounded by its bytes.

use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{Inner, Upstream, headers};
use crate::json;
use crate::wire::Wire;

/// A count that takes longer is not waited for.
const WITHIN: Duration = Duration::from_secs(10);

/// Returns the most tokens of input that the provider will count for this request, if it says.
///
/// Anthropic calls its count an estimate, which may be a little too low
/// (platform.claude.com/docs/en/build-with-claude/token-counting). So a fiftieth is added, and what the count cannot be
/// asked about is counted by its bytes.
pub(super) async fn count(
    inner: &Inner,
    upstream: &Upstream,
    (wire, sent): (Wire, &HeaderMap),
    body: &Bytes,
) -> Option<u64> {
    let (path, known) = endpoint(wire)?;
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return None };
    let (asked, rest): (Map<_, _>, Map<_, _>) =
        fields.into_iter().partition(|(name, _)| known.contains(&name.as_str()));
    let url = format!("{}{path}", upstream.base_url);
    let request = inner.client.post(url).headers(headers::to_provider(sent, wire.provider(), &upstream.key));
    let answer = async {
        let answer = request.body(Value::Object(asked).to_string()).send().await?.error_for_status()?;
        answer.bytes().await
    };
    let answer = match timeout(WITHIN, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(cause = %error, "a provider did not count a request: its bytes are counted");
            return None;
        }
        Err(_) => return None,
    };
    let answer: Value = serde_json::from_slice(&answer).ok()?;
    let tokens = answer.get("input_tokens")?.as_u64()?;
    Some(tokens.saturating_add(tokens / 50).saturating_add(json::size(&Value::Object(rest))))
}

/// Where the tokens of a request are counted, and which of its fields may be sent there.
fn endpoint(wire: Wire) -> Option<(&'static str, &'static [&'static str])> {
    match wire {
        Wire::Messages => Some((
            "/v1/messages/count_tokens",
            &["messages", "model", "system", "thinking", "tool_choice", "tools"],
        )),
        Wire::Responses => Some((
            "/v1/responses/input_tokens",
            &[
                "input",
                "instructions",
                "model",
                "parallel_tool_calls",
                "reasoning",
                "text",
                "tool_choice",
                "tools",
            ],
        )),
        Wire::Chat | Wire::Embeddings => None,
    }
}
