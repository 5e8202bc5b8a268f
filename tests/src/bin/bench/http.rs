//! `make bench-http`: how fast the HTTP API takes jobs, how soon a client sees what becomes of them, and what idle streams
//! cost.
//!
//! The process that is measured is `producer serve`, without TLS and keys. It shares the machine with the broker,
//! Postgres, the worker and this client, so that ratios and CPU time matter more than rates. Writes
//! `target/bench-http.json`.

pub mod client;
pub mod door;
mod idle;
mod latency;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use job::Name;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use queue::Publisher;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use self::client::{Connection as Caller, post};
use self::door::Door;
use self::latency::{Latencies, follow};
use crate::cost::{Cpu, Meter, median};
use crate::{INPUT_BYTES, ROUNDS, SLOTS, Worker, consume, publish, publish_in_step, rate, ratio, wait_for};

/// Jobs of a batch.
const BATCH: usize = 10_000;
/// Batches that are sent at a time.
const BATCHES_AT_ONCE: usize = 2;
/// Callers that submit one job after the other.
const CALLERS: usize = 64;
/// Sessions that are followed while jobs end.
const FOLLOWED: usize = 256;
/// Idle streams.
const IDLE: usize = 5_000;

/// What a run needs of the broker.
pub struct Raw<'a> {
    pub publisher: &'a Publisher,
    pub consuming: &'a queue::Broker,
    pub queue: &'a str,
    pub pool: &'a Name,
}

/// Measures with so many jobs a phase.
pub async fn run(meter: &Meter, raw: Raw<'_>, database: &str, jobs: usize) -> anyhow::Result<()> {
    ensure!(jobs <= BATCH || jobs.is_multiple_of(BATCH), "expected a multiple of {BATCH} jobs");
    let door = Door::start(database).await?;
    let pool = Name::default();
    let queue = queue::jobs_queue(&pool);

    let (mut raw_rates, mut batch_rates, mut queued_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut raw_costs, mut batch_costs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("raw, {round} of {ROUNDS}: {jobs} messages published and confirmed");
        let (before, started) = (meter.read(door.pid()), Instant::now());
        publish(raw.publisher, raw.queue, raw.pool, jobs).await?;
        raw_rates.push(rate(jobs, started));
        raw_costs.push(meter.read(door.pid()).per_job_since(before, jobs));
        consume(raw.consuming, raw.queue, jobs).await?;

        eprintln!("batches, {round} of {ROUNDS}: {jobs} jobs, {} at a time", BATCH.min(jobs));
        let (before, started) = (meter.read(door.pid()), Instant::now());
        batches(&door, jobs).await?;
        batch_rates.push(rate(jobs, started));
        all_queued(database).await?;
        queued_rates.push(rate(jobs, started));
        batch_costs.push(meter.read(door.pid()).per_job_since(before, jobs));
    }
    let [raw_per_s, batch_per_s, queued_per_s] =
        [raw_rates, batch_rates, queued_rates].map(|rates| median(rates.into_iter()));
    let batch_ratio = ratio(batch_per_s, raw_per_s);

    eprintln!("posts: {jobs} jobs, one a request, on {CALLERS} connections");
    let (before, started) = (meter.read(door.pid()), Instant::now());
    let posted = posts(&door, jobs, None).await?;
    let posts_per_s = rate(jobs, started);
    all_queued(database).await?;
    let post_cost = meter.read(door.pid()).per_job_since(before, jobs);

    eprintln!("steady: {jobs} jobs, published as fast as a worker ends them");
    let worker = Worker::start(database, &pool)?;
    let waiting = (ROUNDS + 1) * jobs;
    wait_for(&worker, waiting).await?;
    let started = Instant::now();
    publish_in_step(raw.publisher, &queue, &pool, jobs, &worker).await?;
    wait_for(&worker, waiting + jobs).await?;
    let steady_per_s = rate(jobs, started);

    let changes = state_changes(meter, &door, &worker, waiting + jobs, jobs / 4, steady_per_s / 4.0).await?;
    drop(worker);

    let [http1, tls, http2] = idle_streams(door, database).await?;

    let figures = json!({
        "jobs": jobs, "input_bytes": INPUT_BYTES, "worker_slots": SLOTS,
        "raw_publish_per_s": raw_per_s.round(), "batch_per_s": batch_per_s.round(), "batch_ratio": batch_ratio,
        "batch_to_queued_per_s": queued_per_s.round(),
        "posts_per_s": posts_per_s.round(), "post_p50_ms": posted.quantile_ms(0.5), "post_p99_ms": posted.quantile_ms(0.99),
        "steady_per_s": steady_per_s.round(),
        "paced_post_p50_ms": changes.posts.quantile_ms(0.5), "paced_post_p99_ms": changes.posts.quantile_ms(0.99),
        "state_change_p50_ms": changes.ends.quantile_ms(0.5), "state_change_p99_ms": changes.ends.quantile_ms(0.99),
        "state_changes_seen": changes.ends.count(),
        "idle_streams": IDLE, "idle_http1": http1.to_json(), "idle_tls": tls.to_json(), "idle_http2": http2.to_json(),
        "raw_cost": Cpu::median(&raw_costs).to_json("producer"),
        "batch_cost": Cpu::median(&batch_costs).to_json("producer"),
        "post_cost": post_cost.to_json("producer"), "followed_cost": changes.cost.to_json("producer"),
    });
    std::fs::create_dir_all("target")?;
    std::fs::write("target/bench-http.json", serde_json::to_string_pretty(&figures)?)?;
    show(&figures);
    Cpu::heading("producer");
    for (name, cost) in [
        ("raw message, confirmed", Cpu::median(&raw_costs)),
        ("job of a batch", Cpu::median(&batch_costs)),
        ("job of its own request", post_cost),
        ("job that is followed", changes.cost),
    ] {
        cost.show(name);
    }
    Ok(())
}

