//! The settings of model calls.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use job::Usd;
use model::{GatewaySettings, Prices, Provider, Upstream};
use rustls::ClientConfig;
use secrecy::SecretString;
use service::{Problems, Setting};

use super::AgentCalls;
use super::rates::{ProviderKeys, RateArgs};

/// The keys of providers. Agents that call them without the gateway may name them in `env_allow`.
pub const PROVIDER_KEYS: [&str; 3] = ["ANTHROPIC_API_KEY", "CLAUDE_API_KEY", "OPENAI_API_KEY"];

/// Model calls. They matter only where an agent names `models`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model calls")]
pub struct CallArgs {
    /// Where this worker's programs reach the gateway; loopback only, port 0 takes a free one
    #[arg(long, env = "GATEWAY_ADDR", default_value = "127.0.0.1:0")]
    gateway_addr: Setting<SocketAddr>,
    /// Dollars that the fleet may spend on model calls in a day, such as 250.00
    #[arg(long, env = "BUDGET_DAILY")]
    budget_daily: Option<Setting<Usd>>,
    /// Dollars that the fleet may spend on model calls in a month
    #[arg(long, env = "BUDGET_MONTHLY")]
    budget_monthly: Option<Setting<Usd>>,
    /// The time zone in which days and months of budgets turn. It cannot be changed once something was spent
    #[arg(long, env = "BUDGET_TIMEZONE", default_value = "UTC")]
    budget_timezone: String,
    /// Prices of models, a TOML file; its rows add to those that are built in, and replace those of the same model and day
    #[arg(long, env = "PRICES_FILE")]
    prices: Option<PathBuf>,
    /// The key for Anthropic
    #[arg(long, env = "ANTHROPIC_API_KEY", hide_env_values = true)]
    anthropic_api_key: Option<SecretString>,
    /// The same, by its other name
    #[arg(long, env = "CLAUDE_API_KEY", hide_env_values = true)]
    claude_api_key: Option<SecretString>,
    /// The key for OpenAI
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    openai_api_key: Option<SecretString>,
    /// Where Anthropic's API is, without /v1
    #[arg(long, env = "ANTHROPIC_BASE_URL", default_value = "https://api.anthropic.com")]
    anthropic_base_url: String,
    /// Where OpenAI's API is, without /v1
    #[arg(long, env = "OPENAI_BASE_URL", default_value = "https://api.openai.com")]
    openai_base_url: String,
    /// Seconds for which an answer that a program has given up is read on, because its end says what it costs
    #[arg(long, env = "USAGE_DRAIN_S", default_value = "60")]
    usage_drain_s: Setting<u64>,
    /// Seconds for which a model call that has no room now waits in the gateway, before its program gets a 429. SDKs wait for
    /// ten minutes
    #[arg(long, env = "MODEL_WAIT_S", default_value = "60")]
    model_wait_s: Setting<u64>,
    /// The most model calls that this worker sends to a provider at a time. It sends fewer while the provider has too much to do
    #[arg(long, env = "MODEL_CONCURRENCY", default_value = "256")]
    model_concurrency: Setting<usize>,
    /// Give calls of agents with `cache` what other jobs of their tenant were answered to the same request
    #[arg(long, env = "ENABLE_CACHING", default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    enable_caching: Setting<bool>,
    /// Seconds for which an answer of the cache may be given again
    #[arg(long, env = "CACHE_MAX_AGE_S", default_value = "86400")]
    cache_max_age_s: Setting<u64>,
    /// Bytes that the answers of the cache may have in Postgres, those of all workers together. The oldest go first. An answer
    /// of more than a sixteenth of it is not kept
    #[arg(long, env = "CACHE_MAX_BYTES", default_value = "268435456")]
    cache_max_bytes: Setting<u64>,
    #[command(flatten)]
    rates: RateArgs,
}

/// Settings that have been checked.
pub struct CallSettings {
    gateway: Option<GatewaySettings>,
    fleet: [Option<Usd>; 2],
    zone: String,
    keys: Arc<ProviderKeys>,
    cache: Option<CacheBounds>,
}

/// How much the cache of answers may hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheBounds {
    /// How old an answer may be.
    pub age: Duration,
    /// How many bytes all may have.
    pub bytes: u64,
}

impl CacheBounds {
    /// Returns the most bytes that one answer may have.
    pub fn answer_bytes(self) -> u64 {
        self.bytes / 16
    }
}

