//! Limits that operators change while jobs are at work.

use job::{JobId, JobSpec, JobState, LimitKeys};
use serde_json::json;
use tests::{Fleet, job, until};

use super::{AT_WORK, looked, name, states};

fn keyed(session: &str, input: serde_json::Value) -> JobSpec {
    JobSpec { limits: LimitKeys::of([name("k")]).expect("a key"), ..job(session, "scripted", input) }
}

async fn set(fleet: &Fleet, most: &str) {
    let ran = fleet.producer(&["limits", "set", "k", "--max", most]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Cancels one of the jobs that run, and waits for its end.
async fn end_one(fleet: &Fleet) {
    let running = "SELECT job_id::text FROM harness_jobs WHERE state = 'running' ORDER BY job_id LIMIT 1";
    let job_id = fleet.database.texts(running).await.remove(0);
    let ran = fleet.producer(&["cancel", &job_id]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    fleet.ended(job_id.parse::<JobId>().expect("a job id")).await;
}

#[tokio::test]
async fn a_limit_that_is_lowered_below_what_runs_lets_none_begin_until_enough_have_ended() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    set(&fleet, "4").await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 8).start().await;
    let jobs: Vec<JobSpec> =
        (0..8).map(|n| keyed(&format!("s-{n}"), json!({"count": 1, "delay_ms": 600_000}))).collect();
    fleet.enqueue(&jobs).await;
    let running = "SELECT count(*) FROM harness_jobs WHERE state = 'running'";
    let run = async |wanted: i64| {
        until("so many run", async || (fleet.database.count(running).await == wanted).then_some(())).await;
    };
    run(4).await;
    set(&fleet, "2").await;
    looked(&fleet).await;
    assert_eq!(fleet.database.count(AT_WORK).await, 4, "those that run go on");
    for left in [3, 2] {
        end_one(&fleet).await;
        looked(&fleet).await;
        assert_eq!(fleet.database.count(AT_WORK).await, left);
    }
    // Now there is room for one.
    end_one(&fleet).await;
    run(2).await;
    looked(&fleet).await;
    assert_eq!(fleet.database.count(AT_WORK).await, 2);
    // Raised, it lets the others go.
    set(&fleet, "5").await;
    run(5).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_limit_of_zero_holds_all_back_until_it_is_removed_and_stands_in_nobodys_way() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    set(&fleet, "0").await;
    let _worker = fleet.worker("worker").start().await;
    let held: Vec<JobSpec> =
        (0..10).map(|n| keyed(&format!("k-{n}"), json!({"count": 1, "delay_ms": 1}))).collect();
    let free: Vec<JobSpec> = (0..10).map(|n| job(&format!("f-{n}"), "echo", json!(n))).collect();
    fleet.enqueue(&held).await;
    fleet.enqueue(&free).await;
    fleet.undisturbed(&free).await;
    looked(&fleet).await;
    assert_eq!(states(&fleet.store, &held).await, [JobState::Waiting; 10]);
    let ran = fleet.producer(&["limits", "remove", "k"]).await;
    assert_eq!((ran.code, ran.out.trim()), (0, "jobs of default with the key k have no limit"), "{ran:?}");
    fleet.undisturbed(&held).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn limits_are_set_listed_and_removed_by_tenant_and_key() {
    let fleet = Fleet::new().await;
    let set = async |key: &str, most: &str, tenant: &str| {
        fleet.producer(&["limits", "set", key, "--max", most, "--tenant", tenant]).await
    };
    let ran = set("k", "3", "default").await;
    let said = "at most 3 jobs of default with the key k are at work in a pool with a line";
    assert_eq!((ran.code, ran.out.trim()), (0, said), "{ran:?}");
    let ran = set("k", "3", "default").await;
    assert_eq!((ran.code, ran.out.trim().to_owned()), (0, format!("{said}, as before")), "{ran:?}");
    let ran = set("k", "3", "nobody").await;
    assert!(ran.code == 1 && ran.err.contains("nobody: no such tenant"), "{ran:?}");
    super::create_tenants(&fleet, &["acme"]).await;
    for (key, most, tenant) in [("k", "0", "default"), ("k", "1000000", "acme"), ("j", "1", "acme")] {
        assert_eq!(set(key, most, tenant).await.code, 0, "{key} {most} {tenant}");
    }
    let list = async |more: &[&str]| {
        let ran = fleet.producer(&[&["limits", "list", "--json"], more].concat()).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let shown =
            |limit: &serde_json::Value| format!("{} {} {}", limit["tenant"], limit["key"], limit["max"]);
        ran.json().iter().map(shown).collect::<Vec<_>>()
    };
    let (ours, theirs) = (r#""default" "k" 0"#, [r#""acme" "j" 1"#, r#""acme" "k" 1000000"#]);
    assert_eq!(list(&[]).await, [theirs[0], theirs[1], ours]);
    assert_eq!(list(&["--tenant", "acme"]).await, theirs);
    assert_eq!(list(&["--tenant", "nobody"]).await, [""; 0]);
    let table = fleet.producer(&["limits", "list"]).await;
    assert!(table.code == 0 && table.out.contains("1000000") && table.out.contains("acme"), "{table:?}");

    for (key, most) in [("k", "1000001"), ("k", "-1"), ("k", "many"), ("a,b", "1"), ("", "1")] {
        let ran = set(key, most, "default").await;
        assert!(ran.code == 2 && !ran.err.is_empty(), "{key:?} {most}: {ran:?}");
    }
    let remove = async |key: &str| fleet.producer(&["limits", "remove", key, "--tenant", "acme"]).await;
    assert_eq!(remove("k").await.code, 0);
    let ran = remove("k").await;
    assert!(ran.code == 1 && ran.err.contains("acme has no limit of the key k"), "{ran:?}");
    assert_eq!(list(&[]).await, [theirs[0], ours]);
}
