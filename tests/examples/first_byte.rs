//! How much the gateway adds to the first byte of a stream, and what many streams weigh:
//! `cargo run -p tests --example first_byte`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use model::{
    Answer, Attempt, Call, Gateway, GatewaySettings, HostedCaps, Ledger, Prices, RequestKey, Reserve,
};
use model::{Settlement, Unavailable, Upstream};
use serde_json::json;
use tests::provider::{PROVIDER_KEY, Provider};

/// Accounts without a limit.
struct NoLimit;

#[async_trait]
impl Ledger for NoLimit {
    async fn reserve(&self, _: &Call) -> Result<Reserve, Unavailable> {
        Ok(Reserve::Granted)
    }

    async fn settle(&self, _: &Call, _: Settlement) -> Result<(), Unavailable> {
        Ok(())
    }

    async fn stored(&self, _: &RequestKey) -> Result<Option<Answer>, Unavailable> {
        Ok(None)
    }
}

#[tokio::main]
async fn main() {
    let provider = Provider::start().await;
    let upstream = Upstream { base_url: provider.base_url(), key: PROVIDER_KEY.into() };
    let gateway = Gateway::start(GatewaySettings {
        addr: "127.0.0.1:0".parse().expect("an address"),
        anthropic: Some(upstream),
        openai: None,
        prices: Prices::built_in(),
        usage_drain: Duration::from_secs(1),
    });
    let gateway = gateway.await.expect("started");
    let models = vec!["claude-opus-5-5".to_owned()];
    let attempt = Attempt { ledger: Arc::new(NoLimit), models, caps: HostedCaps::default() };
    let attempt = gateway.open(attempt).expect("opened");
    let [(_, through), (_, token), ..] = attempt.environment();
    let client = tests::provider::client();
    let body = json!({"model": "claude-opus-5-5", "max_tokens": 50, "stream": true, "system": "s".repeat(20_000),
        "messages": [{"role": "user", "content": "Say something."}]});
    let direct = provider.base_url();
    let ways = [("direct", &direct, PROVIDER_KEY), ("through the gateway", &through, token.as_str())];
    for (name, base, key) in ways {
        let mut times = Vec::new();
        for _ in 0..500 {
            let began = Instant::now();
            let request = client.post(format!("{base}/v1/messages")).header("x-api-key", key);
            let request = request.header("anthropic-version", "2023-06-01").body(body.to_string());
            let mut answer = request.send().await.expect("an answer");
            answer.chunk().await.expect("a stream").expect("an event");
            times.push(began.elapsed());
            while answer.chunk().await.expect("a stream").is_some() {}
        }
        times.sort();
        service::out!("{name}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    provider.pause(Duration::from_millis(500));
    let before = memory_kib();
    let streams = (0..500).map(|_| {
        let request = client.post(format!("{through}/v1/messages")).header("x-api-key", &token);
        request.header("anthropic-version", "2023-06-01").body(body.to_string()).send()
    });
    let streams = futures::future::join_all(streams).await;
    let weight = memory_kib() - before;
    service::out!("{} streams: {} KiB, with their provider and their client", streams.len(), weight);
}

fn memory_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
