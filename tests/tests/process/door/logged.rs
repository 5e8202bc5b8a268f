//! The operators' log names who acted on jobs, by HTTP or by command.

use http::Method;
use job::JobId;
use lapin::BasicProperties;
use serde_json::{Value, json};
use tests::{Api, Fleet, job, until, until_ok};

use super::tenants::caller;

/// The rows of the log about this act, oldest first: actor, tenant and detail.
async fn rows(fleet: &Fleet, act: &str) -> Vec<(String, Value, Value)> {
    let ran = fleet.producer(&["log", "--json", "--limit", "1000"]).await;
    let rows = ran.out.lines().rev().map(|line| serde_json::from_str::<Value>(line).expect("a row"));
    let of_act = rows.filter(|row| row["act"] == act);
    of_act
        .map(|row| {
            (
                row["actor"].as_str().expect("an actor").to_owned(),
                row["tenant"].clone(),
                row["detail"].clone(),
            )
        })
        .collect()
}

/// Expects that this act is in the log once for each of these: who, whose, and what.
async fn logged(fleet: &Fleet, act: &str, expected: &[(&str, Value, Value)]) {
    let found = rows(fleet, act).await;
    assert_eq!(found.len(), expected.len(), "{act}: {found:?}");
    for ((actor, tenant, detail), (who, whose, what)) in found.iter().zip(expected) {
        assert!(actor.contains(who), "{act}: {actor}");
        assert_eq!((tenant, detail), (whose, what), "{act}");
    }
}

#[tokio::test]
async fn the_log_names_the_key_and_the_operator_of_each_act_on_a_job_once() {
    let fleet = Fleet::new().await;
    let mut worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read,operate").await;
    let key = format!("key {}", &acme.shown_key().expect("a key")[4..14]);
    let command = "@";
    let done = async |arguments: &[&str]| {
        let ran = fleet.producer(arguments).await;
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
    };
    let submitted = async |spec: Value| acme.submit(&spec).await.is(202).text("job_id");
    let failed = async || {
        let job_id = submitted(json!({"agent_id": "nobody"})).await;
        acme.wait(&job_id).await.is(200);
        job_id
    };
    let post = async |path: String| acme.send(Method::POST, &path, &[], Vec::new()).await.status;

    // Failed jobs: run again and dropped, each time by the key and by a command. A second time changes nothing.
    let (first, second, third, fourth) = (failed().await, failed().await, failed().await, failed().await);
    let again = acme.post(&format!("/v1/jobs/{first}/redrive"), &json!(null)).await.is(202).text("job_id");
    assert_eq!(post(format!("/v1/jobs/{first}/redrive")).await, 409);
    acme.delete(&format!("/v1/dead/{second}")).await.is(204);
    acme.delete(&format!("/v1/dead/{second}")).await.problem(409, None);
    done(&["dead", "redrive", &third]).await;
    done(&["dead", "drop", "--dry-run", &fourth]).await;
    done(&["dead", "drop", &fourth]).await;
    let redriven = rows(&fleet, "jobs_redriven").await;
    let by_command = redriven[1].2["redriven_as"].clone();
    logged(
        &fleet,
        "jobs_redriven",
        &[
            (&key, json!("acme"), json!({"job_ids": [first], "redriven_as": [again]})),
            (command, json!("acme"), json!({"job_ids": [third], "redriven_as": by_command})),
        ],
    )
    .await;
    let dropped = [
        (&*key, json!("acme"), json!({"job_ids": [second]})),
        (command, json!("acme"), json!({"job_ids": [fourth]})),
    ];
    logged(&fleet, "jobs_dropped", &dropped).await;

    // A job that runs is asked to stop once, however often its caller asks.
    let running =
        submitted(json!({"agent_id": "scripted", "input": {"count": 1, "delay_ms": 600_000}})).await;
    until("it runs", async || {
        (acme.get(&format!("/v1/jobs/{running}")).await.text("state") == "running").then_some(())
    })
    .await;
    for _ in 0..3 {
        post(format!("/v1/jobs/{running}/cancel")).await;
    }
    acme.wait(&running).await.is(200);
    worker.terminate();
    worker.exit().await;

    // Jobs that wait, of two tenants; one that nobody has seen; and one that has ended.
    let (own, mine) =
        (submitted(json!({"agent_id": "echo"})).await, submitted(json!({"agent_id": "echo"})).await);
    let default = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let unseen = JobId::now().to_string();
    assert_eq!(post(format!("/v1/jobs/{own}/cancel")).await, 200);
    assert_eq!(fleet.producer(&["cancel", &mine, &default, &unseen, &second]).await.code, 3);
    logged(
        &fleet,
        "jobs_cancelled",
        &[
            (&key, json!("acme"), json!({"job_ids": [running]})),
            (&key, json!("acme"), json!({"job_ids": [own]})),
            (command, Value::Null, json!({"job_ids": [unseen], "seen": false})),
            (command, json!("acme"), json!({"job_ids": [mine]})),
            (command, json!("default"), json!({"job_ids": [default]})),
        ],
    )
    .await;

    // Answers: who gave them, and not what they said.
    let asking = submitted(json!({"agent_id": "echo"})).await;
    for call in ["one", "one"] {
        let answer = json!({"call_id": call, "answer": "the answer", "by": "Ada"});
        acme.post(&format!("/v1/jobs/{asking}/answers"), &answer).await.is(200);
    }
    done(&["answer", &asking, "--call", "two", "--approve"]).await;
    logged(
        &fleet,
        "call_answered",
        &[
            (&key, json!("acme"), json!({"job_id": asking, "call_id": "one", "by": "Ada"})),
            (command, json!("acme"), json!({"job_id": asking, "call_id": "two", "by": null})),
        ],
    )
    .await;
    let log = fleet.producer(&["log", "--json", "--limit", "1000"]).await.out;
    assert!(!log.contains("the answer"), "{log}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn the_log_has_the_messages_that_an_operator_sends_back_or_deletes() {
    let fleet = Fleet::new().await;
    // It accepts at most a kilobyte.
    let mut worker = fleet.worker("worker").set("MAX_MESSAGE_BYTES", 1_024).start().await;
    let large = job("large", "echo", json!("x".repeat(2_000)));
    let id = large.job_id.to_string();
    let called = |id: &str| BasicProperties::default().with_message_id(id.into());
    let messages = vec![(b"{".to_vec(), called("m-1")), (job::encode(&large).into_bytes(), called(&id))];
    fleet.vhost.publish(messages).await;
    until("both are dead", async || (fleet.vhost.dead_letters().await.len() == 2).then_some(())).await;
    worker.terminate();
    worker.exit().await;
    // The one would be refused again, so it stays.
    assert_eq!(fleet.producer(&["dead", "redrive", "m-1"]).await.code, 3);
    for arguments in [&["drop", "--dry-run", "m-1"][..], &["drop", "m-1"], &["redrive", &id]] {
        // What the command before has looked at may come back to the queue a moment after its end.
        let done = async || {
            let ran = fleet.producer(&[&["dead"], arguments].concat()).await;
            if ran.code == 0 { Ok(()) } else { Err(ran) }
        };
        until_ok(&format!("{arguments:?}"), done).await;
    }
    logged(&fleet, "messages_dropped", &[("@", Value::Null, json!({"message_ids": ["m-1"]}))]).await;
    logged(&fleet, "messages_returned", &[("@", Value::Null, json!({"message_ids": [id]}))]).await;
}
