//! The bounds of the API: how much it takes, from whom, and how fast.

use std::str::FromStr;

use clap::Args;
use service::{Problems, Setting};

use crate::http::{Origins, TrustedProxies};

/// `none` takes a bound away.
#[derive(Debug, Args)]
pub struct DoorArgs {
    /// The most connections that are open at a time; a further one is closed at once
    #[arg(long, env = "API_MAX_CONNECTIONS", default_value = "10000")]
    api_max_connections: Setting<usize>,
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
    pub connections: usize,
    pub unfinished_jobs: Option<u32>,
    pub sign_in_failures: Option<u32>,
    pub trusted_proxies: TrustedProxies,
    pub origins: Origins,
}

impl DoorArgs {
    /// Notes what is wrong with them.
    pub fn check(self, problems: &mut Problems) -> Option<DoorBounds> {
        let connections = problems.within("API_MAX_CONNECTIONS", self.api_max_connections, 1..=1_000_000);
        let unfinished = problems.take("API_MAX_UNFINISHED_JOBS", self.api_max_unfinished_jobs);
        let failures = problems.take("API_SIGN_IN_FAILURES", self.api_sign_in_failures);
        let proxies = problems.take("API_TRUSTED_PROXIES", self.api_trusted_proxies);
        let origins = problems.take("CORS_ORIGINS", self.cors_origins);
        Some(DoorBounds {
            connections: connections?,
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
