//! Rate limits of the providers' keys: what a call takes of them, what it has used, and what answers say of them.
//!
//! * **Limits that are set** are strict. The most that a call can use is taken before it is sent, and what it did not use
//!   comes back with its settlement.
//! * **Limits that answers report** are those of a model. A request takes its place before it is sent; tokens count once
//!   they were used, so that a call waits while a minute's are used up. To hold the most that each call can use would leave
//!   most of such a limit unused: providers do not count cached input and output that was never produced.
//!
//! How providers count (platform.claude.com/docs/en/api/rate-limits, platform.openai.com/docs/guides/rate-limits): Anthropic
//! counts requests, uncached input when it arrives, and output as it is produced. OpenAI counts requests and tokens of both
//! directions when a request arrives, with the limit of output that the request names, whatever is produced.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use model::{Call, GatewaySettings, KeyRefused, Learnt, Outcome, Provider, RateLimits, RefusedFor};
use service::{Problems, Setting};
use store::{RateUse, ShutFor, Store, Take};
use tracing::{error, warn};

use crate::metrics::METRICS;

/// No provider's limit is near it.
const MOST: u64 = 1_000_000_000_000;
/// A key is shut for no longer, whatever an answer says.
const LONGEST_SHUT: Duration = Duration::from_secs(600);
/// How long it is shut if an answer says nothing. Up to as much again is added, so that workers do not come back together.
const SHUT: Duration = Duration::from_secs(1);
/// As [`SHUT`], for an account without credit: only its owner mends that.
const SHUT_FOR_QUOTA: Duration = Duration::from_secs(60);
/// A limit that was reported again is written as often as this, so that the ledger does not forget it.
const REPEAT: Duration = Duration::from_secs(3_600);

/// Limits of the providers' keys for a minute, over all workers
#[derive(Clone, Debug, Args)]
pub struct RateArgs {
    /// Requests that may be sent with the key for Anthropic in a minute, by all workers together
    #[arg(long, env = "ANTHROPIC_REQUESTS_PER_MINUTE")]
    anthropic_requests_per_minute: Option<Setting<u64>>,
    /// Tokens of input that may be used with the key for Anthropic in a minute; those read from a cache do not count
    #[arg(long, env = "ANTHROPIC_INPUT_TOKENS_PER_MINUTE")]
    anthropic_input_tokens_per_minute: Option<Setting<u64>>,
    /// Tokens of output that may be used with the key for Anthropic in a minute
    #[arg(long, env = "ANTHROPIC_OUTPUT_TOKENS_PER_MINUTE")]
    anthropic_output_tokens_per_minute: Option<Setting<u64>>,
    /// Requests that may be sent with the key for OpenAI in a minute, by all workers together
    #[arg(long, env = "OPENAI_REQUESTS_PER_MINUTE")]
    openai_requests_per_minute: Option<Setting<u64>>,
    /// Tokens of input and output that may be used with the key for OpenAI in a minute
    #[arg(long, env = "OPENAI_TOKENS_PER_MINUTE")]
    openai_tokens_per_minute: Option<Setting<u64>>,
    /// Keep also to the rate limits that the answers of providers report
    #[arg(long, env = "LEARN_RATE_LIMITS", default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    learn_rate_limits: Setting<bool>,
}

/// Limits that were checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamedLimits {
    anthropic: RateLimits,
    openai: RateLimits,
    learns: bool,
}

impl RateArgs {
    pub fn check(self, problems: &mut Problems) -> NamedLimits {
        let mut limit = |name: &str, setting: Option<Setting<u64>>| {
            setting.and_then(|setting| problems.within(name, setting, 1..=MOST))
        };
        let anthropic = RateLimits {
            requests: limit("ANTHROPIC_REQUESTS_PER_MINUTE", self.anthropic_requests_per_minute),
            input_tokens: limit("ANTHROPIC_INPUT_TOKENS_PER_MINUTE", self.anthropic_input_tokens_per_minute),
            output_tokens: limit(
                "ANTHROPIC_OUTPUT_TOKENS_PER_MINUTE",
                self.anthropic_output_tokens_per_minute,
            ),
            tokens: None,
        };
        let openai = RateLimits {
            requests: limit("OPENAI_REQUESTS_PER_MINUTE", self.openai_requests_per_minute),
            tokens: limit("OPENAI_TOKENS_PER_MINUTE", self.openai_tokens_per_minute),
            ..RateLimits::default()
        };
        let learns = problems.take("LEARN_RATE_LIMITS", self.learn_rate_limits).unwrap_or_default();
        NamedLimits { anthropic, openai, learns }
    }
}

