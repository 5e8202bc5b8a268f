//! A request that is sent twice is one job, by a key of the caller's own; and a unique job is the only one of its kind.

use std::time::Duration;

use http::Method;
use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet, Link, Proxy, Reply, until};

use super::tenants::caller;

const JSON: (&str, &str) = ("content-type", "application/json");

async fn submit(api: &Api, key: &str, job: &Value) -> Reply {
    let headers = [JSON, ("idempotency-key", key)];
    api.send(Method::POST, "/v1/jobs", &headers, job.to_string().into_bytes()).await
}

async fn jobs(fleet: &Fleet) -> i64 {
    let count = "SELECT (SELECT count(*) FROM harness_jobs) + (SELECT count(*) FROM harness_results)";
    fleet.database.count(count).await
}

#[tokio::test]
async fn the_same_request_again_is_the_first_job_and_another_content_is_refused() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let first = submit(&api, "k-1", &json!({"agent_id": "echo", "input": 1})).await.is(202);
    assert_eq!((first.header("idempotency-replayed"), first.header("found-by")), ("", ""));
    let replayed = async || {
        // Quotes, spaces and the order of fields are no content.
        let body = "{ \"input\": 1, \"agent_id\": \"echo\" }".as_bytes().to_vec();
        let headers = [JSON, ("idempotency-key", "\"k-1\"")];
        let again = api.send(Method::POST, "/v1/jobs", &headers, body).await.is(200);
        for field in ["job_id", "session_id", "accepted_at"] {
            assert_eq!(again.text(field), first.text(field));
        }
        assert_eq!(again.header("location"), first.header("location"));
        let found = (again.header("idempotency-replayed"), again.header("found-by"));
        assert_eq!(found, ("true", "idempotency_key"), "{again:?}");
        again.text("state")
    };
    replayed().await;
    for other in
        [json!({"agent_id": "echo", "input": 2}), json!({"agent_id": "echo", "input": 1, "user_id": "u"})]
    {
        let refused = submit(&api, "k-1", &other).await.problem(409, Some("idempotency_key"));
        assert!(refused.text("detail").contains(&first.text("job_id")), "{refused:?}");
    }
    // Also after its end.
    let _worker = fleet.worker("worker").start().await;
    api.wait(&first.text("job_id")).await.is(200);
    assert_eq!(replayed().await, "succeeded");
    assert_eq!(jobs(&fleet).await, 1);

    // An id of the caller's own and a key go together; who finds the job by its id has no key taken.
    let id = JobId::now().to_string();
    let own = json!({"agent_id": "echo", "job_id": id});
    api.submit(&own).await.is(202);
    let again = submit(&api, "k-2", &own).await.is(200);
    assert_eq!((again.text("job_id"), again.header("idempotency-replayed")), (id, "true"));
    submit(&api, "k-2", &json!({"agent_id": "echo"})).await.is(202);

    // Keys are the tenant's.
    let acme = caller(&fleet, &api, "acme", "submit,read").await;
    let theirs = submit(&acme, "k-1", &json!({"agent_id": "echo", "input": 1})).await.is(202);
    assert_ne!(theirs.text("job_id"), first.text("job_id"));

    // After a day the key is free.
    fleet.database.execute("UPDATE harness_taken_keys SET expires_at = now() - interval '1 second'").await;
    let later = submit(&api, "k-1", &json!({"agent_id": "echo", "input": 2})).await.is(202);
    assert_ne!(later.text("job_id"), first.text("job_id"));
    for wrong in ["", " ", "\"\"", &"x".repeat(256)] {
        submit(&api, wrong, &json!({"agent_id": "echo"})).await.problem(422, Some("idempotency-key"));
    }
    let both = json!({"agent_id": "echo", "idempotency_key": "k-3"});
    submit(&api, "k-4", &both).await.problem(422, Some("idempotency_key"));
    submit(&api, "k-3", &both).await.is(202);
    api.submit(&both).await.is(200);
    fleet.database.audited().await;
}

