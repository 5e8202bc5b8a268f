//! What the gateway of a worker adds: the time to the first byte of a streamed answer, and its memory with many streams.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tests::provider::{PROVIDER_KEY, Provider, client};
use tests::{Fleet, Worker, job, until};
use tokio::task::JoinSet;
use tokio::time::interval;

/// Answers of which the first byte is awaited, by each way.
const FIRST_BYTES: u32 = 400;
/// So many answers a second are asked for.
const RATES: [u32; 2] = [60, 200];
/// Streams that are open at the same time.
const STREAMS: u32 = 500;

/// What the worker says of its calls that are under way.
const IN_FLIGHT: &str = "harness_model_concurrency{of=\"in_flight\",provider=\"anthropic\"}";

/// Says where its gateway is, and lets its attempt go on.
const HOLDS: &str = "#!/bin/sh\nprintf '%s %s' \"$HARNESS_GATEWAY_URL\" \"$HARNESS_GATEWAY_TOKEN\" > \"$0.said\"\nexec sleep 86400\n";

/// One way to a provider.
#[derive(Clone)]
struct Way {
    client: Client,
    base_url: String,
    key: String,
}

pub async fn measure() -> anyhow::Result<()> {
    let (fleet, provider) = (Fleet::new().await, Provider::start().await);
    let program = fleet.program("holds", HOLDS);
    let agents = fleet.folder.path().join("agents.toml");
    let toml = format!(
        "[agents.holds]\nharness = \"command\"\ncommand = [{program:?}]\nmodels = [\"claude-haiku-4-5\"]\n"
    );
    std::fs::write(&agents, toml)?;
    let launch = fleet.worker("gateway").set("AGENTS_FILE", agents.display()).set("BUDGET_DAILY", "10000");
    let launch = launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url());
    let worker = launch.set("MODEL_CONCURRENCY", STREAMS).start().await;
    fleet.enqueue(&[job("s", "holds", json!(null))]).await;
    let said = || std::fs::read_to_string(format!("{program}.said")).ok().filter(|said| said.contains(' '));
    let said = until("the program runs", async || said()).await;
    let (gateway, token) = said.split_once(' ').context("an address and a token")?;
    let way = |base_url: &str, key: &str| Way {
        client: client(),
        base_url: base_url.to_owned(),
        key: key.to_owned(),
    };
    let (direct, through) = (way(&provider.base_url(), PROVIDER_KEY), way(gateway, token));

    let mut postgres = fleet.database.connect().await;
    sqlx::raw_sql("CREATE TABLE bare_commits (n int)").execute(&mut postgres).await?;
    let mut number = 0;
    for rate in RATES {
        first_bytes(rate, &mut number, [&direct, &through], &mut postgres).await?;
    }
    streams(&provider, &worker, &through, number).await
}

/// Prints what the gateway adds to the first byte of a stream, and to a request that needs no reservation, if so many are asked for
/// a second; and what Postgres takes meanwhile. Each question goes both ways, one after the other.
async fn first_bytes(
    rate: u32,
    number: &mut u32,
    ways: [&Way; 2],
    postgres: &mut PgConnection,
) -> anyhow::Result<()> {
    let [direct, through] = ways;
    let (mut asked, mut committed, mut asking) = (Vec::new(), Vec::new(), JoinSet::new());
    let mut ticks = interval(Duration::from_secs(1) / rate);
    for _ in 0..FIRST_BYTES {
        ticks.tick().await;
        let (direct, through, of) = (direct.clone(), through.clone(), *number);
        *number += 1;
        asking.spawn(async move {
            let first_bytes = [direct.first_byte(of).await?, through.first_byte(of).await?];
            let counted = [direct.counted(of).await?, through.counted(of).await?];
            anyhow::Ok((first_bytes, counted))
        });
        asked.push(statement(postgres, "SELECT 1").await?);
        committed.push(statement(postgres, "INSERT INTO bare_commits VALUES (1)").await?);
    }
    let mut took: [Vec<Duration>; 4] = Default::default();
    while let Some(answered) = asking.join_next().await {
        let (first_bytes, counted) = answered??;
        took.iter_mut().zip(first_bytes.into_iter().chain(counted)).for_each(|(of, took)| of.push(took));
    }
    let [directly, metered, counted_directly, counted_through] = took.map(median_ms);
    let [asked, committed] = [asked, committed].map(median_ms);
    println!(
        "at {rate} requests a second, p50 of {FIRST_BYTES}:\n  the gateway adds {:.2} ms to the first byte of a stream (aim: 2): \
         {metered:.2} ms in all, {directly:.2} ms of them without it\n  it adds {:.2} ms to a request that needs no reservation\n  \
         Postgres answers the least question in {asked:.2} ms, and commits one row in {committed:.2} ms",
        metered - directly,
        counted_through - counted_directly
    );
    Ok(())
}

