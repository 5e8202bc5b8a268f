//! How a table of prices is written: TOML, dollars per million tokens as text.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use job::Usd;
use serde::Deserialize;

use crate::provider::Provider;

use super::{Factor, LongContext, Price, Prices, Rates};

const BUILT_IN: &str = include_str!("list.toml");

/// A table of prices that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadPrices {
    /// It is no TOML, or has an unknown or missing field.
    #[error("the prices cannot be read: {0}")]
    Form(#[from] toml::de::Error),
    /// A value of a model is wrong.
    #[error("the price of `{model}`, {field}: {problem}")]
    Value {
        /// The model.
        model: String,
        /// The field.
        field: String,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    model: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    provider: String,
    from: String,
    context_window: u64,
    max_output: u64,
    input: String,
    output: String,
    cache_read: Option<String>,
    cache_write: Option<String>,
    cache_write_long: Option<String>,
    long_context: Option<LongRow>,
    #[serde(default)]
    tiers: BTreeMap<String, String>,
    #[serde(default)]
    regions: BTreeMap<String, String>,
    #[serde(default)]
    fees: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LongRow {
    above: u64,
    input: String,
    output: String,
    cache_read: Option<String>,
    cache_write: Option<String>,
    cache_write_long: Option<String>,
}

impl Prices {
    /// Returns the prices that are built in.
    pub fn built_in() -> Prices {
        Prices::default().with(BUILT_IN).expect("the built-in table is valid: a test reads it")
    }

    /// Adds the rows of a table. A row replaces an earlier one of the same name and day.
    pub fn with(mut self, text: &str) -> Result<Prices, BadPrices> {
        let table: Table = toml::from_str(text)?;
        for row in table.model {
            self.insert(row.check()?);
        }
        Ok(self)
    }
}

impl Row {
    fn check(self) -> Result<Price, BadPrices> {
        let name = self.name;
        let wrong = |field: &str, problem: String| BadPrices::Value {
            model: name.clone(),
            field: field.to_owned(),
            problem,
        };
        let dollars = |field: &str, text: &str| text.parse::<Usd>().map_err(|problem| wrong(field, problem));
        let maybe =
            |field: &str, text: &Option<String>| text.as_deref().map(|text| dollars(field, text)).transpose();
        let each = |kind: &str, table: &BTreeMap<String, String>| {
            let read =
                table.iter().map(|(key, text)| Ok((key.clone(), dollars(&format!("{kind}.{key}"), text)?)));
            read.collect::<Result<BTreeMap<String, Usd>, BadPrices>>()
        };
        // A factor has the form of dollars: digits with at most six after the point.
        let factors = |kind: &str, table: &BTreeMap<String, String>| {
            let read = each(kind, table)?.into_iter().map(|(key, value)| (key, Factor(value.micros())));
            Ok::<BTreeMap<String, Factor>, BadPrices>(read.collect())
        };
        let from = NaiveDate::parse_from_str(&self.from, "%Y-%m-%d")
            .map_err(|_| wrong("from", format!("`{}` is no day: write it as 2026-11-18", self.from)))?;
        let provider = Provider::of(&self.provider).ok_or_else(|| {
            wrong("provider", format!("`{}` is not known: write anthropic or openai", self.provider))
        })?;
        if self.context_window == 0 {
            return Err(wrong("context_window", "0 tokens are no window".to_owned()));
        }
        let rates = Rates {
            input: dollars("input", &self.input)?,
            output: dollars("output", &self.output)?,
            cache_read: maybe("cache_read", &self.cache_read)?,
            cache_write: maybe("cache_write", &self.cache_write)?,
            cache_write_long: maybe("cache_write_long", &self.cache_write_long)?,
        };
        let long_context = match &self.long_context {
            None => None,
            Some(long) => Some(LongContext {
                above: long.above,
                rates: Rates {
                    input: dollars("long_context.input", &long.input)?,
                    output: dollars("long_context.output", &long.output)?,
                    cache_read: maybe("long_context.cache_read", &long.cache_read)?,
                    cache_write: maybe("long_context.cache_write", &long.cache_write)?,
                    cache_write_long: maybe("long_context.cache_write_long", &long.cache_write_long)?,
                },
            }),
        };
        Ok(Price {
            provider,
            from,
            context_window: self.context_window,
            max_output: self.max_output,
            rates,
            long_context,
            tiers: factors("tiers", &self.tiers)?,
            regions: factors("regions", &self.regions)?,
            fees: each("fees", &self.fees)?,
            name,
        })
    }
}
