//! Many jobs in one request: each accepted or refused for itself, and answered in order.

use http::Method;
use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet, Reply, until};

use super::upload::Upload;

async fn send(api: &Api, kind: &str, body: String) -> Reply {
    api.send(Method::POST, "/v1/jobs/batch", &[("content-type", kind)], body.into_bytes()).await
}

fn statuses(batch: &Value) -> Vec<u64> {
    let items = batch["items"].as_array().expect("answers");
    items.iter().map(|answer| answer["status"].as_u64().expect("a status")).collect()
}

#[tokio::test]
async fn each_job_of_a_batch_has_its_own_answer_in_order() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").set("MAX_MESSAGE_BYTES", 2_048).start().await;
    let api = Api::of(&door).await;
    let id = JobId::now().to_string();
    let jobs = [
        json!({"agent_id": "echo", "input": 0, "session_id": "s"}),
        json!({"agent_id": "echo", "input": "]},[{\"\\", "session_id": "s"}),
        json!({"agent_id": 7}),
        json!(7),
        json!({"agent_id": "echo", "input": "x".repeat(3_000)}),
        json!({"agent_id": "echo", "pool": "nowhere"}),
        json!({"agent_id": "echo", "job_id": id}),
        json!({"agent_id": "echo", "job_id": id}),
        json!({"agent_id": "echo", "job_id": id, "input": 1}),
    ];
    let expected = [202, 202, 422, 422, 413, 422, 202, 200, 409];
    let batch = send(&api, "application/json", json!(jobs).to_string()).await.is(200).json();
    assert_eq!(statuses(&batch), expected, "{batch}");
    assert_eq!(
        (&batch["accepted"], &batch["refused"], &batch["complete"]),
        (&json!(4), &json!(5), &json!(true))
    );
    assert_eq!(batch["items"][2]["problem"]["field"], "agent_id", "{batch}");
    assert_eq!(batch["items"][5]["problem"]["field"], "pool", "{batch}");
    for n in [0, 1, 6] {
        let job_id = batch["items"][n]["job_id"].as_str().expect("an id");
        assert_eq!(api.wait(job_id).await.is(200).text("state"), "succeeded");
    }
    // The same as lines: what has an id of its own is known.
    let lines: String = jobs.iter().map(|job| format!("{job}\r\n\n")).collect();
    let batch = send(&api, "application/x-ndjson", lines).await.is(200).json();
    assert_eq!(statuses(&batch)[..6], expected[..6], "{batch}");
    assert_eq!(statuses(&batch)[6..8], [200, 200], "{batch}");
    fleet.database.audited().await;
}

/// Each transaction that takes jobs in needs 50 ms more from now on.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END';
    CREATE TRIGGER slow BEFORE INSERT ON harness_jobs EXECUTE FUNCTION slow()";

#[tokio::test]
async fn jobs_of_one_key_need_no_transaction_each() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("API_ANSWER_WITHIN_MS", 5_000).start().await;
    let api = Api::of(&door).await;
    fleet.database.execute(SLOW).await;
    let jobs: Vec<Value> =
        (0..200).map(|n| json!({"agent_id": "echo", "input": n, "unique": {"key": "k"}})).collect();
    let batch = send(&api, "application/json", json!(jobs).to_string()).await.is(200).json();
    assert_eq!((&batch["accepted"], &batch["complete"]), (&json!(200), &json!(true)), "{batch}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 1);
}

#[tokio::test]
async fn what_was_accepted_before_time_was_up_is_answered_so() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("API_ANSWER_WITHIN_MS", 2_000).start().await;
    let api = Api::of(&door).await;
    fleet.database.execute(SLOW).await;
    // A caller's own id may be known, so that a job of the same key begins another transaction.
    let jobs: Vec<Value> = (0..100)
        .map(|_| json!({"agent_id": "echo", "job_id": JobId::now().to_string(), "unique": {"key": "k"}}))
        .collect();
    let batch = send(&api, "application/json", json!(jobs).to_string()).await.is(200).json();
    let statuses = statuses(&batch);
    assert_eq!((statuses[0], statuses.last()), (202, Some(&503)), "{batch}");
    assert_eq!(batch["items"][0]["job_id"], jobs[0]["job_id"], "{batch}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 1);
}

#[tokio::test]
async fn jobs_of_one_session_keep_their_order() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let lines: String = (0..2_000)
        .map(|n| format!("{{\"agent_id\":\"echo\",\"session_id\":\"s-{}\",\"input\":{n}}}\n", n % 7))
        .collect();
    let batch = send(&api, "application/x-ndjson", lines).await.is(200).json();
    assert_eq!(batch["accepted"], 2_000, "{batch}");
    let inputs = fleet.database.texts("SELECT message ->> 'input' FROM harness_jobs ORDER BY seq").await;
    let expected: Vec<String> = (0..2_000).map(|n| n.to_string()).collect();
    assert_eq!(inputs, expected);
}

#[tokio::test]
async fn what_came_before_a_mistake_is_accepted_and_the_answer_says_where_it_ended() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let job = r#"{"agent_id":"echo"}"#;
    for (body, expected) in [
        (format!("[{job},{job}"), vec![202, 400]),
        (format!("[{job},,{job}]"), vec![202, 400]),
        (format!("[{job}] {job}"), vec![202, 400]),
        (format!("[{job},{{]"), vec![202, 400]),
        (job.to_owned(), vec![400]),
        (String::new(), vec![400]),
    ] {
        let batch = send(&api, "application/json", body.clone()).await.is(200).json();
        assert_eq!((statuses(&batch), &batch["complete"]), (expected, &json!(false)), "{body}: {batch}");
    }
    for body in ["[]", " [ ] "] {
        let batch = send(&api, "application/json", body.to_owned()).await.is(200).json();
        assert_eq!((statuses(&batch), &batch["complete"]), (vec![], &json!(true)), "{batch}");
    }
    send(&api, "text/plain", "[]".to_owned()).await.problem(415, Some("content-type"));
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 4);
}