/// Prints how much memory the worker takes while many streams are under way at once.
async fn streams(provider: &Provider, worker: &Worker, through: &Way, first: u32) -> anyhow::Result<()> {
    provider.say(100);
    // Each lasts for 25 s, so that the first has not ended when the last begins.
    provider.pause(Duration::from_millis(250));
    let before = worker.resident_mb();
    let mut streams = JoinSet::new();
    for number in 0..STREAMS {
        let response = through.ask(first + number).await?;
        streams.spawn(async move { response.bytes().await });
    }
    let under_way = worker.metric(IN_FLIGHT).await;
    ensure!(under_way == f64::from(STREAMS), "{under_way} streams are under way at once, expected {STREAMS}");
    let mut most = before;
    let mut ticks = interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            ended = streams.join_next() => match ended {
                Some(ended) => ensure!(ended??.ends_with(b"\n\n"), "an answer without its end"),
                None => break,
            },
            _ = ticks.tick() => most = most.max(worker.resident_mb()),
        }
    }
    let more = most - before;
    println!(
        "{STREAMS} streams at the same time: the worker has {most:.0} MB, {more:.0} MB more than before (aim 100)"
    );
    Ok(())
}

/// How long a statement takes at the rate of the requests. Every reservation needs a question and a commit.
async fn statement(postgres: &mut PgConnection, sql: &'static str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    sqlx::query(sql).execute(postgres).await?;
    Ok(began.elapsed())
}

impl Way {
    async fn ask(&self, number: u32) -> anyhow::Result<Response> {
        let body = json!({"model": "claude-haiku-4-5", "max_tokens": 1_000, "stream": true,
            "messages": [{"role": "user", "content": format!("Question {number}")}]});
        self.post("/v1/messages", body).await
    }

    /// How long it takes to have the tokens of a request counted.
    async fn counted(&self, number: u32) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let body = json!({"model": "claude-haiku-4-5",
            "messages": [{"role": "user", "content": format!("Question {number}")}]});
        self.post("/v1/messages/count_tokens", body).await?.bytes().await?;
        Ok(began.elapsed())
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Response> {
        let request = self.client.post(format!("{}{path}", self.base_url)).body(body.to_string());
        let request = request.header("x-api-key", &self.key).header("anthropic-version", "2023-06-01");
        let response = request.header("content-type", "application/json").send().await?;
        ensure!(response.status().is_success(), "{}: {}", response.status(), response.text().await?);
        Ok(response)
    }

    async fn first_byte(&self, number: u32) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut events = self.ask(number).await?.bytes_stream();
        events.next().await.context("an answer without a byte")??;
        let took = began.elapsed();
        while let Some(part) = events.next().await {
            part?;
        }
        Ok(took)
    }
}

fn median_ms(mut took: Vec<Duration>) -> f64 {
    took.sort_unstable();
    took[took.len() / 2].as_secs_f64() * 1e3
}