/// The keys of this worker, with their limits.
pub struct ProviderKeys {
    anthropic: Option<String>,
    openai: Option<String>,
    limits: NamedLimits,
    /// What was recorded of each account, and when.
    recorded: Mutex<HashMap<String, (u64, Instant)>>,
}

/// A limit by its name, and what a call takes of it.
struct Counted {
    limit: &'static str,
    named: Option<u64>,
    most: u64,
    as_produced: bool,
}

impl ProviderKeys {
    pub fn new(gateway: Option<&GatewaySettings>, limits: NamedLimits) -> ProviderKeys {
        let of = |provider: Provider| {
            let gateway = gateway?;
            let upstream = match provider {
                Provider::Anthropic => gateway.anthropic.as_ref(),
                Provider::OpenAi => gateway.openai.as_ref(),
            };
            upstream.map(|upstream| format!("{}:{}", provider.name(), upstream.fingerprint()))
        };
        let (anthropic, openai) = (of(Provider::Anthropic), of(Provider::OpenAi));
        ProviderKeys { anthropic, openai, limits, recorded: Mutex::default() }
    }

    /// Returns what a call takes of the limits of its key; `None` if there is no key.
    pub fn takes(&self, call: &Call) -> Option<RateUse> {
        let key = self.key(call.provider)?;
        let mut takes = Vec::new();
        for Counted { limit, named, most, as_produced } in self.counted(call) {
            let account = format!("{key}:{limit}");
            if self.limits.learns {
                let account = format!("{account}:{}", call.model);
                let is_request = limit == REQUESTS;
                let amount = if is_request { most } else { 0 };
                takes.push(Take { account, limit: None, amount, as_produced: !is_request });
            }
            if named.is_some() {
                takes.push(Take { account, limit: named, amount: most, as_produced });
            }
        }
        Some(RateUse { key: key.to_owned(), takes })
    }

    /// Returns what a call has used of each of its takes, in their order.
    pub fn used(&self, call: &Call, takes: &RateUse, outcome: &Outcome) -> Vec<u64> {
        let counted = self.counted(call);
        let used = |take: &Take| {
            let limit = take.account.split(':').nth(2).unwrap_or_default();
            let most = counted.iter().find(|it| it.limit == limit).map_or(take.amount, |it| it.most);
            let tokens = match outcome {
                Outcome::Settled(settled) => &settled.tokens,
                // A refused request is a request.
                Outcome::Free => return if limit == REQUESTS { take.amount } else { 0 },
                Outcome::Unknown(_) => return most,
            };
            match limit {
                INPUT => tokens.all_input().saturating_sub(tokens.cache_read),
                OUTPUT => tokens.output,
                TOKENS => {
                    let output = if call.bound.names_output { call.bound.output } else { 0 };
                    tokens.all_input().saturating_add(tokens.output.max(output))
                }
                _ => take.amount,
            }
        };
        takes.takes.iter().map(used).collect()
    }

    /// Records what an answer says of the limits of its key, and shuts the key if the provider refuses calls with it. The
    /// call is settled in any case.
    pub async fn learn(&self, store: &Store, call: &Call, learnt: &Learnt) {
        let Some(key) = self.key(call.provider) else { return };
        if let Some(refused) = &learnt.refused {
            shut(store, key, call.provider, refused).await;
        }
        let news = self.news(key, &call.model, &learnt.limits);
        if news.is_empty() {
            return;
        }
        match store.learn_rates(&news).await {
            Ok(()) => {
                let now = Instant::now();
                let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
                recorded.extend(news.into_iter().map(|(account, limit)| (account, (limit, now))));
            }
            Err(cause) => warn!(cause = cause.as_dyn(), "a reported rate limit could not be recorded"),
        }
    }

