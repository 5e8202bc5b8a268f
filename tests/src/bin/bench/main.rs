//! `make bench`: how fast jobs go from publish to recorded end, compared with raw messages on the same broker and
//! client.
//!
//! Everything is measured in one run on one machine, which the broker, Postgres, worker and publisher share. So the
//! ratios matter, not the rates, and CPU time per job matters most. Raw messages and jobs take turns, and each figure
//! is the median of its rounds. Writes `target/bench.json`.
//!
//! `make bench-http` (`bench http`) measures the HTTP API instead; a number behind it makes it shorter.
//! `make bench-agents` (`bench agents`) measures a worker's agents instead, see `agents`.
//! `make bench-line` (`bench line`) measures pools with a line instead, see `line`.
//! `bench follow JOBS PER_SECOND` measures state changes alone, to compare two builds at one rate, `bench idle` idle streams.

mod cost;
mod http;
mod agents;
mod line;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{JobSpec, Json, Name, SCHEMA};
use postgres::{Address, SetBy};
use queue::{Broker, BrokerConfig, Message, Publisher};
use sqlx::{Connection, PgConnection};
use tests::Vhost;
use tokio_util::sync::CancellationToken;

use cost::{Cpu, Meter, median};

const JOBS: usize = 40_000;
/// How many times raw messages and jobs take turns.
const ROUNDS: usize = 3;
const SLOTS: usize = 512;
const INPUT_BYTES: usize = 1_024;
const IN_FLIGHT: usize = 2_000;
/// Jobs between publish and recorded end in steady state: eight times the worker's slots, so that the worker never
/// waits.
const OUTSTANDING: usize = 4_096;

/// The broker's address, for this process and the programs.
static BROKER: OnceLock<String> = OnceLock::new();

