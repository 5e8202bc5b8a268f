//! The agent's next model, where a limit leaves no room for the one that a request names.

use bytes::Bytes;
use serde_json::Value;

use crate::json::with_field;
use crate::wire::Provider;

/// Returns the models behind `named`, in the agent's order, that the same provider has.
pub(super) fn after<'m>(models: &'m [String], named: &str) -> impl Iterator<Item = &'m String> {
    let provider = provider(named);
    models
        .iter()
        .skip_while(move |model| *model != named)
        .skip(1)
        .filter(move |model| self::provider(model) == provider)
}

/// The table of prices does not say whose a model is, but Anthropic's names have begun alike since the first.
fn provider(model: &str) -> Provider {
    if model.starts_with("claude") { Provider::Anthropic } else { Provider::OpenAi }
}

/// Returns the body with another model. No other byte of it changes.
pub(super) fn with_model(body: &Bytes, model: &str) -> Result<Bytes, serde_json::Error> {
    with_field(body, "model", &Value::from(model).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_models_are_those_behind_it_that_its_provider_has() {
        let models = ["claude-a", "gpt-b", "claude-c", "gpt-d", "claude-e"].map(str::to_owned);
        let after = |named| after(&models, named).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(after("claude-a"), ["claude-c", "claude-e"]);
        assert_eq!(after("gpt-b"), ["gpt-d"]);
        assert!(after("claude-e").is_empty());
        assert!(after("claude-z").is_empty());
    }
}
