//! A dated table of what models cost, and the cost of what a call has used.
//!
//! Prices are whole micro-dollars per million tokens; a call's cost is rounded up once, at the end. What a provider can
//! charge and the table does not list has no price: [`Unpriced`] names it. So nothing is ever guessed to be free.
//!
//! `list.toml` is the table that is built in, with its sources. `PRICES_FILE` has the same form.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use job::Usd;

use crate::provider::Provider;

mod file;

pub use file::BadPrices;

/// What a million tokens of each class cost, in micro-dollars. A class without a rate does not exist for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Input that no cache had.
    pub input: Usd,
    /// Output, including what a model thinks.
    pub output: Usd,
    /// Input that was read from the provider's cache.
    pub cache_read: Option<Usd>,
    /// Input that was written to the cache for the shorter time to live.
    pub cache_write: Option<Usd>,
    /// Input that was written to the cache for the longer time to live.
    pub cache_write_long: Option<Usd>,
}

/// The rates of a whole request whose input has more than `above` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongContext {
    /// Tokens of input, in all classes, up to which the usual rates apply.
    pub above: u64,
    /// The rates above that.
    pub rates: Rates,
}

/// By what all rates of a tier or region are multiplied, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(u64);

impl Factor {
    /// Changes nothing.
    pub const ONE: Factor = Factor(1_000_000);
}

/// Micro-dollars per call of each tool that the provider runs.
pub type Fees = BTreeMap<String, Usd>;

/// What one model costs from one day on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The model, as requests name it.
    pub name: String,
    /// Who bills it.
    pub provider: Provider,
    /// The first day (UTC) on which it applies.
    pub from: NaiveDate,
    /// The most tokens of input that a request can have.
    pub context_window: u64,
    /// The most tokens of output that one choice can have.
    pub max_output: u64,
    /// The usual rates.
    pub rates: Rates,
    /// Other rates for long requests.
    pub long_context: Option<LongContext>,
    /// Factors of service tiers and speeds.
    pub tiers: BTreeMap<String, Factor>,
    /// Factors of regions.
    pub regions: BTreeMap<String, Factor>,
    /// Fees of hosted tools.
    pub fees: Fees,
}

/// Tokens by class. The classes of input do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Input that no cache had.
    pub input: u64,
    /// Output.
    pub output: u64,
    /// Read from the cache.
    pub cache_read: u64,
    /// Written to the cache for the shorter time to live.
    pub cache_write: u64,
    /// Written to the cache for the longer time to live.
    pub cache_write_long: u64,
}

impl Tokens {
    /// Returns the input of all classes.
    pub fn all_input(&self) -> u64 {
        let cached = self.cache_read.saturating_add(self.cache_write).saturating_add(self.cache_write_long);
        self.input.saturating_add(cached)
    }
}

/// Something that costs and has no price.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpriced {
    /// A model.
    #[error("the model `{0}` has no price: add it to PRICES_FILE")]
    Model(String),
    /// A class of tokens.
    #[error("`{model}` has no price for tokens of the class `{class}`")]
    Class {
        /// The model.
        model: String,
        /// The class, as the price table names it.
        class: &'static str,
    },
    /// A service tier, a speed or a region.
    #[error("`{model}` has no price for the {kind} `{name}`")]
    Factor {
        /// The model.
        model: String,
        /// Whether it is a tier or a region.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A hosted tool.
    #[error("`{model}` has no fee for the hosted tool `{tool}`")]
    Fee {
        /// The model.
        model: String,
        /// The tool.
        tool: String,
    },
    /// A field of a usage report that nobody here knows.
    #[error("the usage field `{0}` is not known, so it has no price")]
    Field(String),
}

/// All prices that are known, of all days.
#[derive(Clone, Debug, Default)]
pub struct Prices(BTreeMap<String, Vec<Price>>);

impl Prices {
    /// Returns the price of a model on a day.
    ///
    /// A name with a date or `-latest` behind it is the model's without, unless it has a row of its own: a provider
    /// answers to `claude-haiku-4-5` as `claude-haiku-4-5-20251001`.
    pub fn find(&self, model: &str, day: NaiveDate) -> Result<&Price, Unpriced> {
        let named = |name: &str| {
            let rows = self.0.get(name)?;
            rows.iter().rev().find(|row| row.from <= day)
        };
        named(model).or_else(|| named(undated(model)?)).ok_or_else(|| Unpriced::Model(model.to_owned()))
    }

    /// Returns the names of all models that have a price on a day.
    pub fn names(&self, day: NaiveDate) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(_, rows)| rows.iter().any(|row| row.from <= day)).map(|(name, _)| &**name)
    }

    fn insert(&mut self, price: Price) {
        let rows = self.0.entry(price.name.clone()).or_default();
        rows.retain(|row| row.from != price.from);
        rows.push(price);
        rows.sort_by_key(|row| row.from);
    }
}

/// Returns a model's name without the date of its snapshot, if there is one.
fn undated(model: &str) -> Option<&str> {
    let digits =
        |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let (rest, last) = model.rsplit_once('-')?;
    if last == "latest" || digits(last, 8) {
        return Some(rest);
    }
    let (rest, month) = rest.rsplit_once('-')?;
    let (rest, year) = rest.rsplit_once('-')?;
    (digits(last, 2) && digits(month, 2) && digits(year, 4)).then_some(rest)
}