/// Measures idle streams alone.
pub async fn run_idle(database: &str) -> anyhow::Result<()> {
    let [http1, tls, http2] = idle_streams(Door::start(database).await?, database).await?;
    let figures = json!({ "http1": http1.to_json(), "tls": tls.to_json(), "http2": http2.to_json() });
    println!("{}", serde_json::to_string_pretty(&figures)?);
    Ok(())
}

async fn idle_streams(door: Door, database: &str) -> anyhow::Result<[idle::Idle; 3]> {
    eprintln!("idle streams: {IDLE} over HTTP/1.1, without and with TLS, and over HTTP/2");
    // Thousands of connections are open on both ends.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let ids = idle::jobs(&door, IDLE).await?;
    all_queued(database).await?;
    drop(door);
    Ok([
        idle::http1(Door::start(database).await?, &ids).await?,
        idle::http1(Door::start_tls(database).await?, &ids).await?,
        idle::http2(database, &ids).await?,
    ])
}

/// Measures state changes alone, at this many jobs per second.
pub async fn run_followed(meter: &Meter, database: &str, jobs: usize, per_s: f64) -> anyhow::Result<()> {
    let door = Door::start(database).await?;
    let worker = Worker::start(database, &Name::default())?;
    let StateChanges { posts, ends, cost } = state_changes(meter, &door, &worker, 0, jobs, per_s).await?;
    for (name, of) in [("a request", posts), ("an end at the client", ends)] {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|quantile| of.quantile_ms(quantile));
        println!("{name:<28} p50 {p50} ms, p90 {p90} ms, p99 {p99} ms");
    }
    Cpu::heading("producer");
    cost.show("job that is followed");
    Ok(())
}

/// What those who follow see, and what it costs.
struct StateChanges {
    posts: Latencies,
    ends: Latencies,
    cost: Cpu,
}

/// Submits jobs of followed sessions, at this many per second. The worker has ended so many before.
async fn state_changes(
    meter: &Meter,
    door: &Door,
    worker: &Worker,
    ended: usize,
    jobs: usize,
    per_s: f64,
) -> anyhow::Result<StateChanges> {
    let jobs = jobs.max(CALLERS);
    eprintln!("state changes: {jobs} jobs of {FOLLOWED} followed sessions, {per_s:.0} per second");
    let sessions = sessions();
    for session in &sessions {
        door.caller().await?.send(&post(door, &job_of(Some(session)))).await?.accepted()?;
    }
    wait_for(worker, ended + FOLLOWED).await?;
    let following = follow(door, &sessions).await?;
    let before = meter.read(door.pid());
    let posts = posts(door, jobs, Some((per_s, &sessions))).await?;
    wait_for(worker, ended + FOLLOWED + jobs).await?;
    let ends = following.finish(jobs).await?;
    let cost = meter.read(door.pid()).per_job_since(before, jobs);
    Ok(StateChanges { posts, ends, cost })
}

