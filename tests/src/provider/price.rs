//! Its bill: tokens by class at the list prices, counted by arithmetic of its own.

use std::collections::BTreeMap;

use chrono::Utc;
use serde::Deserialize;

/// The price list of the gateway. Prices are facts, so there is one list; what is made of them is not shared.
const LIST: &str = include_str!("../../../worker/model/src/prices/list.toml");

/// Tokens by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Used {
    /// Input that no cache had.
    pub input: u64,
    /// Input that a cache had.
    pub cache_read: u64,
    /// Input written to the cache for the shorter time.
    pub cache_write: u64,
    /// Input written to the cache for the longer time.
    pub cache_write_long: u64,
    /// Output.
    pub output: u64,
}

impl Used {
    /// Returns the input of all classes.
    pub fn all_input(&self) -> u64 {
        self.input + self.cache_read + self.cache_write + self.cache_write_long
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Rates {
    input: String,
    output: String,
    cache_read: Option<String>,
    cache_write: Option<String>,
    cache_write_long: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Long {
    above: u64,
    #[serde(flatten)]
    rates: Rates,
}

/// A model that it has.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Model {
    name: String,
    from: String,
    pub context_window: u64,
    pub max_output: u64,
    #[serde(flatten)]
    rates: Rates,
    long_context: Option<Long>,
    #[serde(default)]
    tiers: BTreeMap<String, String>,
    #[serde(default)]
    regions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct List {
    model: Vec<Model>,
}

/// All models of a day.
#[derive(Debug)]
pub(super) struct Models(BTreeMap<String, Model>);

impl Models {
    /// Returns the models of today.
    pub fn today() -> Models {
        let today = Utc::now().date_naive().to_string();
        let list: List = toml::from_str(LIST).expect("the price list");
        let mut models: BTreeMap<String, Model> = BTreeMap::new();
        for model in list.model.into_iter().filter(|model| model.from <= today) {
            let known = models.get(&model.name).is_some_and(|known| known.from > model.from);
            if !known {
                models.insert(model.name.clone(), model);
            }
        }
        Models(models)
    }

    pub fn get(&self, name: &str) -> Option<&Model> {
        self.0.get(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Model {
    /// Whether it bills what it writes to its cache.
    pub fn bills_cache_writes(&self) -> bool {
        self.rates.cache_write.is_some()
    }

    /// Returns what these tokens cost, in micro-dollars, rounded up.
    pub fn cost_micros(&self, used: &Used, tier: Option<&str>, region: Option<&str>) -> u64 {
        let long = self.long_context.as_ref().filter(|long| used.all_input() > long.above);
        let rates = long.map_or(&self.rates, |long| &long.rates);
        let absent = || panic!("{} has no price for a class of {used:?}", self.name);
        let priced = |tokens: u64, rate: Option<&String>| match (tokens, rate) {
            (0, _) => 0,
            (tokens, Some(rate)) => u128::from(tokens) * millionths(rate),
            (_, None) => absent(),
        };
        // Micro-dollars per million tokens, so that the sum is in millionths of a micro-dollar.
        let sum = priced(used.input, Some(&rates.input))
            + priced(used.output, Some(&rates.output))
            + priced(used.cache_read, rates.cache_read.as_ref())
            + priced(used.cache_write, rates.cache_write.as_ref())
            + priced(used.cache_write_long, rates.cache_write_long.as_ref());
        let factor = |listed: &BTreeMap<String, String>, name: Option<&str>| {
            name.and_then(|name| listed.get(name)).map_or(1_000_000, |factor| millionths(factor))
        };
        let scaled = sum * factor(&self.tiers, tier) * factor(&self.regions, region);
        u64::try_from(scaled.div_ceil(1_000_000_000_000_000_000)).expect("a bill that fits")
    }
}

/// Reads a decimal number as millionths.
fn millionths(text: &str) -> u128 {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{rest:0<6}");
    digits.parse().expect("a decimal number of at most six places")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_factors_and_long_contexts_are_billed_and_rounded_up_once() {
        assert_eq!(
            (millionths("12.50"), millionths("0.125"), millionths("4")),
            (12_500_000, 125_000, 4_000_000)
        );
        let models = Models::today();
        let opus = models.get("claude-opus-5-5").unwrap();
        let used = Used { input: 1, cache_read: 1, cache_write: 1, cache_write_long: 1, output: 1 };
        // 4 + 0.2 + 5 + 8 + 20 micro-dollars.
        assert_eq!(opus.cost_micros(&used, None, None), 38);
        assert_eq!(opus.cost_micros(&used, Some("fast"), Some("us")), 82);
        let sol = models.get("gpt-6-sol").unwrap();
        let long = Used { input: 300_000, ..Used::default() };
        assert_eq!(sol.cost_micros(&long, None, None), 1_200_000);
    }
}
