//! What it costs to observe many pools each second: `cargo run --release -p tests --example observe -- [POOLS] [SECONDS]`.
//!
//! Some of the queues hold messages, and one in fifty is not there. Prints the CPU time of this process per second (user and
//! system, from `/proc/self/stat`) and its memory, both for the observer alone: what prepared the queues has ended before.

use std::time::{Duration, Instant};

use anyhow::Context;
use autoscaler::observe::{Observer, Watched};
use job::Name;
use queue::{Broker, BrokerConfig, Message, jobs_queue};
use store::{Store, StoreConfig};
use tests::{Database, Vhost};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let pools = arguments.next().transpose().context("POOLS: expected a number")?.unwrap_or(500);
    let seconds = arguments.next().transpose().context("SECONDS: expected a number")?.unwrap_or(30);
    let pools: Vec<Name> =
        (0..pools).map(|n| format!("pool-{n}").parse()).collect::<Result<_, _>>().expect("names");
    let (vhost, database) = (Vhost::new(), Database::new().await);
    prepare(&vhost, &pools).await?;

    let config = BrokerConfig::new(&vhost.url, "observe").only_looking();
    let broker = Broker::start(config, CancellationToken::new());
    broker.ready(PATIENCE).await?;
    let store = Store::new(&StoreConfig::new(&database.url, 2).map_err(anyhow::Error::msg)?);
    let due_horizon = Duration::from_secs(60);
    let watched = pools.iter().map(|pool| Watched { pool: pool.clone(), due_horizon });
    let observer = Observer::new(broker.clone(), store, watched.collect(), None);
    let first = Instant::now();
    observer.look().await;
    println!("first look     {:>8.1} ms", first.elapsed().as_secs_f64() * 1e3);

    let (stop, before, began) = (CancellationToken::new(), cpu_s()?, Instant::now());
    let rounds = *observer.rounds().borrow();
    let _ = tokio::time::timeout(Duration::from_secs(seconds), observer.run(stop)).await;
    let (took_s, used_s) = (began.elapsed().as_secs_f64(), cpu_s()? - before);
    let rounds = *observer.rounds().borrow() - rounds;
    let known = pools.iter().filter(|pool| observer.latest(pool).ready.is_some()).count();
    println!("pools          {:>8}   ({known} of them have a queue)", pools.len());
    println!("rounds         {rounds:>8}   in {took_s:.1} s");
    println!("CPU            {:>8.4} cores", used_s / took_s);
    println!("resident       {:>8.1} MB", resident_mb()?);
    println!("health         {:?}", observer.health());
    broker.close().await;
    Ok(())
}

/// Declares the queues, and puts a message into every tenth.
async fn prepare(vhost: &Vhost, pools: &[Name]) -> anyhow::Result<()> {
    let there = pools.iter().enumerate().filter(|(at, _)| at % 50 != 7).map(|(_, pool)| pool.clone());
    let config = BrokerConfig::new(&vhost.url, "prepare").with_pools(there);
    let broker = Broker::start(config, CancellationToken::new());
    broker.ready(PATIENCE).await?;
    for pool in pools.iter().step_by(10) {
        broker.publisher().publish(&jobs_queue(pool), Message::new("test.v1", "{}")).await?;
    }
    broker.close().await;
    Ok(())
}

/// User and system time of this process.
fn cpu_s() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    // Behind the program's name, which is in brackets: utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').context("a name in brackets")?.1.split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    const TICKS_PER_S: f64 = 100.0;
    Ok(ticks.iter().sum::<u64>() as f64 / TICKS_PER_S)
}

fn resident_mb() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024.0)
}
