//! The agent's next model, where a limit leaves no room for the one that a request names.

use bytes::Bytes;
use chrono::NaiveDate;
use serde_json::Value;

use crate::json::with_field;
use crate::prices::Prices;

/// Returns the models behind `named`, in the agent's order, that the same provider has.
pub(super) fn after<'m>(
    models: &'m [String],
    named: &str,
    prices: &Prices,
    day: NaiveDate,
) -> impl Iterator<Item = &'m String> {
    let provider = move |model: &str| prices.find(model, day).ok().map(|price| price.provider);
    let of_named = provider(named);
    models
        .iter()
        .skip_while(move |model| *model != named)
        .skip(1)
        .filter(move |model| of_named.is_some() && provider(model) == of_named)
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
        let row = |(name, provider): (&str, &str)| {
            format!(
                "[[model]]\nname = \"{name}\"\nprovider = \"{provider}\"\nfrom = \"2026-01-01\"\n\
                 context_window = 10\nmax_output = 5\ninput = \"1\"\noutput = \"2\"\n"
            )
        };
        let owners = [("a", "anthropic"), ("claude-b", "openai"), ("c", "anthropic"), ("d", "openai")];
        let file: String = owners.map(row).concat();
        let prices = Prices::default().with(&file).expect("valid");
        let models = ["a", "claude-b", "c", "d", "e"].map(str::to_owned);
        let day = NaiveDate::from_ymd_opt(2026, 11, 28).expect("a day");
        let after = |named| after(&models, named, &prices, day).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(after("a"), ["c"]);
        assert_eq!(after("claude-b"), ["d"], "whose it is says the table, not the name");
        assert!(after("c").is_empty());
        assert!(after("e").is_empty(), "without a price it has no next model");
        assert!(after("z").is_empty());
    }
}
