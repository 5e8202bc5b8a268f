//! The cost of an autoscaler with many pools, and how soon it answers a burst:
//! `cargo build --release -p autoscaler && cargo run --release -p tests --example pools -- [POOLS] [SECONDS] [BURSTS]`.
//!
//! The real program runs on a real broker, Postgres and API server, with a Deployment for each pool and no limit on the
//! speed of growth. One queue in fifty does not exist. First the program is left alone, and its CPU time and memory are
//! measured. Then bursts come, each into the empty queue of another pool, at a random moment within its second.
//! Measured are the time from the first message until the Deployment has the whole wanted number, and the number of
//! writes.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use job::Name;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use queue::{Broker, BrokerConfig, Message, jobs_queue};
use serde_json::json;
use tests::{Cluster, Fleet, Namespace, Worker, until};
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(120);
/// Messages of a burst, and the number of workers that they need.
const BURST: (usize, i32) = (40, 20);
/// The interval between looks at a Deployment that is to change.
const LOOK: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let mut number = |name: &'static str, default| {
        let given = arguments.next().transpose();
        given.with_context(|| format!("{name}: expected a number")).map(|it| it.unwrap_or(default))
    };
    let (pools, seconds, bursts) = (number("POOLS", 500)?, number("SECONDS", 60)?, number("BURSTS", 30)?);
    let pools: Vec<Name> =
        (0..pools).map(|n| format!("pool-{n}").parse()).collect::<Result<_, _>>().expect("names");
    let (fleet, cluster) = (Fleet::new().await, Cluster::start().await);
    let namespace = cluster.namespace().await;
    let missing = |at: usize| at % 50 == 7;
    let there: Vec<_> =
        pools.iter().enumerate().filter(|(at, _)| !missing(*at)).map(|(_, pool)| pool).collect();
    let config = BrokerConfig::new(&fleet.vhost.url, "bursts").with_pools(there.iter().copied().cloned());
    let broker = Broker::start(config, CancellationToken::new());
    broker.ready(TIMEOUT).await?;
    for pool in &pools {
        deployment(&namespace, pool).await;
    }

    let autoscaler = fleet.autoscaler("autoscaler", &policies(&pools, &namespace.name));
    let kubeconfig = cluster.kubeconfig();
    let mut autoscaler = autoscaler.set("KUBECONFIG", kubeconfig.to_string_lossy()).launch();
    autoscaler.said("watches the backlog").await;
    let all = pools.len() as f64;
    until("all pools have a decision", async || (decisions(&autoscaler).await >= all).then_some(())).await;

    let (cpu_s, decided, began) = (autoscaler.cpu_s(), decisions(&autoscaler).await, Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let (used_s, took_s) = (autoscaler.cpu_s() - cpu_s, began.elapsed().as_secs_f64());
    let decided = decisions(&autoscaler).await - decided;
    println!("pools          {:>8}   ({} of them have a queue)", pools.len(), there.len());
    println!("decisions      {:>8.1}   a second, for {took_s:.0} s", decided / took_s);
    println!("CPU            {:>8.4} cores", used_s / took_s);
    println!("resident       {:>8.1} MB", autoscaler.resident_mb());

    let mut answers = Vec::new();
    for pool in there.into_iter().take(bursts) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..1_000))).await;
        answers.push(burst(&broker, &namespace, pool).await?);
    }
    answers.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    if let (Some(median), Some(last)) = (answers.get(answers.len() / 2), answers.last()) {
        // If the autoscaler looks at the queue in the middle of a burst, it answers in two steps.
        let in_one = answers.iter().filter(|answer| answer.writes == 1).count();
        println!("burst          {:>8.2} s until 0 → {} is written, at the median", median.seconds, BURST.1);
        println!("               {:>8.2} s at most", last.seconds);
        println!("in one write   {in_one:>8}   of {} times", answers.len());
    }
    broker.close().await;
    autoscaler.terminate();
    ensure!(autoscaler.exit().await == 0, "the autoscaler did not end well:\n{}", autoscaler.log());
    Ok(())
}

/// Two jobs per worker; grows at once by as much as is wanted.
fn policies(pools: &[Name], namespace: &str) -> String {
    let mut toml = String::new();
    for pool in pools {
        let policy = format!(
            "[pools.{pool}]\ntarget = \"Deployment/{pool}\"\nnamespace = \"{namespace}\"\n[pools.{pool}.policy]\n\
             min_replicas = 0\nmax_replicas = {}\nmode = {{ type = \"backlog\", jobs_per_worker = 2 }}\n\
             scale_up = {{ policies = [] }}",
            BURST.1
        );
        writeln!(toml, "{policy}").expect("a String takes everything");
    }
    toml
}

async fn deployment(namespace: &Namespace, pool: &Name) {
    let labels = json!({ "pool": pool });
    let containers = json!([{ "name": "worker", "image": "none" }]);
    let manifest = json!({
        "metadata": { "name": pool },
        "spec": { "replicas": 0, "selector": { "matchLabels": labels },
                  "template": { "metadata": { "labels": labels }, "spec": { "containers": containers } } },
    });
    namespace.create::<Deployment>(manifest).await;
}

async fn decisions(autoscaler: &Worker) -> f64 {
    let (_, text) = autoscaler.get("/metrics").await;
    let counts = text.lines().filter(|line| line.starts_with("harness_autoscaler_decisions_total{"));
    counts.filter_map(|line| line.split(' ').next_back()?.parse::<f64>().ok()).sum()
}

/// The answer to a burst.
struct Answer {
    /// Seconds from its first message until the whole number was written.
    seconds: f64,
    /// The number of writes.
    writes: i64,
}

async fn burst(broker: &Broker, namespace: &Namespace, pool: &Name) -> anyhow::Result<Answer> {
    let deployments: Api<Deployment> = namespace.api();
    let generation = |deployment: &Deployment| deployment.metadata.generation.unwrap_or_default();
    let before = generation(&deployments.get(pool.as_str()).await?);
    let (began, queue) = (Instant::now(), jobs_queue(pool));
    let publisher = broker.publisher();
    try_join_all((0..BURST.0).map(|_| publisher.publish(&queue, Message::new("test.v1", "{}")))).await?;
    loop {
        let deployment = deployments.get(pool.as_str()).await?;
        if deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(BURST.1) {
            let writes = generation(&deployment) - before;
            return Ok(Answer { seconds: began.elapsed().as_secs_f64(), writes });
        }
        ensure!(began.elapsed() < TIMEOUT, "{pool} did not grow within {TIMEOUT:?}");
        tokio::time::sleep(LOOK).await;
    }
}