/// A program of the same build.
fn program(name: &str) -> anyhow::Result<Command> {
    let binary = std::env::current_exe()?.with_file_name(name);
    ensure!(
        binary.exists(),
        "{} is not there: run `cargo build --release -p {name}` first",
        binary.display()
    );
    let mut command = Command::new(binary);
    command.envs(BROKER.get().map(|url| ("AMQP_URL", url))).stdin(Stdio::null());
    Ok(command)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Its own, so that no message of a benchmark is left for anybody else.
    let vhost = Vhost::new();
    let amqp_url = BROKER.get_or_init(|| vhost.url.clone()).clone();
    let database_url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set: run `make bench`")?;
    let meter = Meter::new(&amqp_url, &database_url)?;
    let [pool, raw_pool]: [Name; 2] = [
        format!("bench-{}", std::process::id()).parse()?,
        format!("bench-{}-raw", std::process::id()).parse()?,
    ];
    let raw_queue = queue::jobs_queue(&raw_pool);
    let queue = queue::jobs_queue(&pool);
    let broker = |name: &str| {
        let pools = [pool.clone(), raw_pool.clone()];
        Broker::start(BrokerConfig::new(amqp_url.clone(), name).with_pools(pools), CancellationToken::new())
    };
    let (publishing, consuming) = (broker("bench, publishing"), broker("bench, consuming"));
    publishing.ready(Duration::from_secs(10)).await?;
    consuming.ready(Duration::from_secs(10)).await?;
    let publisher = publishing.publisher();

    let mut arguments = std::env::args().skip(1);
    let database = fresh_database(&database_url).await?;
    if let Some(what) = arguments.next() {
        let raw =
            http::Raw { publisher: &publisher, consuming: &consuming, queue: &raw_queue, pool: &raw_pool };
        let measured = part(&what, arguments, &meter, raw, &pool, &database).await;
        publishing.close().await;
        consuming.close().await;
        drop_database(&database_url, &database).await?;
        return measured;
    }

    eprintln!("raw drain: {JOBS} messages of 1 KiB on a prefilled queue");
    publish(&publisher, &raw_queue, &raw_pool, JOBS).await?;
    let started = Instant::now();
    consume(&consuming, &raw_queue, JOBS).await?;
    let raw_drain_per_s = rate(JOBS, started);

    eprintln!("drain: {JOBS} jobs on a prefilled queue");
    publish(&publisher, &queue, &pool, JOBS).await?;
    let worker = Worker::start(&database, &pool)?;
    let before = wait_for(&worker, 1).await?;
    let started = Instant::now();
    wait_for(&worker, JOBS).await?;
    let drain_per_s = rate(JOBS - before, started);

    let (mut raw_rates, mut raw_costs) = (Vec::new(), Vec::new());
    let (mut steady_rates, mut steady_costs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!(
            "raw, {round} of {ROUNDS}: {JOBS} messages through the broker, published and consumed at once"
        );
        let (before, started) = (meter.read(worker.process.id()), Instant::now());
        tokio::try_join!(
            publish(&publisher, &raw_queue, &raw_pool, JOBS),
            consume(&consuming, &raw_queue, JOBS)
        )?;
        raw_rates.push(rate(JOBS, started));
        raw_costs.push(meter.read(worker.process.id()).per_job_since(before, JOBS));

        eprintln!("steady, {round} of {ROUNDS}: {JOBS} jobs, published as fast as the worker ends them");
        let (before, started) = (meter.read(worker.process.id()), Instant::now());
        publish_in_step(&publisher, &queue, &pool, JOBS, &worker).await?;
        wait_for(&worker, (1 + round) * JOBS).await?;
        steady_rates.push(rate(JOBS, started));
        steady_costs.push(meter.read(worker.process.id()).per_job_since(before, JOBS));
    }
    let (raw_per_s, steady_per_s) = (median(raw_rates.into_iter()), median(steady_rates.into_iter()));
    let (raw_cost, job_cost) = (Cpu::median(&raw_costs), Cpu::median(&steady_costs));
    let cost_ratio = ratio(job_cost.total(), raw_cost.total());

    eprintln!("latency: jobs at a quarter of the steady rate");
    let before = worker.start_waits()?;
    let (paced, before_it) = (JOBS / 8, (1 + ROUNDS) * JOBS);
    publish_paced(&publisher, &queue, &pool, paced, steady_per_s / 4.0).await?;
    wait_for(&worker, before_it + paced).await?;
    let recorded = results(&database).await?;
    ensure!(recorded == before_it + paced, "{recorded} results for {} jobs", before_it + paced);
    let waits = worker.start_waits()?.since(&before);
    let worker_rss_mb = (tests::usage::resident_mb(worker.process.id()) * 10.0).round() / 10.0;
    drop(worker);

    let figures = serde_json::json!({
        "jobs": JOBS, "slots": SLOTS, "input_bytes": INPUT_BYTES,
        "raw_per_s": raw_per_s.round(), "raw_drain_per_s": raw_drain_per_s.round(),
        "steady_per_s": steady_per_s.round(), "steady_ratio": ratio(steady_per_s, raw_per_s),
        "drain_per_s": drain_per_s.round(), "drain_ratio": ratio(drain_per_s, raw_per_s),
        "drain_of_raw_drain_ratio": ratio(drain_per_s, raw_drain_per_s),
        "start_p50_ms": waits.quantile_ms(0.50), "start_p99_ms": waits.quantile_ms(0.99),
        "worker_rss_mb": worker_rss_mb,
        "raw_cost": raw_cost.to_json("worker"), "job_cost": job_cost.to_json("worker"), "cost_ratio": cost_ratio,
    });
    std::fs::create_dir_all("target")?;
    std::fs::write("target/bench.json", serde_json::to_string_pretty(&figures)?)?;
    println!("{:<28}{:>12}{:>9}", "", "per s", "of raw");
    for (name, per_s) in [
        ("raw, publish and consume", raw_per_s),
        ("jobs, steady", steady_per_s),
        ("jobs, on a prefilled queue", drain_per_s),
        ("raw, consume alone", raw_drain_per_s),
    ] {
        println!("{name:<28}{per_s:>12.0}{:>9.2}", ratio(per_s, raw_per_s));
    }
    Cpu::heading("worker");
    for (name, cost) in [("raw message", raw_cost), ("job, steady", job_cost)] {
        cost.show(name);
    }
    println!("a job costs {cost_ratio:.2} raw messages");
    println!(
        "publish to start, a quarter of the steady rate: p50 {:.1} ms, p99 {:.1} ms",
        waits.quantile_ms(0.5),
        waits.quantile_ms(0.99)
    );
    println!("worker: {worker_rss_mb:.0} MB resident, {SLOTS} slots");
    publishing.close().await;
    consuming.close().await;
    drop_database(&database_url, &database).await
}

fn rate(count: usize, started: Instant) -> f64 {
    count as f64 / started.elapsed().as_secs_f64()
}

