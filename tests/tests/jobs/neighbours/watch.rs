//! A worker may declare another one dead only after it has watched for the other's whole lease. So after an outage of
//! Postgres, each worker has as much time to come back as its own lease gives.

use std::time::Duration;

use serde_json::json;
use tests::{Fleet, Link, Proxy, Runner, job, until};

/// A worker's default lease.
const USUAL: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_worker_with_a_long_lease_outlives_an_outage_whatever_lease_others_have() {
    let fleet = Fleet::new().await;
    let proxy = Proxy::to(&fleet.database.url).await;
    let through = proxy.through(&fleet.database.url);
    let worker = fleet.worker("worker").set("LEASE_S", 60).set("DATABASE_URL", &through).start().await;
    let id = worker.id().await;
    let spec = job("s", "scripted", json!({"count": 40, "delay_ms": 1_000}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 1).await;

    // As after an outage that was longer than its lease: no heartbeat has arrived, and the next one takes time.
    // Meanwhile another worker with the default lease has died.
    proxy.set(Link::Cut);
    let gone = Runner::with_lease(&fleet.store, USUAL).await;
    let past = "UPDATE harness_workers SET heartbeat_at = now() - interval '70 seconds'";
    fleet.database.execute(past).await;
    let _relay = fleet.relay("relay").launch();
    let noticed = format!(
        "SELECT count(*) FROM harness_workers WHERE worker_id = '{}' AND state = 'dead'",
        gone.worker
    );
    until("the other death is noticed", async || (fleet.database.count(&noticed).await == 1).then_some(()))
        .await;

    let alive = format!("SELECT count(*) FROM harness_workers WHERE worker_id = '{id}' AND state = 'alive'");
    assert_eq!(
        fleet.database.count(&alive).await,
        1,
        "it was declared dead by a worker that had not watched for its lease"
    );
    proxy.set(Link::Pass);
    until("its heartbeat arrives", async || {
        let fresh = format!("{alive} AND heartbeat_at > now() - interval '10 seconds'");
        (fleet.database.count(&fresh).await == 1).then_some(())
    })
    .await;
    let view = fleet.view(spec.job_id).await.expect("a job");
    assert_eq!((view.attempts, view.worker_id.map(|worker| worker.to_string())), (0, Some(id)), "{view:?}");
}
