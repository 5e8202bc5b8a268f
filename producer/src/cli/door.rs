//! The bounds of the API: how much it takes, from whom, and how fast.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use service::{Problems, Setting};

use crate::http::{Origins, TrustedProxies};

/// `none` takes a bound away.
#[derive(Debug, Args)]
pub struct DoorArgs {
    /// Milliseconds that a request waits for Postgres in all; then the answer is 503 `unavailable`
    #[arg(long, env = "API_ANSWER_WITHIN_MS", default_value = "1700")]
    api_answer_within_ms: Setting<u64>,
    /// The most connections that are open at a time; a further one is closed at once
    #[arg(long, env = "API_MAX_CONNECTIONS", default_value = "10000")]
    api_max_connections: Setting<usize>,
    /// The same of one address (for IPv6 of a network of 64 bits) that is not listed in API_TRUSTED_PROXIES; or none
    #[arg(long, env = "API_MAX_CONNECTIONS_PER_ADDRESS", default_value = "2000")]
    api_max_connections_per_address: Setting<Bound>,
    /// The most streams of events and waits for an end (Prefer: wait) that are open at a time; with more, the answer is
    /// 503 `busy`; or none
    #[arg(long, env = "API_MAX_FOLLOWERS", default_value = "10000")]
    api_max_followers: Setting<Bound>,
    /// The same of one tenant: with more, the answer is 429 `too_many_followers`; or none
    #[arg(long, env = "API_MAX_FOLLOWERS_PER_TENANT", default_value = "5000")]
    api_max_followers_per_tenant: Setting<Bound>,
    /// The same of one key; or none
    #[arg(long, env = "API_MAX_FOLLOWERS_PER_CALLER", default_value = "2500")]
    api_max_followers_per_caller: Setting<Bound>,
    /// The most bytes of bodies that are being read at a time, batches excluded, and of answers that wait for callers to
    /// take them: with more, the answer is 503 `busy`. A tenant has a quarter of each (429 `too_many_bodies`,
    /// `too_many_answers`). Callers whose key is not known have an eighth of each together, and an address a quarter of
    /// that
    #[arg(long, env = "API_MAX_BODY_BYTES", default_value = "268435456")]
    api_max_body_bytes: Setting<usize>,
    /// The most unfinished jobs in the ledger: with more, a submission is answered with 503 `backlog`; or none
    #[arg(long, env = "API_MAX_UNFINISHED_JOBS", default_value = "1000000")]
    api_max_unfinished_jobs: Setting<Bound>,
    /// How many keys that are not valid an address (for IPv6 a network of 64 bits) may show within a minute: with more,
    /// it is answered with 429 before its keys are looked up; or none
    #[arg(long, env = "API_SIGN_IN_FAILURES", default_value = "20")]
    api_sign_in_failures: Setting<Bound>,
    /// Proxies in front of the API whose X-Forwarded-For is believed: addresses and networks, such as
    /// 10.0.0.7,10.1.0.0/16
    #[arg(long, env = "API_TRUSTED_PROXIES", default_value = "")]
    api_trusted_proxies: Setting<TrustedProxies>,
    /// The origins of pages whose scripts may ask from a browser, such as https://app.example.com
    #[arg(long, env = "CORS_ORIGINS", default_value = "")]
    cors_origins: Setting<Origins>,
}

/// The bounds, checked.
#[derive(Debug)]
pub struct DoorBounds {
    pub answer_within: Duration,
    pub connections: usize,
    pub connections_per_address: usize,
    pub followers: usize,
    pub followers_per_tenant: usize,
    pub followers_per_caller: usize,
    pub body_bytes: usize,
    pub unfinished_jobs: Option<u32>,
    pub sign_in_failures: Option<u32>,
    pub trusted_proxies: TrustedProxies,
    pub origins: Origins,
}

impl DoorArgs {
    /// Notes what is wrong with them.
    pub fn check(self, problems: &mut Problems) -> Option<DoorBounds> {
        let answer_within = problems.within("API_ANSWER_WITHIN_MS", self.api_answer_within_ms, 100..=60_000);
        let connections = problems.within("API_MAX_CONNECTIONS", self.api_max_connections, 1..=1_000_000);
        let mut most = |name, given: Setting<Bound>| Some(problems.take(name, given)?.most());
        let per_address = most("API_MAX_CONNECTIONS_PER_ADDRESS", self.api_max_connections_per_address);
        let followers = most("API_MAX_FOLLOWERS", self.api_max_followers);
        let of_tenant = most("API_MAX_FOLLOWERS_PER_TENANT", self.api_max_followers_per_tenant);
        let of_key = most("API_MAX_FOLLOWERS_PER_CALLER", self.api_max_followers_per_caller);
        let body_bytes = problems.within("API_MAX_BODY_BYTES", self.api_max_body_bytes, 1 << 20..=1 << 40);
        let unfinished = problems.take("API_MAX_UNFINISHED_JOBS", self.api_max_unfinished_jobs);
        let failures = problems.take("API_SIGN_IN_FAILURES", self.api_sign_in_failures);
        let proxies = problems.take("API_TRUSTED_PROXIES", self.api_trusted_proxies);
        let origins = problems.take("CORS_ORIGINS", self.cors_origins);
        Some(DoorBounds {
            answer_within: Duration::from_millis(answer_within?),
            connections: connections?,
            connections_per_address: per_address?,
            followers: followers?,
            followers_per_tenant: of_tenant?,
            followers_per_caller: of_key?,
            body_bytes: body_bytes?,
            unfinished_jobs: unfinished?.0,
            sign_in_failures: failures?.0,
            trusted_proxies: proxies?,
            origins: origins?,
        })
    }
}

/// A count, or none.
#[derive(Clone, Copy, Debug)]
struct Bound(Option<u32>);

impl Bound {
    fn most(self) -> usize {
        self.0.map_or(usize::MAX, |most| most as usize)
    }
}

impl FromStr for Bound {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u32>() {
            _ if text == "none" => Ok(Bound(None)),
            Ok(count) if (1..=i32::MAX as u32).contains(&count) => Ok(Bound(Some(count))),
            _ => Err(format!("expected a whole number from 1 to {}, or none", i32::MAX)),
        }
    }
}