    /// Returns the accounts of limits that are new, other than before, or not recorded for long.
    fn news(&self, key: &str, model: &str, limits: &RateLimits) -> Vec<(String, u64)> {
        if !self.limits.learns {
            return Vec::new();
        }
        let RateLimits { requests, input_tokens, output_tokens, tokens } = *limits;
        let reported =
            [(REQUESTS, requests), (INPUT, input_tokens), (OUTPUT, output_tokens), (TOKENS, tokens)];
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |account: &String, limit: u64| {
            recorded.get(account).is_none_or(|(before, at)| *before != limit || at.elapsed() >= REPEAT)
        };
        let accounts =
            reported.into_iter().filter_map(|(name, limit)| Some((format!("{key}:{name}:{model}"), limit?)));
        accounts.filter(|(account, limit)| is_new(account, *limit)).collect()
    }

    fn key(&self, provider: Provider) -> Option<&str> {
        match provider {
            Provider::Anthropic => self.anthropic.as_deref(),
            Provider::OpenAi => self.openai.as_deref(),
        }
    }

    fn counted(&self, call: &Call) -> Vec<Counted> {
        let (input, output) = (call.bound.input, call.bound.output);
        let counted = |limit, named, most| Counted { limit, named, most, as_produced: false };
        match call.provider {
            Provider::Anthropic => {
                let limits = &self.limits.anthropic;
                vec![
                    counted(REQUESTS, limits.requests, 1),
                    counted(INPUT, limits.input_tokens, input),
                    Counted { as_produced: true, ..counted(OUTPUT, limits.output_tokens, output) },
                ]
            }
            Provider::OpenAi => {
                let limits = &self.limits.openai;
                let both = input.saturating_add(output);
                vec![counted(REQUESTS, limits.requests, 1), counted(TOKENS, limits.tokens, both)]
            }
        }
    }
}

const REQUESTS: &str = "requests";
const INPUT: &str = "input_tokens";
const OUTPUT: &str = "output_tokens";
const TOKENS: &str = "tokens";
/// The limits by their names, as labels of a metric; `shut` stands for a key that is shut.
pub const LIMITS: [&str; 5] = [REQUESTS, INPUT, OUTPUT, TOKENS, SHUT_LIMIT];
const SHUT_LIMIT: &str = "shut";

/// Returns the name of the limit for which a call waits, of the account that a refused reservation names.
pub fn limit_name(account: &str) -> &'static str {
    let name = account.split(':').nth(2);
    LIMITS.into_iter().find(|limit| Some(*limit) == name).unwrap_or(SHUT_LIMIT)
}

async fn shut(store: &Store, key: &str, provider: Provider, refused: &KeyRefused) {
    let (why, default) = match refused.why {
        RefusedFor::RateLimit => (ShutFor::RateLimit, SHUT),
        RefusedFor::Overloaded => (ShutFor::Overloaded, SHUT),
        RefusedFor::Quota => (ShutFor::Quota, SHUT_FOR_QUOTA),
    };
    METRICS.key_refusals.with_label_values(&[provider.name(), why.as_str()]).inc();
    let duration = refused.retry_after.unwrap_or_else(|| default.mul_f64(1.0 + fastrand::f64()));
    let duration = duration.min(LONGEST_SHUT);
    let seconds = duration.as_secs();
    if why == ShutFor::Quota {
        error!(
            key,
            seconds, "the provider's account has no credit left; no worker calls with its key meanwhile"
        );
    } else {
        warn!(
            key,
            seconds,
            why = why.as_str(),
            "the provider refuses calls; no worker calls with this key meanwhile"
        );
    }
    if let Err(cause) = store.shut_key(key, duration, why).await {
        warn!(cause = cause.as_dyn(), key, "the key of a provider could not be shut");
    }
}

#[cfg(test)]
mod tests {
    use job::Usd;
    use model::{Bound, RequestKey, Settled, Tokens, Upstream, Wire};

    use super::*;

