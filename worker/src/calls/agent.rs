//! The keys of an agent's table that are about model calls.

use model::{HostedCaps, Microdollars};
use serde::{Deserialize, Deserializer, de};

/// Which models an agent's programs may call, and what they may spend. The keys are those of `agents.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentCalls {
    /// The models, as requests name them, in the order of preference. Each has a price.
    pub models: Vec<String>,
    /// What becomes of a job that meets a spent limit.
    #[serde(default)]
    pub on_exhausted: OnExhausted,
    /// What all jobs of the agent may spend in a day.
    #[serde(default, deserialize_with = "dollars")]
    pub budget_daily: Option<Microdollars>,
    /// And in a month.
    #[serde(default, deserialize_with = "dollars")]
    pub budget_monthly: Option<Microdollars>,
    /// What each of its jobs may spend.
    #[serde(default, deserialize_with = "dollars")]
    pub max_cost_usd: Option<Microdollars>,
    /// Whether the limit of output of a call is lowered where a limit leaves no room for more.
    #[serde(default)]
    fit: bool,
    /// But not below so many tokens.
    #[serde(default = "min_output_tokens")]
    min_output_tokens: u64,
    /// The most web searches that the provider may make in one call; none unless set.
    #[serde(default)]
    web_searches_per_call: u64,
}

/// What becomes of a job that meets a spent limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExhausted {
    /// It fails as `budget_exhausted`.
    #[default]
    Stop,
    /// It is handed back, and comes again when the limit's window turns.
    Wait,
    /// Its calls are made with the next of the agent's models. Where none is left, it fails as `budget_exhausted`.
    Degrade,
}

/// Enough for a short answer, or a call of a tool.
fn min_output_tokens() -> u64 {
    1_024
}

impl AgentCalls {
    /// The keys, besides which a table has those of its harness.
    pub const KEYS: [&str; 8] = [
        "models",
        "on_exhausted",
        "budget_daily",
        "budget_monthly",
        "max_cost_usd",
        "web_searches_per_call",
        "fit",
        "min_output_tokens",
    ];

    /// Returns the fewest tokens to which the limit of output of its calls may be lowered, if it may be.
    pub fn fit(&self) -> Option<u64> {
        self.fit.then_some(self.min_output_tokens)
    }

    /// Returns whether its calls go to its next models where a limit leaves no room.
    pub fn degrades(&self) -> bool {
        self.on_exhausted == OnExhausted::Degrade
    }

    /// Returns what its programs may use of the tools that a provider runs.
    pub fn caps(&self) -> HostedCaps {
        HostedCaps { web_search: self.web_searches_per_call }
    }
}

/// Dollars are text, because a binary fraction is not exact.
fn dollars<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Microdollars>, D::Error> {
    String::deserialize(value)?.parse().map(Some).map_err(de::Error::custom)
}
