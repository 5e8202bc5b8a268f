//! What the gateway of a worker adds: the time to the first byte of a streamed answer, and its memory with many streams.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tests::provider::{PROVIDER_KEY, Provider, client};
use tests::{Fleet, job, until};
use tokio::task::JoinSet;
use tokio::time::interval;

/// Answers of which the first byte is awaited, by each way.
const FIRST_BYTES: u32 = 400;
/// Streams that are open at the same time.
const STREAMS: u32 = 500;

/// Says where its gateway is, and lets its attempt go on.
const HOLDS: &str = "#!/bin/sh\nprintf '%s %s' \"$HARNESS_GATEWAY_URL\" \"$HARNESS_GATEWAY_TOKEN\" > \"$0.said\"\nexec sleep 86400\n";

/// One way to a provider.
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
    let worker = launch.start().await;
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
    let (mut directly, mut metered) = (Vec::new(), Vec::new());
    let (mut counted_directly, mut passed_on) = (Vec::new(), Vec::new());
    let (mut asked, mut committed) = (Vec::new(), Vec::new());
    for number in 0..FIRST_BYTES {
        asked.push(statement(&mut postgres, "SELECT 1").await?);
        committed.push(statement(&mut postgres, "INSERT INTO bare_commits VALUES (1)").await?);
        directly.push(direct.first_byte(number).await?);
        metered.push(through.first_byte(number).await?);
        counted_directly.push(direct.counted(number).await?);
        passed_on.push(through.counted(number).await?);
    }
    let [counted_directly, passed_on] = [counted_directly, passed_on].map(median_ms);
    let [asked, committed] = [asked, committed].map(median_ms);
    println!(
        "the way through the gateway, p50 of {FIRST_BYTES} requests that need no reservation: {:.2} ms; beside it Postgres \
         answers the least question in {asked:.2} ms and commits one row in {committed:.2} ms",
        passed_on - counted_directly
    );
    let [directly, metered] = [directly, metered].map(median_ms);
    let added = metered - directly;
    println!(
        "first byte of a stream, p50 of {FIRST_BYTES}: {directly:.2} ms without the gateway, {metered:.2} ms with it, {added:.2} ms more (aim 2)"
    );

    provider.say(100);
    provider.pause(Duration::from_millis(100));
    let before = worker.resident_mb();
    let mut streams = JoinSet::new();
    for number in 0..STREAMS {
        let response = through.ask(FIRST_BYTES + number).await?;
        streams.spawn(async move { response.bytes().await });
    }
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