/// Prints each figure beside its aim.
fn show(figures: &Value) {
    println!("{:<52}{:>12}{:>16}", "", "measured", "aim");
    for (name, of, aim) in [
        ("raw messages, published and confirmed, per s", "raw_publish_per_s", ""),
        ("jobs in batches, accepted, per s", "batch_per_s", ""),
        ("  of raw", "batch_ratio", ">= 0.60"),
        ("  until they are queued at the broker, per s", "batch_to_queued_per_s", ""),
        ("jobs, one a request, per s", "posts_per_s", ">= 5000"),
        ("  p50 ms", "post_p50_ms", ""),
        ("  p99 ms", "post_p99_ms", "< 50"),
        ("jobs, steady, with a worker, per s", "steady_per_s", ""),
        ("an end at the client, quarter rate, p50 ms", "state_change_p50_ms", ""),
        ("  p99 ms", "state_change_p99_ms", "< 50"),
    ] {
        println!("{name:<52}{:>12}{aim:>16}", figures[of]);
    }
    for (name, of, aim) in [
        ("HTTP/1.1", "idle_http1", "< 110"),
        ("HTTP/1.1 with TLS", "idle_tls", ""),
        ("HTTP/2", "idle_http2", "< 110"),
    ] {
        let idle = &figures[of];
        let title = format!("{IDLE} idle streams, {name}, MB resident");
        println!("{title:<52}{:>12}{aim:>16}", idle["rss_mb"]);
        println!("{:<52}{:>12}", "  before they were opened", idle["rss_before_mb"]);
        println!("{:<52}{:>12}", "  CPU of the process, % of a core", idle["cpu_percent"]);
    }
}

fn sessions() -> Vec<String> {
    (0..FOLLOWED).map(|n| format!("bench-http-{}-{n}", std::process::id())).collect()
}

/// A job as it is submitted, in a session of its own or in this one.
fn job_of(session: Option<&str>) -> String {
    let session = session.map(|name| format!(",\"session_id\":\"{name}\"")).unwrap_or_default();
    format!("{{\"agent_id\":\"echo\",\"input\":\"{}\"{session}}}", "x".repeat(INPUT_BYTES))
}

/// Submits jobs in batches, some at a time.
async fn batches(door: &Door, jobs: usize) -> anyhow::Result<()> {
    let size = BATCH.min(jobs);
    let line = job_of(None) + "\n";
    let request = client::batch(door, &line.repeat(size));
    let each = jobs / size / BATCHES_AT_ONCE;
    let rest = jobs / size % BATCHES_AT_ONCE;
    let sending = (0..BATCHES_AT_ONCE).map(|n| {
        let request = &request;
        async move {
            let mut caller = door.caller().await?;
            for _ in 0..each + usize::from(n < rest) {
                let answer = caller.send(request).await?.json()?;
                ensure!(answer["accepted"] == size && answer["complete"] == true, "a batch was not accepted");
            }
            anyhow::Ok(())
        }
    });
    try_join_all(sending).await.map(drop)
}

/// Submits jobs one by one on connections that are kept; with a rate, at that rate and in these sessions in turn.
async fn posts(door: &Door, jobs: usize, paced: Option<(f64, &[String])>) -> anyhow::Result<Latencies> {
    let started = Instant::now();
    let sending = (0..CALLERS).map(|caller| async move {
        let mut connection: Caller = door.caller().await?;
        let (mut latencies, alone) = (Latencies::default(), post(door, &job_of(None)));
        for number in (caller..jobs).step_by(CALLERS) {
            let request = match paced {
                None => None,
                Some((per_s, sessions)) => {
                    let due = started + Duration::from_secs_f64(number as f64 / per_s);
                    tokio::time::sleep_until(due.into()).await;
                    Some(post(door, &job_of(Some(&sessions[number % sessions.len()]))))
                }
            };
            let sent = Instant::now();
            connection.send(request.as_ref().unwrap_or(&alone)).await?.accepted()?;
            latencies.add(sent.elapsed());
        }
        anyhow::Ok(latencies)
    });
    Ok(Latencies::all(try_join_all(sending).await?))
}

/// Waits until the broker has all jobs.
async fn all_queued(database: &str) -> anyhow::Result<()> {
    let mut ledger = PgConnection::connect(database).await?;
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let sql = "SELECT EXISTS (SELECT FROM harness_jobs WHERE state IN ('scheduled', 'publishing'))";
        let waits: bool = sqlx::query_scalar(sql).fetch_one(&mut ledger).await.context("reading jobs")?;
        if !waits {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not all jobs were published within 300 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