fn ratio(part: f64, whole: f64) -> f64 {
    (part / whole * 100.0).round() / 100.0
}

/// An echo job in its own session.
fn message(pool: &Name) -> anyhow::Result<Message> {
    let input = Json::from_value(&"x".repeat(INPUT_BYTES))?;
    let mut spec = JobSpec::new("s".parse()?, "echo".parse()?, input);
    spec.session_id = format!("bench-{}", spec.job_id).parse()?;
    spec.pool = pool.clone();
    let id = spec.job_id.to_string();
    Ok(Message { message_id: Some(id), ..Message::new(SCHEMA, job::encode(&spec)) })
}

async fn publish(publisher: &Publisher, queue: &str, pool: &Name, count: usize) -> anyhow::Result<()> {
    publish_when(publisher, queue, pool, count, async |_| {}).await
}

/// Publishes as fast as the worker ends jobs: at most [`OUTSTANDING`] are between their publish and their recorded end.
async fn publish_in_step(
    publisher: &Publisher,
    queue: &str,
    pool: &Name,
    count: usize,
    worker: &Worker,
) -> anyhow::Result<()> {
    let before = worker.ended();
    let mut ended = 0;
    let turn = async |number| {
        while number >= ended + OUTSTANDING {
            tokio::time::sleep(Duration::from_millis(20)).await;
            ended = worker.ended() - before;
        }
    };
    publish_when(publisher, queue, pool, count, turn).await
}

async fn publish_paced(
    publisher: &Publisher,
    queue: &str,
    pool: &Name,
    count: usize,
    per_s: f64,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let due = |number| started + Duration::from_secs_f64(number as f64 / per_s);
    let turn = async |number| tokio::time::sleep_until(due(number).into()).await;
    publish_when(publisher, queue, pool, count, turn).await
}

/// Publishes each message when its turn has come, and meanwhile awaits the confirms of earlier ones.
async fn publish_when(
    publisher: &Publisher,
    queue: &str,
    pool: &Name,
    count: usize,
    mut turn: impl AsyncFnMut(usize),
) -> anyhow::Result<()> {
    let mut confirms = FuturesUnordered::new();
    for number in 0..count {
        let mut turn = pin!(turn(number));
        loop {
            tokio::select! {
                biased;
                () = &mut turn => break,
                Some(confirm) = confirms.next() => confirm?,
            }
        }
        confirms.push(publisher.publish(queue, message(pool)?));
        if confirms.len() >= IN_FLIGHT {
            confirms.next().await.transpose()?;
        }
    }
    while let Some(confirm) = confirms.next().await {
        confirm?;
    }
    Ok(())
}

/// Takes and acks messages with as many slots as the worker has.
async fn consume(broker: &Broker, queue: &str, count: usize) -> anyhow::Result<()> {
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let done = CancellationToken::new();
    let mut slots = tokio::task::JoinSet::new();
    for _ in 0..SLOTS {
        let (mut slot, taken, done) = (broker.slot(queue, "bench"), taken.clone(), done.clone());
        slots.spawn(async move {
            loop {
                let delivery = tokio::select! {
                    delivery = slot.next() => delivery,
                    () = done.cancelled() => break,
                };
                let Some(delivery) = delivery else { break };
                let acked = delivery.ack().await;
                if acked.is_ok() && taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 >= count {
                    done.cancel();
                }
            }
            slot.pause().await;
        });
    }
    done.cancelled().await;
    while slots.join_next().await.is_some() {}
    Ok(())
}

/// A worker process of the same build.
struct Worker {
    process: Child,
    admin: String,
    _folder: tempfile::TempDir,
}

impl Worker {
    fn start(database: &str, pool: &Name) -> anyhow::Result<Worker> {
        Worker::with_slots(database, pool, SLOTS)
    }

    fn with_slots(database: &str, pool: &Name, slots: usize) -> anyhow::Result<Worker> {
        let folder = tempfile::tempdir()?;
        let admin = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let process = program("worker")?
            .env("DATABASE_URL", database)
            .env("LOG_LEVEL", "warn")
            .args([
                "--pool",
                pool.as_str(),
                "--slots",
                &slots.to_string(),
                "--admin-addr",
                &admin,
                "--workspace-dir",
            ])
            .arg(folder.path())
            .spawn()
            .context("starting a worker")?;
        Ok(Worker { process, admin, _folder: folder })
    }