impl Price {
    /// Returns what these tokens cost. `tier` and `region` are as the provider named them; `None` is the usual one.
    pub fn cost(&self, tokens: &Tokens, tier: Option<&str>, region: Option<&str>) -> Result<Usd, Unpriced> {
        self.cost_at(tokens, self.tier(tier)?, self.region(region)?)
    }

    /// Returns what these tokens cost at these factors.
    pub fn cost_at(&self, tokens: &Tokens, tier: Factor, region: Factor) -> Result<Usd, Unpriced> {
        let exact = self.exact(self.rates_for(tokens.all_input()), tokens)?;
        Ok(scaled(exact, tier, region))
    }

    /// Returns the fee for this many calls of a hosted tool.
    pub fn fee(&self, tool: &str, calls: u64) -> Result<Usd, Unpriced> {
        let fee = self.fees.get(tool);
        let missing = || Unpriced::Fee { model: self.name.clone(), tool: tool.to_owned() };
        if calls == 0 { Ok(Usd::ZERO) } else { fee.map(|fee| fee.times(calls)).ok_or_else(missing) }
    }

    /// Returns the most that at most `input` and `output` tokens can cost at these factors: whatever the cache does,
    /// and whether or not the request turns out to be a long one.
    pub fn most(&self, input: u64, output: u64, writes: CacheWrites, tier: Factor, region: Factor) -> Usd {
        let long = self.long_context.filter(|long| input > long.above).map(|long| long.rates);
        let dearest = [Some(self.rates), long].into_iter().flatten().map(|rates| {
            let written = match writes {
                CacheWrites::None => None,
                CacheWrites::Short => rates.cache_write,
                CacheWrites::Long => rates.cache_write.max(rates.cache_write_long),
            };
            let input_rate = rates.input.max(rates.cache_read.max(written).unwrap_or_default());
            product(input, input_rate).saturating_add(product(output, rates.output))
        });
        scaled(dearest.max().unwrap_or_default(), tier, region)
    }

    /// Returns the factor of a service tier or speed.
    pub fn tier(&self, name: Option<&str>) -> Result<Factor, Unpriced> {
        self.factor("service tier", &self.tiers, name.filter(|name| !["default", "standard"].contains(name)))
    }

    /// Returns the factor of a region.
    pub fn region(&self, name: Option<&str>) -> Result<Factor, Unpriced> {
        self.factor("region", &self.regions, name.filter(|name| !["global", "not_available"].contains(name)))
    }

    /// Returns the factor of the dearest tier: what a request can cost that leaves the choice to the provider.
    pub fn dearest_tier(&self) -> Factor {
        self.tiers.values().copied().max().unwrap_or(Factor::ONE).max(Factor::ONE)
    }

    /// Returns the factor of the dearest region.
    pub fn dearest_region(&self) -> Factor {
        self.regions.values().copied().max().unwrap_or(Factor::ONE).max(Factor::ONE)
    }

    fn factor(
        &self,
        kind: &'static str,
        listed: &BTreeMap<String, Factor>,
        name: Option<&str>,
    ) -> Result<Factor, Unpriced> {
        let Some(name) = name else { return Ok(Factor::ONE) };
        let missing = || Unpriced::Factor { model: self.name.clone(), kind, name: name.to_owned() };
        listed.get(name).copied().ok_or_else(missing)
    }

    fn rates_for(&self, all_input: u64) -> &Rates {
        self.long_context
            .as_ref()
            .filter(|long| all_input > long.above)
            .map_or(&self.rates, |long| &long.rates)
    }

    fn exact(&self, rates: &Rates, tokens: &Tokens) -> Result<u128, Unpriced> {
        let classes = [
            ("input", tokens.input, Some(rates.input)),
            ("output", tokens.output, Some(rates.output)),
            ("cache_read", tokens.cache_read, rates.cache_read),
            ("cache_write", tokens.cache_write, rates.cache_write),
            ("cache_write_long", tokens.cache_write_long, rates.cache_write_long),
        ];
        let used = classes.into_iter().filter(|(_, count, _)| *count > 0);
        used.map(|(class, count, rate)| {
            let missing = || Unpriced::Class { model: self.name.clone(), class };
            rate.map(|rate| product(count, rate)).ok_or_else(missing)
        })
        .try_fold(0_u128, |sum, part| Ok(sum.saturating_add(part?)))
    }
}

/// Which writes to the provider's cache a request can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheWrites {
    /// None.
    None,
    /// With the shorter time to live.
    Short,
    /// With either.
    Long,
}

fn product(count: u64, rate: Usd) -> u128 {
    u128::from(count) * u128::from(rate.micros())
}

/// Returns a cost from tokens × rates (per million tokens) and both factors (in millionths), rounded up once.
fn scaled(exact: u128, tier: Factor, region: Factor) -> Usd {
    let factors = u128::from(tier.0) * u128::from(region.0);
    exact.checked_mul(factors).map_or(Usd::MAX, |sum| Usd::from_quotient(sum, 10_u128.pow(18)))
}

#[cfg(test)]
mod tests;
