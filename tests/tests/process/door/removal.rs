//! What a caller removes is gone, and nothing else is: a session's state, and dead letters.

use serde_json::json;
use tests::{Api, Fleet, until};

#[tokio::test]
async fn an_emptied_session_keeps_its_counters_and_goes_on_from_nothing() {
    let fleet = Fleet::new().await;
    let mut worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    api.delete("/v1/sessions/s").await.problem(404, None);

    // A job that waits for its next attempt is a live one, and what it has checkpointed is not folded yet.
    let waiting = json!({
        "session_id": "s", "agent_id": "scripted",
        "retry": {"base_delay_ms": 3_600_000, "max_delay_ms": 3_600_000},
        "input": {"iterations": [{"cost_usd": 0.5}, {}, {"fail": {"message": "later", "retryable": true}}]},
    });
    let job_id = api.submit(&waiting).await.is(202).text("job_id");
    let retried = async || {
        let job = api.get(&format!("/v1/jobs/{job_id}")).await.json();
        (job["state"] == "scheduled" && job["attempts"] == 1).then_some(())
    };
    until("it waits for its next attempt", retried).await;
    api.delete("/v1/sessions/s").await.problem(409, None);
    assert_eq!(api.get("/v1/sessions/s").await.is(200).json()["iterations"], 2);
    api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);

    let before = api.get("/v1/sessions/s").await.is(200).json();
    api.delete("/v1/sessions/s").await.is(204);
    let after = api.get("/v1/sessions/s").await.is(200).json();
    for counter in ["iterations", "cost_usd", "input_tokens", "output_tokens", "jobs", "created_at"] {
        assert_eq!(after[counter], before[counter], "{counter}");
    }
    assert_eq!((&after["iterations"], &after["cost_usd"]), (&json!(2), &json!(0.5)), "{after}");
    assert_eq!((&after["memory"], &after["context_window"]), (&json!({}), &json!([])), "{after}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_checkpoints").await, 0);

    let next = json!({"session_id": "s", "agent_id": "scripted", "input": {"count": 1}});
    let next = api.submit(&next).await.is(202).text("job_id");
    assert_eq!(api.wait(&next).await.is(200).json()["output"]["resumed_at"], json!(0));
    let log = fleet.producer(&["log", "--json"]).await;
    assert!(log.out.contains("session_emptied"), "{log:?}");
    worker.terminate();
    worker.exit().await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_session_is_there_from_the_acceptance_of_its_first_job() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let jobs = ["echo", "other"].map(|agent| json!({"session_id": "s", "agent_id": agent, "user_id": "u"}));
    let accepted = [api.submit(&jobs[0]).await.is(202), api.submit(&jobs[1]).await.is(202)];
    api.delete("/v1/sessions/s").await.problem(409, None);
    let session = api.get("/v1/sessions/s").await.is(200).json();
    let shown = |field: &str| &session[field];
    assert_eq!((shown("session_id"), shown("agent_id")), (&json!("s"), &json!("echo")), "{session}");
    assert_eq!([shown("jobs"), shown("iterations"), shown("input_tokens")], [&json!(0); 3], "{session}");
    assert_eq!((shown("memory"), shown("context_window")), (&json!({}), &json!([])), "{session}");
    assert_eq!(shown("feature_progress"), &json!({}), "{session}");
    let at = json!(accepted[0].text("accepted_at"));
    assert_eq!([shown("created_at"), shown("last_updated")], [&at; 2], "{session}");
    let ran = fleet.producer(&["sessions", "show", "s", "--json"]).await;
    assert_eq!(
        (ran.code, &ran.json()[0]["agent_id"], &ran.json()[0]["user_id"]),
        (0, &json!("echo"), &json!("u"))
    );
    // To look wrote nothing.
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_sessions").await, 0);

    let worker = fleet.worker("worker").start().await;
    for job in &accepted {
        api.wait(&job.text("job_id")).await.is(200);
    }
    assert_eq!(api.get("/v1/sessions/s").await.is(200).json()["jobs"], 2);
    api.delete("/v1/sessions/s").await.is(204);
    for (method, path) in [("GET", "/v1/sessions/t"), ("DELETE", "/v1/sessions/t")] {
        let asked = api.send(method.parse().expect("a method"), path, &[], Vec::new()).await;
        asked.problem(404, None);
    }
    drop(worker);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_dropped_dead_letter_leaves_the_list_and_keeps_its_result() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let failed = api.submit(&json!({"agent_id": "nobody"})).await.is(202).text("job_id");
    let fine = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    for job_id in [&failed, &fine] {
        api.wait(job_id).await.is(200);
    }
    api.delete(&format!("/v1/dead/{fine}")).await.problem(409, None);
    api.delete(&format!("/v1/dead/{failed}")).await.is(204);
    assert_eq!(api.get("/v1/dead").await.is(200).json()["items"], json!([]));
    assert_eq!(api.get(&format!("/v1/jobs/{failed}")).await.is(200).text("state"), "failed");
    api.delete(&format!("/v1/dead/{failed}")).await.problem(409, None);
    api.post(&format!("/v1/jobs/{failed}/redrive"), &json!(null)).await.problem(409, None);
    fleet.database.audited().await;
}