    fn metrics(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.admin)?;
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Jobs that have ended; 0 while the worker is still starting.
    fn ended(&self) -> usize {
        let text = self.metrics().unwrap_or_default();
        let line =
            text.lines().find_map(|line| line.strip_prefix("harness_requests_total{outcome=\"succeeded\"} "));
        line.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// The histogram harness_start_wait_seconds.
    fn start_waits(&self) -> anyhow::Result<Histogram> {
        let text = self.metrics()?;
        let buckets = text.lines().filter_map(|line| {
            let (bound, count) =
                line.strip_prefix("harness_start_wait_seconds_bucket{le=\"")?.split_once("\"} ")?;
            Some((bound.parse().ok()?, count.parse().ok()?))
        });
        Ok(Histogram(buckets.collect()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The measurement is complete. Its remaining jobs go with its database.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Cumulative counts by upper bound in seconds.
struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    fn since(self, before: &Histogram) -> Histogram {
        let counts = self.0.into_iter().enumerate();
        Histogram(
            counts
                .map(|(at, (bound, count))| (bound, count - before.0.get(at).map_or(0.0, |b| b.1)))
                .collect(),
        )
    }

    /// Interpolates linearly within a bucket. Buckets grow by a quarter, so the result is correct to about an eighth.
    fn quantile_ms(&self, quantile: f64) -> f64 {
        let rank = quantile * self.0.last().map_or(0.0, |last| last.1);
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank {
                let inside = if count > &below { (rank - below) / (count - below) } else { 0.0 };
                return ((low + (bound.min(3600.0) - low) * inside) * 1e4).round() / 10.0;
            }
            (low, below) = (*bound, *count);
        }
        f64::NAN
    }
}

/// Waits until the worker has recorded this many ends. Asks the worker, because counting in Postgres would load the
/// machine that is measured.
async fn wait_for(worker: &Worker, count: usize) -> anyhow::Result<usize> {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let ended = worker.ended();
        if ended >= count {
            return Ok(ended);
        }
        ensure!(Instant::now() < deadline, "only {ended} of {count} jobs ended within 300 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Counts results in Postgres, once.
async fn results(database: &str) -> anyhow::Result<usize> {
    let mut ledger = PgConnection::connect(database).await?;
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM harness_results").fetch_one(&mut ledger).await?;
    Ok(count as usize)
}

async fn fresh_database(server: &str) -> anyhow::Result<String> {
    let name = format!("harness_bench_{}", std::process::id());
    let mut admin = PgConnection::connect(server).await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await?;
    let (base, _) = server.rsplit_once('/').context("DATABASE_URL has no database")?;
    let url = format!("{base}/{name}");
    migrations::migrate(&Address::new(&url, SetBy::Connection).map_err(anyhow::Error::msg)?).await?;
    Ok(url)
}

/// Measures what is named.
async fn part(
    what: &str,
    mut arguments: impl Iterator<Item = String>,
    meter: &Meter,
    raw: http::Raw<'_>,
    pool: &Name,
    database: &str,
) -> anyhow::Result<()> {
    let mut number = |what: &str| {
        let given = arguments.next();
        given.map(|given| given.parse::<f64>()).transpose().with_context(|| format!("expected {what}"))
    };
    match what {
        "agents" => agents::run(raw.publisher, pool, database, arguments).await,
        "line" => line::run(database, number("a number of jobs")?.map(|jobs| jobs as usize)).await,
        "http" => {
            let jobs = number("a number of jobs")?.map_or(JOBS, |jobs| jobs as usize);
            http::run(meter, raw, database, jobs).await
        }
        "follow" => {
            let jobs = number("a number of jobs")?.map_or(JOBS, |jobs| jobs as usize);
            let per_s = number("jobs per second")?.context("expected jobs per second")?;
            http::run_followed(meter, database, jobs, per_s).await
        }
        "idle" => http::run_idle(database).await,
        _ => bail!("expected nothing, http, follow, idle, agents or line, got {what:?}"),
    }
}

async fn drop_database(server: &str, database: &str) -> anyhow::Result<()> {
    let name = database.rsplit('/').next().context("no database name")?;
    let mut admin = PgConnection::connect(server).await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
        .execute(&mut admin)
        .await?;
    Ok(())
}
