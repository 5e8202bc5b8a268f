//! Operators see what waits and what runs.

use serde_json::{Value, json};
use tests::{Fleet, until};

async fn now(fleet: &Fleet) -> Value {
    let ran = fleet.producer(&["top", "--once", "--json"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).expect("one JSON object")
}

#[tokio::test]
async fn top_shows_pools_tenants_and_the_jobs_that_are_longest_where_they_are() {
    let fleet = Fleet::new().await;
    assert_eq!(fleet.producer(&["tenants", "create", "acme", "--max-waiting", "7"]).await.code, 0);
    assert_eq!(now(&fleet).await, json!({"pools": [], "tenants": [], "oldest": []}));
    let jobs = [
        json!({"session_id": "first", "agent_id": "echo"}),
        json!({"session_id": "other", "agent_id": "echo"}),
        json!({"session_id": "later", "agent_id": "echo", "delay_ms": 3_600_000}),
    ];
    let lines = jobs.map(|job| job.to_string()).join("\n");
    assert_eq!(fleet.producer_with_input(&lines, &["enqueue", "--file", "-"]).await.code, 0);
    let of_acme =
        "UPDATE harness_jobs SET tenant = 'acme', session_id = '~acme/other' WHERE session_id = 'other'";
    fleet.database.execute(of_acme).await;
    let seen = until("both are queued", async || {
        let seen = now(&fleet).await;
        (seen["pools"][0]["queued"] == 2).then_some(seen)
    })
    .await;
    let of_pool = ["pool", "later", "due", "running", "workers"].map(|field| seen["pools"][0][field].clone());
    assert_eq!(of_pool, [json!("default"), json!(1), json!(0), json!(0), json!(0)], "{seen}");
    let tenants = json!([
        {"tenant": "acme", "running": 0, "waiting": 1, "max_waiting": 7},
        {"tenant": "default", "running": 0, "waiting": 2, "max_waiting": null},
    ]);
    assert_eq!(seen["tenants"], tenants, "{seen}");
    let oldest = seen["oldest"].as_array().expect("a list").iter();
    let mut oldest: Vec<_> = oldest.map(|job| format!("{} {}", job["session_id"], job["state"])).collect();
    oldest.sort();
    // The one that is not due is not among them.
    assert_eq!(oldest, [r#""first" "queued""#, r#""other" "queued""#], "{seen}");

    let drawn = fleet.producer(&["top", "--once"]).await;
    for expected in ["awaiting input", "acme", "longest where they are"] {
        assert!(drawn.out.contains(expected), "{expected}: {}", drawn.out);
    }
    let wrong = fleet.producer(&["top", "--every", "1ms"]).await;
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("--every") && wrong.err.contains("500ms or more"), "{}", wrong.err);
}
