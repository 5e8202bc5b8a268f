//! Ready means able to do everything: a worker that cannot publish or cannot write is not ready. A silent connection is
//! replaced.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::{Value, json};
use tests::{Fleet, Link, OwnBroker, Proxy, Ran, Worker, is_root, job, steps, until, until_ok};

/// A user without rights.
const USER: u32 = 61_234;

/// Waits until a check of `/ready` has this value, and `/ready` as a whole agrees.
async fn check(worker: &Worker, name: &str, holds: bool) -> Value {
    let look = async || {
        let (status, ready) = worker.get_json("/ready").await;
        let as_wanted = (status == 200) == holds && ready["checks"][name] == json!(holds);
        if as_wanted { Ok(ready) } else { Err((status, ready)) }
    };
    until_ok(&format!("{name} is {holds}"), look).await
}

#[tokio::test]
async fn a_process_that_may_not_publish_is_not_ready() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    fleet.vhost.limit_connections(1);
    let closed = async || match fleet.vhost.close_connections_called("publishing") {
        Ok(1..) => Ok(()),
        other => Err(other),
    };
    until_ok("its publishing connection is closed", closed).await;
    let ready = check(&worker, "queue_publishing", false).await;
    assert_eq!(ready["checks"]["queue_consuming"], json!(true), "{ready}");
    assert!(ready["reasons"]["queue_publishing"].is_string(), "{ready}");
    fleet.vhost.limit_connections(-1);
    check(&worker, "queue_publishing", true).await;
}

#[tokio::test]
async fn a_process_that_the_broker_holds_back_is_not_ready() {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    let worker = fleet.worker("worker").set("AMQP_URL", &own.url).start().await;
    // The worker publishes the retries.
    let failing = json!({"iterations": [{"fail": {"message": "no", "retryable": true}}]});
    let mut spec = job("s", "scripted", failing);
    // Longer than the test takes.
    (spec.retry.max_attempts, spec.retry.base_delay_ms, spec.retry.max_delay_ms) = (100, 1_000, 1_000);
    let mut enqueue = fleet.producer_command(&["enqueue", "--file", "-"]);
    enqueue.env("AMQP_URL", &own.url);
    let ran = Ran::of(enqueue, &job::encode(&spec)).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    worker.said("an attempt failed").await;
    own.lacks_disk(true).await;
    let ready = check(&worker, "queue_publishing", false).await;
    let reason = ready["reasons"]["queue_publishing"].as_str().unwrap_or_default();
    assert!(reason.contains("blocks this connection"), "{ready}");
    own.lacks_disk(false).await;
    check(&worker, "queue_publishing", true).await;
}

#[tokio::test]
async fn a_relay_without_postgres_or_without_the_broker_is_not_ready() {
    let fleet = Fleet::new().await;
    let (postgres, broker) = (Proxy::to(&fleet.database.url).await, Proxy::to(&fleet.vhost.url).await);
    let (database_url, amqp_url) = (postgres.through(&fleet.database.url), broker.through(&fleet.vhost.url));
    let relay = fleet.relay("relay").set("DATABASE_URL", database_url).set("AMQP_URL", amqp_url).launch();
    check(&relay, "database_connected", true).await;
    for (proxy, name) in [(&postgres, "database_connected"), (&broker, "queue_publishing")] {
        proxy.set(Link::Cut);
        check(&relay, name, false).await;
        proxy.set(Link::Pass);
        check(&relay, name, true).await;
    }
}

#[tokio::test]
async fn a_worker_whose_workspace_cannot_be_written_is_not_ready_and_charges_no_job() {
    let fleet = Fleet::new().await;
    let workspaces = fleet.folder.path().join("workspaces");
    std::fs::set_permissions(fleet.folder.path(), Permissions::from_mode(0o755)).expect("ours");
    std::fs::create_dir(&workspaces).expect("made");
    // Root may write everywhere.
    if is_root() {
        chown(&workspaces, Some(USER), Some(USER)).expect("given away");
    }
    let program = "#!/bin/sh\necho '{\"type\":\"result\"}'\n";
    let agents = fleet.agents(&[("program", &fleet.program("program", program))]);
    let worker = fleet.worker("worker").user(USER).set("AGENTS_FILE", agents).start().await;
    check(&worker, "workspace_accessible", true).await;
    let (before, after) = (job("s-1", "program", Value::Null), job("s-2", "program", Value::Null));
    std::fs::set_permissions(&workspaces, Permissions::from_mode(0o555)).expect("ours");
    // It may be noticed through this job, or before.
    fleet.enqueue(std::slice::from_ref(&before)).await;
    let ready = check(&worker, "workspace_accessible", false).await;
    let reason = ready["reasons"]["workspace_accessible"].as_str().unwrap_or_default();
    assert!(reason.contains("Permission denied"), "{ready}");
    fleet.enqueue(std::slice::from_ref(&after)).await;

    std::fs::set_permissions(&workspaces, Permissions::from_mode(0o755)).expect("ours");
    fleet.undisturbed(&[before, after]).await;
    check(&worker, "workspace_accessible", true).await;
}

#[tokio::test]
async fn a_connection_that_has_gone_silent_in_its_sleep_is_replaced_before_it_is_used() {
    let fleet = Fleet::new().await;
    let proxy = Proxy::to(&fleet.database.url).await;
    let worker = fleet.worker("worker").set("DATABASE_URL", proxy.through(&fleet.database.url)).start().await;
    // Enough jobs at once that several connections are opened.
    let first: Vec<_> = (0..8).map(|n| steps(n, 10, 10)).collect();
    fleet.enqueue(&first).await;
    fleet.undisturbed(&first).await;
    proxy.forget();
    // The heartbeat returns after three seconds. By then, calls on connections that were in use have timed out; the
    // other connections were idle.
    let beat = "SELECT (extract(epoch FROM heartbeat_at) * 1000)::bigint FROM harness_workers";
    let last = fleet.database.count(beat).await;
    until("the heartbeat is back", async || (fleet.database.count(beat).await > last).then_some(())).await;
    let second: Vec<_> = (0..8).map(|n| steps(100 + n, 10, 10)).collect();
    fleet.enqueue(&second).await;
    fleet.undisturbed(&second).await;
    let log = worker.log();
    let failed = ["claiming a job failed", "writing a checkpoint failed", "recording a job's end failed"];
    let found: Vec<_> = failed.into_iter().filter(|text| log.contains(text)).collect();
    assert!(found.is_empty(), "{found:?} in:\n{log}");
}
