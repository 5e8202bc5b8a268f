//! The keys of an agent's table that are about model calls.

use std::num::NonZeroU64;
use std::time::Duration;

use job::Usd;
use model::HostedCaps;
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
    pub budget_daily: Option<Usd>,
    /// And in a month.
    #[serde(default, deserialize_with = "dollars")]
    pub budget_monthly: Option<Usd>,
    /// What each of its jobs may spend.
    #[serde(default, deserialize_with = "dollars")]
    pub max_cost_usd: Option<Usd>,
    /// Whether the limit of output of a call is lowered where a limit leaves no room for more.
    #[serde(default)]
    fit: bool,
    /// But not below so many tokens.
    #[serde(default = "min_output_tokens")]
    min_output_tokens: u64,
    /// Whether its calls are given what other jobs of their tenant were answered to the same request.
    #[serde(default)]
    cache: Cache,
    /// The most web searches that the provider may make in one call; none unless set.
    #[serde(default)]
    web_searches_per_call: u64,
    /// The most searches in files at the provider that it may make in one call; none unless set.
    #[serde(default)]
    file_searches_per_call: u64,
    /// Whether they are made by the model loop.
    #[serde(skip)]
    by_loop: bool,
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

/// The key `cache`: true, false, or a table.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "expected true, false, or { max_age_s = N } with N of at least 1")]
enum Cache {
    Switched(bool),
    Within(MaxAge),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MaxAge {
    max_age_s: NonZeroU64,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache::Switched(false)
    }
}

/// Enough for a short answer, or a call of a tool.
fn min_output_tokens() -> u64 {
    1_024
}

impl AgentCalls {
    /// The keys, besides which a table has those of its harness.
    pub const KEYS: [&str; 10] = [
        "models",
        "on_exhausted",
        "budget_daily",
        "budget_monthly",
        "max_cost_usd",
        "web_searches_per_call",
        "file_searches_per_call",
        "fit",
        "min_output_tokens",
        "cache",
    ];

    /// Notes whether they are made by the model loop.
    pub fn made_by_loop(self, by_loop: bool) -> AgentCalls {
        AgentCalls { by_loop, ..self }
    }

    /// Returns the fewest tokens to which the limit of output of its calls may be lowered, if it may be.
    pub fn fit(&self) -> Option<u64> {
        self.fit.then_some(self.min_output_tokens)
    }

    /// Returns how old an answer of the cache may be that its calls are given, if it may be given any.
    pub fn cache_age(&self, most: Duration) -> Option<Duration> {
        match self.cache {
            Cache::Switched(on) => on.then_some(most),
            Cache::Within(MaxAge { max_age_s }) => Some(most.min(Duration::from_secs(max_age_s.get()))),
        }
    }

    /// Returns whether its calls go to its next models where a limit leaves no room.
    pub fn degrades(&self) -> bool {
        self.on_exhausted == OnExhausted::Degrade
    }

    /// Returns whether the gateway changes the model for that. The model loop does it itself: it writes its conversation anew
    /// for another model.
    pub fn gateway_degrades(&self) -> bool {
        self.degrades() && !self.by_loop
    }

    /// Returns whether the model loop tries its next model where a limit leaves no room.
    pub fn loop_degrades(&self) -> bool {
        self.degrades() && self.by_loop
    }

    /// Returns whether the model loop makes its calls, one after the other.
    pub fn is_made_by_loop(&self) -> bool {
        self.by_loop
    }

    /// Returns what its programs may use of the tools that a provider runs.
    pub fn caps(&self) -> HostedCaps {
        HostedCaps { web_search: self.web_searches_per_call, file_search: self.file_searches_per_call }
    }
}

/// Dollars are text, because a binary fraction is not exact.
fn dollars<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Usd>, D::Error> {
    String::deserialize(value)?.parse().map(Some).map_err(de::Error::custom)
}
