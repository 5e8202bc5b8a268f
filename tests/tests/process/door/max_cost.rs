//! A job's own limits of cost, answers and tokens, as each door takes them.

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

#[tokio::test]
async fn each_door_takes_a_job_s_limits_of_answers_and_tokens_and_refuses_what_is_none() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    for field in ["max_iterations", "max_tokens"] {
        let spec = |limit| json!({"agent_id": "echo", "session_id": "http", field: limit});
        for limit in [json!(1), json!(4_000_000), json!(null)] {
            api.submit(&spec(limit)).await.is(202);
        }
        for bad in [json!(0), json!(-1), json!(1.5), json!("7"), json!([1]), json!(true)] {
            api.submit(&spec(bad)).await.problem(422, Some(field));
        }
        let mut again = spec(json!(7));
        again["job_id"] = json!(job::JobId::now());
        api.submit(&again).await.is(202);
        api.submit(&again).await.is(200);
        again[field] = json!(8);
        api.submit(&again).await.problem(409, Some("job_id"));

        let flag = format!("--{}", field.replace('_', "-"));
        let by = async |limit: &str| {
            let flag = format!("{flag}={limit}");
            fleet.producer(&["enqueue", "--session", "flags", "--agent", "echo", &flag]).await
        };
        assert_eq!(by("7").await.code, 0);
        for bad in ["-1", "1.5", "many"] {
            let refused = by(bad).await;
            assert!(refused.code == 2 && refused.err.contains(&flag), "{refused:?}");
        }
        let zero = by("0").await;
        assert!(zero.code != 0 && zero.err.contains(&format!("{field}: got 0")), "{zero:?}");
        let file = fleet.folder.path().join("jobs.jsonl");
        let line =
            |limit: &str| format!("{{\"agent_id\":\"echo\",\"session_id\":\"lines\",\"{field}\":{limit}}}\n");
        std::fs::write(&file, line("7") + &line("0") + &line("0.5")).expect("written");
        let lines = fleet.producer(&["enqueue", "--file", &file.display().to_string()]).await;
        assert!(lines.code == 3 && lines.err.contains(&format!("{field}: got 0")), "{lines:?}");
        assert!(lines.err.contains(&format!("{field}: ")) && lines.err.contains("whole number"), "{lines:?}");

        let kept = format!(
            "SELECT DISTINCT session_id || ' ' || (message->>'{field}') FROM harness_jobs
              WHERE (message->>'{field}')::bigint = 7 ORDER BY 1"
        );
        assert_eq!(fleet.database.texts(&kept).await, ["flags 7", "http 7", "lines 7"], "{field}");
    }
    fleet.database.audited().await;
}