    fn keys(learns: bool) -> ProviderKeys {
        let anthropic =
            RateLimits { requests: Some(50), output_tokens: Some(8_000), ..RateLimits::default() };
        let openai = RateLimits { tokens: Some(30_000), ..RateLimits::default() };
        let limits = NamedLimits { anthropic, openai, learns };
        let keys = ProviderKeys::new(None, limits);
        ProviderKeys {
            anthropic: Some("anthropic:a".to_owned()),
            openai: Some("openai:b".to_owned()),
            ..keys
        }
    }

    fn call(wire: Wire, names_output: bool) -> Call {
        Call {
            id: "00000000-0000-7000-8000-000000000000".parse().expect("an id"),
            provider: wire.provider(),
            wire,
            model: "m".to_owned(),
            bound: Bound { input: 900, output: 100, names_output, cost: Usd::ZERO },
            request: RequestKey { hash: [0; 32], nth: 0 },
            cache_key: None,
        }
    }

    fn settled() -> Outcome {
        let tokens = Tokens { input: 10, cache_read: 700, cache_write: 5, cache_write_long: 5, output: 40 };
        Outcome::Settled(Settled { cost: Usd::ZERO, tokens, model: "m".to_owned() })
    }

    #[test]
    fn limits_that_are_set_are_taken_in_full_and_reported_ones_as_they_are_used() {
        let (keys, call) = (keys(true), call(Wire::Messages, true));
        let takes = keys.takes(&call).expect("a key");
        let taken: Vec<_> =
            takes.takes.iter().map(|it| (it.account.as_str(), it.limit, it.amount, it.as_produced)).collect();
        assert_eq!(
            taken,
            [
                ("anthropic:a:requests:m", None, 1, false),
                ("anthropic:a:requests", Some(50), 1, false),
                ("anthropic:a:input_tokens:m", None, 0, true),
                ("anthropic:a:output_tokens:m", None, 0, true),
                ("anthropic:a:output_tokens", Some(8_000), 100, true),
            ]
        );
        assert_eq!(keys.used(&call, &takes, &settled()), [1, 1, 20, 40, 40]);
        assert_eq!(keys.used(&call, &takes, &Outcome::Free), [1, 1, 0, 0, 0]);
        let unknown = Outcome::Unknown(model::NoUsage::NoEnd);
        assert_eq!(keys.used(&call, &takes, &unknown), [1, 1, 900, 100, 100]);
    }

    #[test]
    fn a_limit_of_output_that_a_request_names_counts_in_full_where_the_provider_counts_it() {
        let keys = keys(false);
        for (names_output, used) in [(true, 820), (false, 760)] {
            let call = call(Wire::Chat, names_output);
            let takes = keys.takes(&call).expect("a key");
            assert_eq!(takes.takes.iter().map(|it| it.amount).collect::<Vec<_>>(), [1_000]);
            assert_eq!(keys.used(&call, &takes, &settled()), [used]);
        }
    }

    #[test]
    fn a_reported_limit_is_recorded_when_it_is_new() {
        let keys = keys(true);
        let limits = RateLimits { requests: Some(50), tokens: Some(7), ..RateLimits::default() };
        let news = keys.news("k", "m", &limits);
        assert_eq!(news, [("k:requests:m".to_owned(), 50), ("k:tokens:m".to_owned(), 7)]);
        let record =
            |limit| keys.recorded.lock().unwrap().insert("k:tokens:m".to_owned(), (limit, Instant::now()));
        record(7);
        assert_eq!(keys.news("k", "m", &limits), [("k:requests:m".to_owned(), 50)]);
        record(8);
        assert_eq!(keys.news("k", "m", &limits), news);
    }

    #[test]
    fn a_key_is_named_by_a_part_of_its_hash() {
        let name = |key: &str| Upstream { base_url: String::new(), key: key.into() }.fingerprint();
        assert_eq!(name("sk-secret").len(), 12);
        assert_ne!(name("sk-secret"), name("sk-other"));
        assert_eq!(limit_name("openai:b:tokens:m:x"), "tokens");
        assert_eq!(limit_name("openai:b"), "shut");
    }
}