impl CallArgs {
    /// Checks the settings against what the agents call.
    pub fn check<'a>(
        self,
        agents: impl Iterator<Item = &'a AgentCalls>,
        tls: ClientConfig,
        problems: &mut Problems,
    ) -> Option<CallSettings> {
        let addr = problems.take("GATEWAY_ADDR", self.gateway_addr);
        let daily = self.budget_daily.map(|limit| problems.take("BUDGET_DAILY", limit));
        let monthly = self.budget_monthly.map(|limit| problems.take("BUDGET_MONTHLY", limit));
        let drain = problems.within("USAGE_DRAIN_S", self.usage_drain_s, 0..=3_600);
        let most_calls = problems.within("MODEL_CONCURRENCY", self.model_concurrency, 1..=10_000);
        let wait = problems.within("MODEL_WAIT_S", self.model_wait_s, 0..=540);
        let caches = problems.take("ENABLE_CACHING", self.enable_caching);
        let age = problems.within("CACHE_MAX_AGE_S", self.cache_max_age_s, 1..=31_536_000);
        let bytes = problems.within("CACHE_MAX_BYTES", self.cache_max_bytes, 4_096..=1 << 40);
        let rates = self.rates.check(problems);
        let prices = problems.check("PRICES_FILE", prices(self.prices.as_deref()));
        let upstream = |key: Option<SecretString>, base_url: String| {
            let base_url = base_url.trim_end_matches('/').to_owned();
            key.map(|key| Upstream { base_url, key })
        };
        let anthropic = upstream(self.anthropic_api_key.or(self.claude_api_key), self.anthropic_base_url);
        let openai = upstream(self.openai_api_key, self.openai_base_url);
        let (addr, drain, wait, most_calls, prices) = (addr?, drain?, wait?, most_calls?, prices?);
        let models: Vec<&String> = agents.flat_map(|agent| &agent.models).collect();
        let mut unpaid = BTreeMap::new();
        for model in &models {
            match prices.find(model, Utc::now().date_naive()) {
                Ok(price) => _ = unpaid.entry(price.provider.name()).or_insert((price.provider, model)),
                Err(unpriced) => problems.add("AGENTS_FILE", unpriced),
            }
        }
        for (provider, model) in unpaid.into_values() {
            let key = match provider {
                Provider::Anthropic => &anthropic,
                Provider::OpenAi => &openai,
            };
            if key.is_none() {
                problems.add(
                    key_names(provider)[0],
                    format!("not set, expected the key that pays for {model}, which an agent names"),
                );
            }
        }
        let (usage_drain, wait) = (Duration::from_secs(drain), Duration::from_secs(wait));
        let gateway = GatewaySettings { addr, anthropic, openai, tls, prices, usage_drain, wait, most_calls };
        let gateway = (!models.is_empty()).then_some(gateway);
        let keys = Arc::new(ProviderKeys::new(gateway.as_ref(), rates));
        Some(CallSettings {
            gateway,
            keys,
            fleet: [daily.flatten(), monthly.flatten()],
            zone: self.budget_timezone,
            cache: caches?.then_some(CacheBounds { age: Duration::from_secs(age?), bytes: bytes? }),
        })
    }
}

impl CallSettings {
    /// Returns what the gateway needs, if an agent calls models.
    pub fn gateway(&self) -> Option<GatewaySettings> {
        self.gateway.clone()
    }

    /// Returns how long an answer that nobody waits for is read on.
    pub fn usage_drain(&self) -> Duration {
        self.gateway.as_ref().map_or(Duration::ZERO, |gateway| gateway.usage_drain)
    }

    /// Returns what the fleet may spend in a day and in a month.
    pub fn fleet(&self) -> [Option<Usd>; 2] {
        self.fleet
    }

    /// Returns how much the cache of answers may hold, if there is to be one.
    pub fn cache(&self) -> Option<CacheBounds> {
        self.cache
    }

    /// Returns the providers' keys with their rate limits.
    pub fn keys(&self) -> &Arc<ProviderKeys> {
        &self.keys
    }

    /// Returns the time zone in which windows turn.
    pub fn zone(&self) -> &str {
        &self.zone
    }
}

impl fmt::Debug for CallSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallSettings").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// Returns the settings that may hold a provider's key, the usual one first.
fn key_names(provider: Provider) -> &'static [&'static str] {
    match provider {
        Provider::Anthropic => &["ANTHROPIC_API_KEY", "CLAUDE_API_KEY"],
        Provider::OpenAi => &["OPENAI_API_KEY"],
    }
}

/// Returns the setting that should hold a provider's key, if none does.
pub fn missing_key(provider: Provider) -> Option<&'static str> {
    let names = key_names(provider);
    names.iter().all(|name| service::variable(name).is_none()).then_some(names[0])
}

/// Reads the prices: those that are built in, with those of a file.
pub fn prices(file: Option<&Path>) -> Result<Prices, String> {
    let Some(path) = file else { return Ok(Prices::built_in()) };
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{shown} cannot be read: {error}, expected a TOML file"))?;
    Prices::built_in().with(&text).map_err(|error| format!("{shown}: {error}"))
}