#[tokio::test]
async fn ten_thousand_jobs_fit_into_a_batch_and_not_one_more() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let line = "{\"agent_id\":\"echo\"}\n";
    let batch = send(&api, "application/x-ndjson", line.repeat(10_001)).await.is(200).json();
    let statuses = statuses(&batch);
    assert_eq!((statuses.len(), statuses[9_999], statuses[10_000]), (10_001, 202, 413));
    assert_eq!((&batch["accepted"], &batch["complete"]), (&json!(10_000), &json!(false)));
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 10_000);
}

#[tokio::test]
async fn so_many_batches_run_at_a_time_and_one_tenant_does_not_take_all_places() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let line = "{\"agent_id\":\"echo\"}\n";
    let mut running: Vec<Upload> = (0..8).map(|_| Upload::begin(&api, None)).collect();
    for (n, batch) in running.iter_mut().enumerate() {
        batch.send(&line.repeat(256));
        let jobs = "SELECT count(*) FROM harness_jobs";
        let accepted = 256 * (n as i64 + 1);
        tests::until("it runs", async || (fleet.database.count(jobs).await == accepted).then_some(())).await;
    }
    let refused = send(&api, "application/x-ndjson", line.to_owned()).await.problem(503, None);
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.text("type"), "urn:harness:busy");
    assert_eq!(fleet.producer(&["tenants", "create", "acme"]).await.code, 0);
    let key = fleet.producer(&["keys", "create", "--tenant", "acme", "--scope", "submit"]).await;
    let acme = api.with_key(key.out.trim());
    let batch = send(&acme, "application/x-ndjson", line.to_owned()).await.is(200).json();
    assert_eq!(statuses(&batch), [202]);
    // A place that is free again is taken.
    let ended = running.pop().expect("one of them");
    let (status, _, answer) = tokio::task::spawn_blocking(move || ended.end()).await.unwrap();
    assert_eq!((status, &answer["accepted"]), (200, &json!(256)));
    send(&api, "application/x-ndjson", line.to_owned()).await.is(200);
}

#[tokio::test]
async fn a_repeated_batch_reads_neither_what_its_jobs_delivered_nor_many_of_their_envelopes_at_a_time() {
    const JOBS: usize = 128;
    // Together 128 MiB: far more than a group of small items may cost.
    const EACH: usize = 1 << 20;
    // A caller that repeats them sends no more than 32 MiB.
    const EACH_ENVELOPE: usize = 1 << 17;
    const MOST_MB: f64 = 100.0;
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let by_id = (0..JOBS / 2).map(|_| json!({"agent_id": "echo", "job_id": JobId::now().to_string()}));
    let by_key = (0..JOBS / 2).map(|n| json!({"agent_id": "echo", "idempotency_key": n.to_string()}));
    let jobs = json!(by_id.chain(by_key).collect::<Vec<_>>()).to_string();
    let first = send(&api, "application/json", jobs.clone()).await.is(200).json();
    assert_eq!(statuses(&first), vec![202; JOBS], "{first}");
    let ended = "SELECT count(*) FROM harness_results WHERE state = 'succeeded'";
    until("all have ended", async || (fleet.database.count(ended).await == JOBS as i64).then_some(())).await;
    let large = format!("UPDATE harness_results SET output = to_json(repeat('x', {EACH}))");
    fleet.database.execute(&large).await;
    let before = door.peak_mb();
    let again = send(&api, "application/json", jobs).await.is(200).json();
    assert_eq!(statuses(&again), vec![200; JOBS], "{again}");
    let of = |batch: &Value, field: &str| -> Vec<Value> {
        batch["items"].as_array().expect("answers").iter().map(|answer| answer[field].clone()).collect()
    };
    for field in ["job_id", "session_id", "accepted_at"] {
        assert_eq!(of(&again, field), of(&first, field));
    }
    assert_eq!(of(&again, "state"), vec![json!("succeeded"); JOBS]);
    assert!(door.peak_mb() - before < MOST_MB, "{} MB", door.peak_mb() - before);

    // Live jobs have their envelopes; those of others are another job's. (What a process has used at most never shrinks.)
    drop(worker);
    let door = fleet.door("next").start().await;
    let api = Api::of(&door).await;
    let live = (0..JOBS).map(|_| json!({"agent_id": "echo", "job_id": JobId::now().to_string()}));
    let live = json!(live.collect::<Vec<_>>()).to_string();
    let first = send(&api, "application/json", live.clone()).await.is(200).json();
    assert_eq!(statuses(&first), vec![202; JOBS], "{first}");
    let large = format!(
        "UPDATE harness_jobs SET message = jsonb_set(message::jsonb, '{{input}}', to_jsonb(repeat('x', {EACH_ENVELOPE})))::json"
    );
    fleet.database.execute(&large).await;
    let before = door.peak_mb();
    let again = send(&api, "application/json", live).await.is(200).json();
    assert_eq!(statuses(&again), vec![409; JOBS], "{again}");
    assert!(door.peak_mb() - before < MOST_MB / 2.0, "{} MB", door.peak_mb() - before);
}