#[tokio::test]
async fn two_doors_that_bring_one_key_at_once_make_one_job() {
    let fleet = Fleet::new().await;
    let (one, other) = (fleet.door("one").start().await, fleet.door("other").start().await);
    let doors = [Api::of(&one).await, Api::of(&other).await];
    for round in 0..10 {
        let sending = (0..16).map(|n| {
            let (api, key) = (doors[n % 2].clone(), format!("round-{round}"));
            async move {
                let spec = json!({"agent_id": "echo", "input": round, "unique": {"key": key}});
                // Half of them bring both keys.
                if n % 4 < 2 { submit(&api, &key, &spec).await } else { api.submit(&spec).await }
            }
        });
        let replies = futures::future::join_all(sending).await;
        let new = replies.iter().filter(|reply| reply.status == 202).count();
        assert_eq!((new, replies.iter().filter(|reply| reply.status == 200).count()), (1, 15), "{replies:?}");
        assert!(replies.iter().all(|reply| reply.text("job_id") == replies[0].text("job_id")), "{replies:?}");
    }
    assert_eq!(jobs(&fleet).await, 10);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_door_that_is_killed_before_its_answer_leaves_the_key_with_the_job() {
    let fleet = Fleet::new().await;
    let proxy = Proxy::to(&fleet.database.url).await;
    let url = proxy.through(&fleet.database.url);
    let door = fleet.door("door").set("DATABASE_URL", url);
    // A try that comes to nothing is soon over.
    let mut door = door.set("API_ANSWER_WITHIN_MS", 1_700).start().await;
    let api = Api::of(&door).await;
    let spec = json!({"agent_id": "echo", "input": "once"});
    // A connection on which the statements are not prepared yet gets no further than that.
    let mut tries = 0;
    let (key, lost) = loop {
        tries += 1;
        assert!(tries < 20, "no try got as far as the ledger");
        let ready = async || (submit(&api, "before", &spec).await.status < 300).then_some(());
        until("the door accepts", ready).await;
        proxy.set(Link::RepliesLost);
        let key = format!("k-{tries}");
        let lost = tokio::spawn({
            let (api, spec, key) = (api.clone(), spec.clone(), key.clone());
            async move {
                let headers = [JSON, ("idempotency-key", key.as_str())];
                api.try_send(Method::POST, "/v1/jobs", &headers, spec.to_string().into_bytes()).await
            }
        });
        let taken = format!("SELECT count(*) FROM harness_taken_keys WHERE key = '{key}'");
        while !lost.is_finished() && fleet.database.count(&taken).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if fleet.database.count(&taken).await == 1 {
            break (key, lost);
        }
        proxy.set(Link::Pass);
    };
    door.kill();
    // Without an answer, or with a 503 that was on its way.
    assert!(lost.await.expect("a task").map_or(true, |reply| reply.status == 503));
    let next = fleet.door("next").start().await;
    let api = Api::of(&next).await;
    let again = submit(&api, &key, &spec).await.is(200);
    let first = format!("SELECT job_id::text FROM harness_taken_keys WHERE key = '{key}'");
    assert_eq!(fleet.database.texts(&first).await, [again.text("job_id")]);
    assert_eq!(submit(&api, &key, &spec).await.is(200).text("job_id"), again.text("job_id"));
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(api.wait(&again.text("job_id")).await.is(200).text("state"), "succeeded");
    let keys = fleet.database.count("SELECT count(*) FROM harness_taken_keys").await;
    assert_eq!(jobs(&fleet).await, keys);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_unique_job_is_the_only_one_while_it_lives_and_for_its_window() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let spec = |input: i32, unique: Value| json!({"agent_id": "echo", "input": input, "unique": unique});
    let (alive, hour) = (json!({"key": "u"}), json!({"key": "w", "for_ms": 3_600_000}));
    let mut first = Vec::new();
    for unique in [&alive, &hour] {
        let job_id = api.submit(&spec(1, unique.clone())).await.is(202).text("job_id");
        // Another content is the same work.
        let second = submit(&api, &format!("again-{job_id}"), &spec(2, unique.clone())).await.is(200);
        assert_eq!((second.text("job_id"), second.header("found-by")), (job_id.clone(), "unique"));
        assert_eq!(second.header("idempotency-replayed"), "");
        first.push(job_id);
    }
    let _worker = fleet.worker("worker").start().await;
    for job_id in &first {
        api.wait(job_id).await.is(200);
    }
    // Its end has freed the one, and the other has its window.
    let next = api.submit(&spec(3, alive.clone())).await.is(202).text("job_id");
    assert_ne!(next, first[0]);
    let held = api.submit(&spec(3, hour.clone())).await.is(200);
    assert_eq!((held.text("job_id"), held.text("state")), (first[1].clone(), "succeeded".to_owned()));
    // A request that was led to a job is led there again, whatever has happened since.
    let led = submit(&api, &format!("again-{}", first[0]), &spec(2, alive.clone())).await.is(200);
    assert_eq!((led.text("job_id"), led.header("idempotency-replayed")), (first[0].clone(), "true"));
    fleet.database.execute("UPDATE harness_taken_keys SET expires_at = now() WHERE key = 'w'").await;
    api.submit(&spec(3, hour)).await.is(202);
    // The two kinds of keys do not meet.
    submit(&api, "u", &json!({"agent_id": "echo"})).await.is(202);
    for (wrong, field) in [
        (json!("u"), "unique"),
        (json!({}), "unique.key"),
        (json!({"key": ""}), "unique.key"),
        (json!({"key": "u", "for": 1}), "unique.for"),
        (json!({"key": "u", "for_ms": 2_592_000_001_u64}), "unique.for_ms"),
    ] {
        api.submit(&spec(1, wrong)).await.problem(422, Some(field));
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn each_job_of_a_batch_has_keys_of_its_own() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let batch = json!([
        {"agent_id": "echo", "input": 0, "idempotency_key": "a"},
        {"agent_id": "echo", "input": 0, "idempotency_key": "a"},
        {"agent_id": "echo", "input": 1, "idempotency_key": "a"},
        {"agent_id": "echo", "input": 2, "unique": {"key": "a"}},
        {"agent_id": "echo", "input": 3, "unique": {"key": "a"}, "idempotency_key": "b"},
        {"agent_id": "echo", "input": 4},
    ]);
    let answers = api.post("/v1/jobs/batch", &batch).await.is(200).json();
    let seen = |answers: &Value| -> Vec<(u64, String)> {
        let items = answers["items"].as_array().expect("items").iter();
        items
            .map(|item| {
                (item["status"].as_u64().unwrap(), item["found_by"].as_str().unwrap_or("").to_owned())
            })
            .collect()
    };
    let of = |expected: &[(u64, &str)]| -> Vec<(u64, String)> {
        expected.iter().map(|(status, by)| (*status, (*by).to_owned())).collect()
    };
    let expected =
        of(&[(202, ""), (200, "idempotency_key"), (409, ""), (202, ""), (200, "unique"), (202, "")]);
    assert_eq!(seen(&answers), expected, "{answers}");
    assert_eq!(answers["items"][0]["job_id"], answers["items"][1]["job_id"]);
    assert_eq!(answers["items"][3]["job_id"], answers["items"][4]["job_id"]);
    let again = api.post("/v1/jobs/batch", &batch).await.is(200).json();
    let expected = of(&[
        (200, "idempotency_key"),
        (200, "idempotency_key"),
        (409, ""),
        (200, "unique"),
        (200, "idempotency_key"),
        (202, ""),
    ]);
    assert_eq!(seen(&again), expected, "{again}");
    let headers = [JSON, ("idempotency-key", "k")];
    let refused = api.send(Method::POST, "/v1/jobs/batch", &headers, b"[]".to_vec()).await;
    refused.problem(422, Some("idempotency-key"));

    // An id of the caller's own and a key go together, as in a single request.
    let own = JobId::now().to_string();
    let with_id = json!([{"agent_id": "echo", "job_id": own, "idempotency_key": "c"}]);
    for expected in [(202, ""), (200, "idempotency_key")] {
        let answers = api.post("/v1/jobs/batch", &with_id).await.is(200).json();
        assert_eq!(seen(&answers), of(&[expected]), "{answers}");
    }

    // Many of one key, and order within a session.
    let lines: String = (0..600)
        .map(|n| {
            format!(
                "{{\"agent_id\":\"echo\",\"session_id\":\"s\",\"input\":{n},\"unique\":{{\"key\":\"m-{}\"}}}}\n",
                if n % 3 == 0 { n } else { 1 }
            )
        })
        .collect();
    let answers = api
        .send(Method::POST, "/v1/jobs/batch", &[("content-type", "application/x-ndjson")], lines.into_bytes())
        .await
        .is(200)
        .json();
    assert_eq!((&answers["accepted"], &answers["complete"]), (&json!(600), &json!(true)), "{answers}");
    let inputs = "SELECT message ->> 'input' FROM harness_jobs WHERE session_id = 's' ORDER BY seq";
    let inputs: Vec<i32> =
        fleet.database.texts(inputs).await.iter().map(|n| n.parse().expect("a number")).collect();
    assert_eq!(inputs.len(), 201);
    assert!(inputs.is_sorted(), "{inputs:?}");
    fleet.database.audited().await;
}
