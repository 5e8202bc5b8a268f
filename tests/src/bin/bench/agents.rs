//! `bench agents [SESSIONS] [CONTEXT_KB]`: a worker's agents on the double of the providers. How many transactions Postgres
//! commits for an iteration with one tool, and how much memory many sessions at once take, each with this much context.
//!
//! First one session alone makes its iterations. Then all sessions begin at once, each with an input that is as large as the
//! context, call a tool twice, and stand still in the middle of their third answer. A minute later they are cancelled. Memory is
//! what the kernel counts as resident: at most, when the last session stands still, a minute later, and a minute after the end.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{JobSpec, Json, Name, SCHEMA};
use queue::{Message, Publisher};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::provider::{PROVIDER_KEY, Provider, Script};
use tests::usage;

use crate::program;

const ITERATIONS: usize = 200;
const SESSIONS: usize = 1_000;
const CONTEXT_KB: usize = 200;
/// How long transactions are counted without a job.
const IDLE: Duration = Duration::from_secs(5);
/// How long memory has to go back to the kernel.
const LATER: Duration = Duration::from_secs(60);
/// How long all sessions may take to their places.
const MOST: Duration = Duration::from_secs(600);

const PLAYS: &str = r#"{"plays": {
    "alone": [{"times": ITERATIONS, "tools": [{"name": "list_files", "input": {}}]}, {"text": "Done."}],
    "many": [{"times": 2, "tools": [{"name": "list_files", "input": {}}]},
             {"text": "It goes on for ever.", "fault": {"stalls_after": 3}}]}}"#;

/// Runs all of it with these arguments, and writes `target/bench-agents.json`.
pub async fn run(
    publisher: &Publisher,
    pool: &Name,
    database: &str,
    mut arguments: impl Iterator<Item = String>,
) -> anyhow::Result<()> {
    let mut number = |usual: usize| arguments.next().map_or(Ok(usual), |given| given.parse());
    let sessions = number(SESSIONS).context("expected a number of sessions")?;
    let context_kb = number(CONTEXT_KB).context("expected kilobytes of context")?;
    let script = Script::parse(&PLAYS.replace("ITERATIONS", &ITERATIONS.to_string()))?;
    // It keeps no bodies.
    let provider = Provider::at("127.0.0.1:0".parse()?, PROVIDER_KEY, script).await?;
    let worker = Worker::start(database, pool, &provider, sessions)?;

    eprintln!("alone: one session with {ITERATIONS} iterations of one tool");
    let alone = spec(pool, "alone", "Go through all of it. play:alone")?;
    worker.takes_jobs(database).await?;
    let per_idle_s = {
        let before = commits(database).await?;
        tokio::time::sleep(IDLE).await;
        (commits(database).await? - before) / IDLE.as_secs_f64()
    };
    let (before, started) = (commits(database).await?, Instant::now());
    publish(publisher, pool, vec![alone]).await?;
    until(|| provider.charged().len() > ITERATIONS, || provider.charged().len()).await?;
    let took = started.elapsed().as_secs_f64();
    let commits = (commits(database).await? - before - per_idle_s * took) / ITERATIONS as f64;

    eprintln!("many: {sessions} sessions at once, each with {context_kb} kB of context");
    let before_mb = usage::resident_mb(worker.process.id());
    let text = "All of it was said before, at some length. ".repeat(context_kb * 1_000 / 43);
    let many = (0..sessions).map(|at| spec(pool, &format!("many-{at}"), &format!("{text} {at} play:many")));
    publish(publisher, pool, many.collect::<anyhow::Result<_>>()?).await?;
    until(|| provider.hung() as usize >= sessions, || provider.hung() as usize).await?;
    let (resident_mb, peak_mb) =
        (usage::resident_mb(worker.process.id()), usage::peak_mb(worker.process.id()));
    tokio::time::sleep(LATER).await;
    let later_mb = usage::resident_mb(worker.process.id());
    cancel(database, sessions + 1).await?;
    tokio::time::sleep(LATER).await;
    let ended_mb = usage::resident_mb(worker.process.id());
    ensure!(provider.findings().is_empty(), "the provider found {:#?}", provider.findings());

    let rounded = |figure: f64| (figure * 100.0).round() / 100.0;
    let figures: Value = json!({
        "iterations": ITERATIONS, "commits_per_iteration": rounded(commits),
        "iteration_ms": rounded(took * 1e3 / ITERATIONS as f64), "idle_commits_per_s": rounded(per_idle_s),
        "sessions": sessions, "context_kb": context_kb,
        "worker_before_mb": rounded(before_mb), "worker_rss_mb": rounded(resident_mb), "worker_peak_mb": rounded(peak_mb),
        "worker_minute_later_mb": rounded(later_mb), "worker_ended_mb": rounded(ended_mb),
    });
    std::fs::create_dir_all("target")?;
    std::fs::write("target/bench-agents.json", serde_json::to_string_pretty(&figures)?)?;
    println!("{commits:.2} commits an iteration, {:.1} ms with the provider", took * 1e3 / ITERATIONS as f64);
    println!(
        "{sessions} sessions of {context_kb} kB: {resident_mb:.0} MB resident, {peak_mb:.0} MB at most, {later_mb:.0} MB a minute \
         later; {ended_mb:.0} MB a minute after their end, {before_mb:.0} MB before"
    );
    Ok(())
}

