//! A tenant gets no more than its limits, over all doors, and one that asks for too much has an answer that says when to
//! come back.

use std::time::Duration;

use job::JobId;
use serde_json::json;
use tests::{Api, Fleet, Reply, until};
use tokio::time::Instant;

use super::tenants::caller;

async fn set(fleet: &Fleet, tenant: &str, limits: &[&str]) {
    let ran = fleet.producer(&[&["tenants", "set", tenant], limits].concat()).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// A refusal of this kind, which says when to come back.
fn refused(reply: Reply, status: u16, kind: &str) -> Reply {
    let reply = reply.problem(status, None);
    assert_eq!(reply.text("type"), format!("urn:harness:{kind}"));
    let after: u64 = reply.header("retry-after").parse().unwrap_or_else(|_| panic!("{reply:?}"));
    assert!((1..=60).contains(&after), "{reply:?}");
    assert_eq!(reply.json()["retry_after_s"], after);
    reply
}

#[tokio::test]
async fn a_tenant_with_as_many_waiting_jobs_as_it_may_have_is_refused_until_some_go_on() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read").await;
    for (tenant, caller) in [("acme", &acme), ("default", &api)] {
        set(&fleet, tenant, &["--max-waiting", "5"]).await;
        let spec = json!({"agent_id": "echo"});
        let mut accepted = 0;
        let full = async || {
            let reply = caller.submit(&spec).await;
            accepted += u64::from(reply.status == 202);
            (reply.status != 202).then_some(reply)
        };
        let reply = until("the bound is reached", full).await;
        refused(reply, 429, "tenant_backlog");
        // A job that is taken in while jobs are counted is counted twice until the next count.
        assert!((3..=5).contains(&accepted), "{accepted}");
        let batch = caller.post("/v1/jobs/batch", &json!(vec![spec.clone(); 3])).await.is(200).json();
        assert_eq!((&batch["accepted"], &batch["complete"]), (&json!(0), &json!(false)), "{batch}");
        assert_eq!(batch["items"][0]["problem"]["type"], "urn:harness:tenant_backlog", "{batch}");
    }
    // Reading goes on, and the other tenants are not concerned.
    acme.get("/v1/jobs").await.is(200);
    caller(&fleet, &api, "other", "submit").await.submit(&json!({"agent_id": "echo"})).await.is(202);
    let _worker = fleet.worker("worker").start().await;
    let accepts = async || (acme.submit(&json!({"agent_id": "echo"})).await.status == 202).then_some(());
    until("jobs have ended, and there is room", accepts).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_part_of_a_batch_is_accepted_where_the_whole_is_too_much() {
    let fleet = Fleet::new().await;
    set(&fleet, "default", &["--max-waiting", "5"]).await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let batch = api.post("/v1/jobs/batch", &json!(vec![json!({"agent_id": "echo"}); 8])).await.is(200).json();
    let statuses: Vec<u64> =
        batch["items"].as_array().unwrap().iter().map(|item| item["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses[..8], [202, 202, 202, 202, 202, 429, 429, 429], "{batch}");
    assert_eq!(batch["accepted"], 5, "{batch}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 5);
}

#[tokio::test]
async fn with_too_many_unfinished_jobs_no_more_are_accepted() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("API_MAX_UNFINISHED_JOBS", 20).start().await;
    let api = Api::of(&door).await;
    let spec = json!({"agent_id": "echo"});
    let mut accepted = 0;
    let full = async || {
        let reply = api.submit(&spec).await;
        accepted += i64::from(reply.status == 202);
        (reply.status != 202).then_some(reply)
    };
    refused(until("the bound is reached", full).await, 503, "backlog");
    assert!((15..=20).contains(&accepted), "{accepted}");
    // Another door finds them by counting.
    let other = fleet.door("other").set("API_MAX_UNFINISHED_JOBS", 20).start().await;
    let api = Api::of(&other).await;
    let full = async || (api.submit(&spec).await.status == 503).then_some(());
    until("the other door has counted", full).await;
    let (status, metrics) = other.get("/metrics").await;
    assert_eq!(status, 200);
    let refusals = "harness_http_submissions_refused_total{reason=\"backlog\"} ";
    assert!(metrics.lines().any(|line| line.starts_with(refusals) && !line.ends_with(" 0")), "{metrics}");
    let _worker = fleet.worker("worker").start().await;
    let accepts = async || (api.submit(&spec).await.status == 202).then_some(());
    until("jobs have ended, and there is room", accepts).await;
}

#[tokio::test]
async fn a_tenant_submits_no_faster_than_its_rate_over_all_doors() {
    const RATE: f64 = 40.0;
    const BURST: f64 = 20.0;
    let fleet = Fleet::new().await;
    let (one, other) = (fleet.door("one").start().await, fleet.door("other").start().await);
    let doors = [Api::of(&one).await, Api::of(&other).await];
    let acme = caller(&fleet, &doors[0], "acme", "submit,read").await;
    set(&fleet, "acme", &["--rate-per-s", "40", "--burst", "20"]).await;
    let key = acme.shown_key().expect("a key").to_owned();
    let begun = Instant::now();
    let calling = (0..8).map(|n| {
        let api = doors[n % 2].with_key(&key);
        async move {
            let (mut accepted, mut limited) = (0, 0);
            while begun.elapsed() < Duration::from_secs(4) {
                let reply = api.submit(&json!({"agent_id": "echo"})).await;
                assert!(!reply.header("ratelimit-remaining").is_empty(), "{reply:?}");
                assert_eq!(reply.header("ratelimit-limit"), "20");
                match reply.status {
                    202 => accepted += 1,
                    _ => {
                        refused(reply, 429, "rate_limited");
                        limited += 1;
                    }
                }
            }
            (accepted, limited)
        }
    });
    let seen = futures::future::join_all(calling).await;
    let most = RATE * begun.elapsed().as_secs_f64() + BURST;
    let (accepted, limited): (Vec<u32>, Vec<u32>) = seen.into_iter().unzip();
    let (accepted, limited): (u32, u32) = (accepted.iter().sum(), limited.iter().sum());
    println!("{accepted} accepted, {limited} refused, at most {most}");
    assert!(f64::from(accepted) <= most, "{accepted} of {most}");
    assert!(accepted >= 40 && limited > 0, "{accepted} accepted, {limited} refused");
    // A batch counts each of its jobs.
    let acme = doors[0].with_key(&key);
    let jobs = json!(vec![json!({"agent_id": "echo"}); 200]);
    let batch = acme.post("/v1/jobs/batch", &jobs).await.is(200).json();
    assert!(batch["accepted"].as_u64().unwrap() <= 20 && batch["complete"] == false, "{batch}");
    // What takes no job in is not limited, nor is another tenant.
    for _ in 0..30 {
        acme.get("/v1/jobs?limit=1").await.is(200);
        doors[0].get("/v1/openapi.json").await.is(200);
        doors[0].submit(&json!({"agent_id": "echo"})).await.is(202);
    }
    let asked = fleet.database.texts("SELECT tenant FROM harness_rates").await;
    assert_eq!(asked, ["acme"]);
    set(&fleet, "acme", &["--rate-per-s", "none"]).await;
    let free = async || {
        acme.submit(&json!({"agent_id": "echo"})).await.header("ratelimit-limit").is_empty().then_some(())
    };
    until("the limit is gone", free).await;
}

#[tokio::test]
async fn a_tenant_whose_jobs_end_as_fast_as_they_come_is_never_refused_below_its_bound() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read,operate").await;
    for tenant in ["acme", "default"] {
        set(&fleet, tenant, &["--max-waiting", "5"]).await;
    }
    // A neighbour's jobs, which make the counts of the tenant `default` slow.
    let neighbour = "
        INSERT INTO harness_jobs (job_id, tenant, session_id, agent_id, pool, message, state)
        SELECT overlay(overlay(gen_random_uuid()::text placing '7' from 15) placing '01900000-0000' from 1)::uuid,
               'other', '~other/s', 'echo', 'idle', '{}', 'blocked' FROM generate_series(1, 100000)";
    fleet.database.execute(neighbour).await;
    for n in 0..60 {
        for caller in [&acme, &api] {
            let batch = caller.post("/v1/jobs/batch", &json!(vec![json!({"agent_id": "echo"}); 4])).await;
            let batch = batch.is(200).json();
            assert_eq!(batch["accepted"], 4, "{n}: {batch}");
            for item in batch["items"].as_array().expect("items") {
                let id = item["job_id"].as_str().expect("an id");
                caller.post(&format!("/v1/jobs/{id}/cancel"), &json!(null)).await.is(200);
            }
        }
    }
}

#[tokio::test]
async fn the_repeat_of_an_accepted_request_is_answered_although_a_limit_is_reached() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("API_MAX_UNFINISHED_JOBS", 12).start().await;
    let api = Api::of(&door).await;
    let bounded = caller(&fleet, &api, "bounded", "submit,read").await;
    let rated = caller(&fleet, &api, "rated", "submit,read").await;
    set(&fleet, "bounded", &["--max-waiting", "3"]).await;
    set(&fleet, "rated", &["--rate-per-s", "0.001", "--burst", "3"]).await;
    for (caller, refusal) in [(&bounded, "tenant_backlog"), (&rated, "rate_limited"), (&api, "backlog")] {
        let keyed = json!({"agent_id": "echo", "idempotency_key": "k"});
        let unique = json!({"agent_id": "echo", "unique": {"key": "u"}});
        let own = json!({"agent_id": "echo", "job_id": JobId::now().to_string()});
        let earlier = [&keyed, &unique, &own];
        let mut ids = Vec::new();
        for job in earlier {
            ids.push(caller.submit(job).await.is(202).text("job_id"));
        }
        let new = json!({"agent_id": "echo"});
        let full = async || {
            let reply = caller.submit(&new).await;
            (reply.status != 202).then_some(reply)
        };
        let refused = until("the limit is reached", full).await;
        assert_eq!(refused.text("type"), format!("urn:harness:{refusal}"));
        for (job, id) in earlier.into_iter().zip(&ids) {
            assert_eq!(&caller.submit(job).await.is(200).text("job_id"), id, "{refusal}");
        }
        let other = json!({"agent_id": "echo", "input": 2, "idempotency_key": "k"});
        caller.submit(&other).await.problem(409, Some("idempotency_key"));

        // A batch is answered like its jobs.
        let batch = caller.post("/v1/jobs/batch", &json!([keyed, unique, own])).await.is(200).json();
        let items = batch["items"].as_array().expect("items");
        let found: Vec<&str> = items.iter().filter_map(|item| item["job_id"].as_str()).collect();
        assert!(found == ids && batch["complete"] == true, "{refusal}: {batch}");
        let batch = caller.post("/v1/jobs/batch", &json!([new, own])).await.is(200).json();
        let statuses = [&batch["items"][0]["status"], &batch["items"][1]["status"]];
        assert!(statuses[0] != 202 && statuses[1] == 200 && batch["accepted"] == 1, "{refusal}: {batch}");
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_tenant_redrives_no_more_than_it_may_submit_and_an_operator_is_not_limited() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let mut failed = Vec::new();
    for _ in 0..2 {
        let id = api.submit(&json!({"agent_id": "nobody"})).await.is(202).text("job_id");
        api.wait(&id).await.is(200);
        failed.push(id);
    }
    drop(worker);
    set(&fleet, "default", &["--max-waiting", "1"]).await;
    let full = async || (api.submit(&json!({"agent_id": "echo"})).await.status == 429).then_some(());
    until("the bound is reached", full).await;
    let redrive = format!("/v1/jobs/{}/redrive", failed[0]);
    refused(api.post(&redrive, &json!(null)).await, 429, "tenant_backlog");
    set(&fleet, "default", &["--max-waiting", "none", "--rate-per-s", "0.02", "--burst", "1"]).await;
    let limited = async || {
        let reply = api.submit(&json!({"agent_id": "echo"})).await;
        (reply.status == 429 && reply.text("type") == "urn:harness:rate_limited").then_some(())
    };
    until("the rate is used up", limited).await;
    refused(api.post(&redrive, &json!(null)).await, 429, "rate_limited");
    assert_eq!(fleet.producer(&["dead", "redrive", &failed[1]]).await.code, 0);

    set(&fleet, "default", &["--rate-per-s", "none"]).await;
    let accepted = async || (api.post(&redrive, &json!(null)).await.status == 202).then_some(());
    until("the limit is gone", accepted).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_burst_that_no_clock_could_hold_is_refused_and_an_older_one_is_bounded() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    for limits in [
        ["tenants", "create", "acme", "--rate-per-s", "0.001", "--burst", "31537"],
        ["tenants", "set", "default", "--rate-per-s", "0.001", "--burst", "2147483647"],
    ] {
        let refused = fleet.producer(&limits).await;
        assert!(refused.code == 2 && refused.err.contains("expected at most 31536"), "{refused:?}");
    }
    set(&fleet, "default", &["--rate-per-s", "0.001"]).await;
    let refused = fleet.producer(&["tenants", "set", "default", "--burst", "31537"]).await;
    assert!(refused.code == 2 && refused.err.contains("expected at most 31536"), "{refused:?}");
    set(&fleet, "default", &["--burst", "31535"]).await;

    // As it could be set before.
    let absurd = "UPDATE harness_tenants SET rate_per_s = 1e-12, burst = 2147483647";
    fleet.database.execute(absurd).await;
    let limited = async || {
        (api.submit(&json!({"agent_id": "echo"})).await.header("ratelimit-limit") == "31536").then_some(())
    };
    until("the limit counts", limited).await;
    api.submit(&json!({"agent_id": "echo"})).await.is(202);
}
