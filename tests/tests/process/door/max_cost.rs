//! A job's own limit of cost, as each door takes it.

use serde_json::json;
use tests::{Api, Fleet};

#[tokio::test]
async fn each_door_takes_a_job_s_limit_of_cost_and_refuses_what_is_none() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let spec = |limit| json!({"agent_id": "echo", "session_id": "http", "max_cost_usd": limit});
    for limit in [json!(0.25), json!("0.25"), json!(0), json!(null)] {
        api.submit(&spec(limit)).await.is(202);
    }
    for bad in [json!(-1), json!("much"), json!(0.0000001), json!(1e10), json!([1]), json!(true)] {
        api.submit(&spec(bad)).await.problem(422, Some("max_cost_usd"));
    }
    let mut again = spec(json!(0.25));
    again["job_id"] = json!(job::JobId::now());
    api.submit(&again).await.is(202);
    again["max_cost_usd"] = json!("0.250");
    api.submit(&again).await.is(200);
    again["max_cost_usd"] = json!(0.5);
    api.submit(&again).await.problem(409, Some("job_id"));

    let flags = ["enqueue", "--session", "flags", "--agent", "echo"];
    let by = async |limit: &str| {
        let limit = format!("--max-cost-usd={limit}");
        fleet.producer(&[&flags[..], &[&limit]].concat()).await
    };
    assert_eq!(by("0.25").await.code, 0);
    let refused = by("-1").await;
    assert!(refused.code == 2 && refused.err.contains("--max-cost-usd"), "{refused:?}");
    let refused = by("0.1234567").await;
    assert!(refused.code == 2 && refused.err.contains("at most 6 digits"), "{refused:?}");
    let lines = fleet.folder.path().join("jobs.jsonl");
    let line = |limit: &str| {
        format!("{{\"agent_id\":\"echo\",\"session_id\":\"lines\",\"max_cost_usd\":{limit}}}\n")
    };
    std::fs::write(&lines, line("0.25") + &line("\"a lot\"")).expect("written");
    let lines = fleet.producer(&["enqueue", "--file", &lines.display().to_string()]).await;
    assert!(lines.code == 3 && lines.err.contains("max_cost_usd: got \"a lot\""), "{lines:?}");

    let kept = "SELECT DISTINCT session_id || ' ' || (message->>'max_cost_usd') FROM harness_jobs
                 WHERE message->>'max_cost_usd' IS NOT NULL ORDER BY 1";
    assert_eq!(fleet.database.texts(kept).await, ["flags 0.25", "http 0.0", "http 0.25", "lines 0.25"]);
    fleet.database.audited().await;
}
