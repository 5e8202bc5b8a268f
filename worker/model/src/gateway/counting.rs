//! Asks a provider how many tokens a request has, which is free. Without it, input is bounded by its bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::places::Slot;
use super::{Inner, Upstream, headers, url};
use crate::wire::Wire;

/// A count that takes longer is not waited for.
const WITHIN: Duration = Duration::from_secs(10);

/// Returns the most tokens of input that the provider will count for this request, if it says. The question is asked from
/// the request's own place at the provider.
///
/// Anthropic calls its count an estimate, which may be a little too low
/// (platform.claude.com/docs/en/build-with-claude/token-counting). So a fiftieth is added, and what the count cannot be
/// asked about is counted by its bytes.
pub(super) async fn count(
    inner: &Inner,
    upstream: &Upstream,
    (wire, sent): (Wire, &HeaderMap),
    body: &Bytes,
    slot: Option<&Slot>,
) -> Option<u64> {
    let (path, known) = endpoint(wire)?;
    let (asked, rest) = split(body, known)?;
    let url = url(upstream, path, None);
    let request = inner.client.post(url).headers(headers::to_provider(sent, wire.provider(), &upstream.key));
    let answer = async {
        let answer = request.body(asked).send().await?;
        slot.iter().for_each(|slot| slot.answered(Some(answer.status().as_u16())));
        answer.error_for_status()?.bytes().await
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
    Some(tokens.saturating_add(tokens / 50).saturating_add(rest))
}

/// Returns the request with the known fields alone, each to the letter, and the bytes of the others.
fn split(body: &[u8], known: &[&str]) -> Option<(String, u64)> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let (asked, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        fields.into_iter().partition(|(name, _)| known.contains(&name.as_str()));
    Some((serde_json::to_string(&asked).ok()?, serde_json::to_string(&rest).ok()?.len() as u64))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_is_sent_to_the_letter() {
        let (_, known) = endpoint(Wire::Messages).expect("it counts");
        let body =
            br#"{"model":"m","max_tokens":9,"messages":[ 12345678901234567890123, "\u00e9"],"x":1.50}"#;
        let (asked, rest) = split(body, known).expect("an object");
        assert_eq!(asked, r#"{"messages":[ 12345678901234567890123, "\u00e9"],"model":"m"}"#);
        assert_eq!(rest, r#"{"max_tokens":9,"x":1.50}"#.len() as u64);
    }
}
