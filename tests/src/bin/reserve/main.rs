//! How fast calls are reserved and settled against one limit of the whole fleet, which every one of them meets.
//!
//! `ops/dev/services run -- cargo run -p tests --bin reserve -- [SECONDS] [--limits key | --limits rates] [--snapshot-s N]`, on a
//! Postgres of its own. With `key`, calls name a key of which no limit is known, with `rates` one with three limits. First as fast as it
//! goes, reservations alone; then 400 calls a second, each reserved and settled, with and without a snapshot that is
//! held meanwhile, as a backup holds one. Then what the gateway of a worker adds; that needs `cargo build -p worker`.
//! `--gateway` measures just that.

mod gateway;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;
use job::Usd;
use serde_json::json;
use sqlx::Connection;
use store::{
    CallOutcome, CallTokens, Claimed, Limit, Lookup, NewCall, Period, RateUse, Reserved, SettledCall,
    SpendScope, Store, Take,
};
use tests::{Database, Runner, claimed, job};
use tokio::time::interval;
use uuid::Uuid;

/// Runs that call at the same time.
const RUNS: usize = 256;
const CALLS_PER_S: u64 = 400;

/// In so many parts a long snapshot is looked at.
const PARTS: u64 = 10;

#[derive(Parser)]
struct Arguments {
    /// Seconds of each figure
    #[arg(default_value = "5")]
    seconds: u64,
    /// Measure just the gateway
    #[arg(long)]
    gateway: bool,
    /// Limits of the calls' key: key (none is known) or rates (three)
    #[arg(long, default_value = "")]
    limits: String,
    /// Seconds for which the snapshot is held, such as 600; without it, three times SECONDS
    #[arg(long)]
    snapshot_s: Option<u64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments { seconds, gateway, limits, snapshot_s } = Arguments::parse();
    if gateway {
        return gateway::measure().await;
    }
    let for_ = Duration::from_secs(seconds);
    let part = snapshot_s.map_or(for_, |all| Duration::from_secs(all.div_ceil(PARTS)));
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let mut runs = Vec::new();
    for at in 0..RUNS {
        runs.push(claimed(runner.claim(&job(&format!("s-{at}"), "coder", json!(1))).await?));
    }

    let (before, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = runs
        .iter()
        .map(|run| {
            let (store, run, count, stop) = (store.clone(), run.clone(), before.clone(), stop.clone());
            let rates = rates(&limits);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let reserved = store.reserve(call(&run, &rates)).await?;
                    ensure!(reserved == Reserved::Granted, "{reserved:?}");
                    count.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    tokio::time::sleep(for_).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await??;
    }
    let rate = before.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    println!("reservations against one limit, {RUNS} callers: {rate:.0} a second");

    println!("{CALLS_PER_S} calls a second: {}", paced(&store, &runs, for_, &rates(&limits)).await?);
    let mut holder = database.connect().await;
    let mut holding = holder.begin().await?;
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM harness_calls")
        .execute(&mut *holding)
        .await?;
    let held = Instant::now();
    let parts = if snapshot_s.is_some() { PARTS } else { 3 };
    for _ in 0..parts {
        let figures = paced(&store, &runs, part, &rates(&limits)).await?;
        println!("while a snapshot is held, up to {} s: {figures}", held.elapsed().as_secs());
    }
    holding.rollback().await?;
    gateway::measure().await
}

/// Reserves and settles at a steady rate. Returns the quantiles of a reservation.
async fn paced(
    store: &Store,
    runs: &[Claimed],
    for_: Duration,
    rates: &Option<RateUse>,
) -> anyhow::Result<String> {
    let mut ticks = interval(Duration::from_micros(1_000_000 / CALLS_PER_S));
    let began = Instant::now();
    let mut calls = Vec::new();
    for run in runs.iter().cycle() {
        if began.elapsed() > for_ {
            break;
        }
        ticks.tick().await;
        let (store, call) = (store.clone(), call(run, rates));
        calls.push(tokio::spawn(async move {
            let asked = Instant::now();
            let reserved = store.reserve(call.clone()).await?;
            let took = asked.elapsed();
            ensure!(reserved == Reserved::Granted, "{reserved:?}");
            let outcome = CallOutcome::Settled {
                cost: Usd::from_micros(1),
                tokens: CallTokens::default(),
                answered_by: "m".to_owned(),
            };
            store
                .settle(SettledCall {
                    call,
                    outcome,
                    provider_request_id: None,
                    answer: None,
                    used: vec![1, 400, 20],
                })
                .await?;
            Ok(took)
        }));
    }
    let mut took = Vec::new();
    for call in calls {
        took.push(call.await??);
    }
    took.sort_unstable();
    let at = |quantile: f64| took[((took.len() - 1) as f64 * quantile) as usize].as_secs_f64() * 1e3;
    Ok(format!("{} reserved, p50 {:.1} ms, p99 {:.1} ms", took.len(), at(0.5), at(0.99)))
}

/// What each call takes of its key's limits, for an argument of the command line.
fn rates(limits: &str) -> Option<RateUse> {
    let take = |limit: &str, amount| Take {
        account: format!("anthropic:0f1e2d3c4b5a:{limit}"),
        limit: (limits == "rates").then_some(1_000_000_000_000),
        amount,
        as_produced: limit == "output_tokens",
    };
    let takes = vec![take("requests", 1), take("input_tokens", 900), take("output_tokens", 100)];
    (!limits.is_empty()).then(|| RateUse { key: "anthropic:0f1e2d3c4b5a".to_owned(), takes })
}

fn call(run: &Claimed, rates: &Option<RateUse>) -> NewCall {
    NewCall {
        call_id: Uuid::now_v7(),
        claim: run.claim.clone(),
        agent_id: "coder".parse().expect("a name"),
        user_id: None,
        provider: "anthropic",
        model: "m".to_owned(),
        reserved: Usd::from_micros(10),
        request_hash: [7; 32],
        request_nth: 0,
        limits: vec![Limit {
            scope: SpendScope::Fleet,
            period: Period::Day,
            limit: Usd::from_micros(1_000_000_000_000),
        }],
        lookup: Some(Lookup { after_checkpoints: 0, cache: None }),
        rate_use: rates.clone(),
    }
}
