//! What the real providers refuse, each with a page of their documentation that says so. What no page says is left out.

mod messages;
mod chat;
mod responses;
mod tools;

use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::memory::Memory;
use super::price::{Model, Models};
use super::wire::{Refusal, Speaks};

/// What a request is checked against.
pub(super) struct Against<'a> {
    pub models: &'a Models,
    pub memory: &'a Memory,
    /// Whether it only asks for a number of tokens.
    pub counts_only: bool,
}

/// Returns the request and its model, unless its head alone is refused.
pub(super) fn head<'a>(
    speaks: Speaks,
    headers: &HeaderMap,
    body: &[u8],
    key: &str,
    models: &'a Models,
) -> Result<(Value, &'a Model), Refusal> {
    match (speaks, speaks.key(headers)) {
        (_, Some(given)) if given == key => {}
        (Speaks::Messages, None) => return Err(Refusal::new(401, "x-api-key header is required")),
        (Speaks::Messages, Some(_)) => return Err(Refusal::new(401, "invalid x-api-key")),
        (Speaks::Chat | Speaks::Responses, None) => {
            return Err(Refusal::new(401, "You didn't provide an API key."));
        }
        (Speaks::Chat | Speaks::Responses, Some(_)) => {
            return Err(Refusal::new(401, "Incorrect API key provided.").code("invalid_api_key"));
        }
    }
    if speaks == Speaks::Messages && !headers.contains_key("anthropic-version") {
        return Err(Refusal::invalid("anthropic-version: header is required"));
    }
    let request: Value = serde_json::from_slice(body).map_err(|error| Refusal::invalid(error.to_string()))?;
    let Some(model) = request["model"].as_str() else {
        return Err(match speaks {
            Speaks::Messages => Refusal::invalid("model: Field required"),
            Speaks::Chat | Speaks::Responses => {
                Refusal::invalid("you must provide a model parameter").param("model")
            }
        });
    };
    let known = models.get(model).ok_or_else(|| match speaks {
        Speaks::Messages => Refusal::new(404, format!("model: {model}")),
        Speaks::Chat | Speaks::Responses => {
            Refusal::new(404, format!("The model `{model}` does not exist.")).code("model_not_found")
        }
    })?;
    Ok((request, known))
}

/// Checks the rest of a request.
pub(super) fn rest(
    speaks: Speaks,
    request: &Value,
    model: &Model,
    against: &Against<'_>,
) -> Result<(), Refusal> {
    match speaks {
        Speaks::Messages => messages::check(request, model, against),
        Speaks::Chat => chat::check(request, model),
        Speaks::Responses => responses::check(request, model, against),
    }
}

/// Returns the members of an object that nobody knows.
pub(super) fn strange<'a>(
    object: &'a Map<String, Value>,
    known: &'a [&str],
) -> impl Iterator<Item = &'a String> {
    object.keys().filter(move |name| !known.contains(&name.as_str()))
}

/// Whether a name has only these letters, and a length within the bound.
fn is_name(name: &str, most: usize) -> bool {
    (1..=most).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}