fn spec(pool: &Name, session: &str, said: &str) -> anyhow::Result<JobSpec> {
    let mut spec = JobSpec::new(session.parse()?, "agent".parse()?, Json::from_value(&said)?);
    spec.pool = pool.clone();
    Ok(spec)
}

async fn publish(publisher: &Publisher, pool: &Name, jobs: Vec<JobSpec>) -> anyhow::Result<()> {
    let queue = queue::jobs_queue(pool);
    let mut confirms = FuturesUnordered::new();
    for spec in jobs {
        let id = spec.job_id.to_string();
        let message = Message { message_id: Some(id), ..Message::new(SCHEMA, job::encode(&spec)) };
        confirms.push(publisher.publish(&queue, message));
        if confirms.len() >= 50 {
            confirms.next().await.transpose()?;
        }
    }
    while let Some(confirm) = confirms.next().await {
        confirm?;
    }
    Ok(())
}

/// Returns how many transactions Postgres has committed in the database.
async fn commits(database: &str) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect(database).await?;
    let count = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    let count: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await?;
    Ok(count as f64)
}

/// Cancels what runs, and waits until so many jobs have ended.
async fn cancel(database: &str, jobs: usize) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(database).await?;
    sqlx::query("UPDATE harness_jobs SET asked = 'cancel' WHERE state = 'running'")
        .execute(&mut connection)
        .await?;
    let (deadline, ended) = (Instant::now() + MOST, "SELECT count(*) FROM harness_results");
    while sqlx::query_scalar::<_, i64>(ended).fetch_one(&mut connection).await? < jobs as i64 {
        ensure!(Instant::now() < deadline, "not all jobs have ended within {} s", MOST.as_secs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

async fn until(is_so: impl Fn() -> bool, seen: impl Fn() -> usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + MOST;
    while !is_so() {
        ensure!(Instant::now() < deadline, "only {} within {} s", seen(), MOST.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A worker process of the same build, with a slot for each session.
struct Worker {
    process: Child,
    _folder: tempfile::TempDir,
}

impl Worker {
    fn start(database: &str, pool: &Name, provider: &Provider, slots: usize) -> anyhow::Result<Worker> {
        let folder = tempfile::tempdir()?;
        let agents = folder.path().join("agents.toml");
        std::fs::write(
            &agents,
            "[agents.agent]\nharness = \"agent\"\nmodels = [\"claude-opus-5-5\"]\nmax_output_tokens = 200\n\
             max_iterations = 1000\nfiles = true\n",
        )?;
        let process = program("worker")?
            .env("DATABASE_URL", database)
            .env("LOG_LEVEL", "warn")
            .env("ANTHROPIC_API_KEY", PROVIDER_KEY)
            .env("ANTHROPIC_BASE_URL", provider.base_url())
            .env("MODEL_CONCURRENCY", slots.max(16).to_string())
            .args(["--pool", pool.as_str(), "--slots", &slots.to_string(), "--admin-addr", "127.0.0.1:0"])
            .args([
                "--agents".as_ref(),
                agents.as_os_str(),
                "--workspace-dir".as_ref(),
                folder.path().as_os_str(),
            ])
            .spawn()
            .context("starting a worker")?;
        Ok(Worker { process, _folder: folder })
    }

    /// Waits until it is in the list of workers.
    async fn takes_jobs(&self, database: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(database).await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let alive = "SELECT count(*) FROM harness_workers WHERE state = 'alive'";
        while sqlx::query_scalar::<_, i64>(alive).fetch_one(&mut connection).await? == 0 {
            ensure!(Instant::now() < deadline, "the worker does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its sessions go with its database.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
