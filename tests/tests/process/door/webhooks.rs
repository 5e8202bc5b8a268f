//! An end is sent to the webhooks of its tenant: each kind of end, at least once, signed, and to no address inside.

mod large;
pub mod receiver;

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use job::{JobId, JobSpec};
use serde_json::{Value, json};
use store::Unwanted;
use tests::{Api, Database, Fleet, Launch, Worker, job, until, until_ok};
use uuid::Uuid;

use self::receiver::{Receiver, verified};

/// A door whose webhooks may be on this machine.
fn door(fleet: &Fleet, name: &str) -> Launch {
    fleet.door(name).set("WEBHOOK_ALLOW", "127.0.0.0/8")
}

/// Makes a webhook; returns its id and its secret.
async fn webhook(api: &Api, url: &str, more: Value) -> (String, String) {
    let mut wanted = json!({"url": url});
    if let (Some(wanted), Some(more)) = (wanted.as_object_mut(), more.as_object()) {
        wanted.extend(more.clone());
    }
    let made = api.post("/v1/webhooks", &wanted).await.is(201);
    assert_eq!(made.header("location"), format!("/v1/webhooks/{}", made.text("id")));
    (made.text("id"), made.text("secret"))
}

/// The deliveries of a webhook in this state.
async fn deliveries(api: &Api, id: &str, state: &str) -> Vec<Value> {
    let listed = api.get(&format!("/v1/webhooks/{id}/deliveries?state={state}")).await.is(200).json();
    listed["items"].as_array().expect("items").clone()
}

async fn delivered(api: &Api, id: &str, count: usize) {
    let look = async || {
        let done = deliveries(api, id, "delivered").await;
        if done.len() == count { Ok(()) } else { Err(done) }
    };
    until_ok(&format!("{count} are delivered"), look).await;
}

async fn submitted(api: &Api, spec: Value) -> JobId {
    api.submit(&spec).await.is(202).text("job_id").parse().expect("an id")
}

/// A program that asks a person.
const ASKING: &str = r#"#!/bin/sh
read line
echo '{"type": "ask", "call_id": "c", "kind": "question", "question": "which?"}'
"#;

/// How many of [`each_kind_of_end`] are failures: overdue, given up, invalid, of an unknown agent, rejected.
const FAILED: usize = 5;

/// Ends a job in each way that there is; returns their ids.
async fn each_kind_of_end(fleet: &Fleet, api: &Api) -> Vec<JobId> {
    // While they wait: cancelled, overdue, its message given up, never seen.
    let cancelled = submitted(api, json!({"agent_id": "echo"})).await;
    api.post(&format!("/v1/jobs/{cancelled}/cancel"), &json!(null)).await.is(200);
    let overdue = submitted(api, json!({"agent_id": "echo", "deadline_ms": 1})).await;
    assert_eq!(fleet.store.end_waiting(&[overdue], Unwanted::Overdue).await.expect("an answer").len(), 1);
    let dead = job("dead", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&dead)).await;
    let (body, pool) = (job::encode(&dead), dead.pool.clone());
    let given_up = Unwanted::DeadLettered { pool: &pool, body: body.as_bytes(), reason: "too often" };
    assert_eq!(fleet.store.end_waiting(&[dead.job_id], given_up).await.expect("an answer").len(), 1);
    // Enqueued by SQL, and no job; or another job holds its key.
    let mut never_jobs = Vec::new();
    for reason in ["agent_id: expected a name", "unique.key: its key is held"] {
        let never = job("never", "echo", json!(1));
        let each = [(never.job_id, reason.to_owned())];
        let why =
            if reason.starts_with("unique") { Unwanted::KeyHeld(&each) } else { Unwanted::Invalid(&each) };
        fleet.enqueue(std::slice::from_ref(&never)).await;
        let unstarted = "UPDATE harness_jobs SET state = 'scheduled', due_at = 'infinity'";
        fleet.database.execute(&format!("{unstarted} WHERE job_id = '{}'", never.job_id)).await;
        let ended = fleet.store.end_waiting(&[never.job_id], why).await.expect("an answer");
        assert_eq!(ended.len(), 1, "{why:?}");
        never_jobs.push(never.job_id);
    }
    let unseen = JobId::now();
    assert_eq!(fleet.producer(&["cancel", &unseen.to_string()]).await.code, 3, "it may be no job");

    let _worker = fleet.worker("worker").start().await;
    let succeeded = submitted(api, json!({"agent_id": "echo", "input": "what was said"})).await;
    let failed = submitted(api, json!({"agent_id": "nobody", "input": "what was said"})).await;
    let long = submitted(
        api,
        json!({"session_id": "busy", "agent_id": "scripted", "input": {"count": 9000, "delay_ms": 20}}),
    );
    let long = long.await;
    fleet.iterated(long, 1).await;
    let rejected = JobSpec { on_busy: job::OnBusy::Reject, ..job("busy", "echo", json!(1)) };
    fleet.enqueue(std::slice::from_ref(&rejected)).await;
    fleet.ended(rejected.job_id).await;
    api.post(&format!("/v1/jobs/{long}/cancel"), &json!(null)).await.is(202);
    // While they wait for a person: a later job of the session takes their place.
    let asking = fleet.program("asking", ASKING);
    let agents = fleet.agents(&[("asking", &asking), ("echo", "")]);
    let asker = fleet.worker("asker").set("AGENTS_FILE", agents).set("POOL", "asking").start().await;
    let mut gave_way = Vec::new();
    for on_busy in ["interrupt", "rollback"] {
        let ask = json!({"session_id": on_busy, "agent_id": "asking", "pool": "asking"});
        let waits = submitted(api, ask).await;
        until("it waits", async || {
            let state = api.get(&format!("/v1/jobs/{waits}")).await.text("state");
            (state == "awaiting_input").then_some(())
        })
        .await;
        let later = json!({"session_id": on_busy, "agent_id": "echo", "pool": "asking", "on_busy": on_busy});
        gave_way.extend([waits, submitted(api, later).await]);
    }
    let mut jobs = vec![cancelled, overdue, dead.job_id, unseen, succeeded, failed, long, rejected.job_id];
    jobs.extend(never_jobs.into_iter().chain(gave_way));
    for job_id in &jobs {
        fleet.ended(*job_id).await;
    }
    drop(asker);
    jobs
}

#[tokio::test]
async fn each_kind_of_end_is_delivered_once_and_verifies_although_two_doors_serve() {
    let fleet = Fleet::new().await;
    let (one, _two) = (door(&fleet, "one").start().await, door(&fleet, "two").start().await);
    let api = Api::of(&one).await;
    let (all, failures) = (Receiver::start().await, Receiver::start().await);
    let (all_id, secret) = webhook(&api, &all.url(), json!({})).await;
    let (failures_id, _) =
        webhook(&api, &failures.url(), json!({"states": ["failed"], "content": true})).await;
    let mut jobs = each_kind_of_end(&fleet, &api).await;
    delivered(&api, &all_id, jobs.len()).await;
    delivered(&api, &failures_id, FAILED).await;

    let received = all.received();
    let mut seen: Vec<JobId> = received.iter().map(|message| message.job_id()).collect();
    seen.sort();
    jobs.sort();
    assert_eq!(seen, jobs, "each once");
    for message in &received {
        let job_id = message.job_id();
        assert_eq!(message.header("webhook-id"), format!("{all_id}_{job_id}"));
        let body = message.json();
        let state = body["data"]["state"].as_str().expect("a state");
        assert_eq!(body["type"], format!("job.{state}"), "{body}");
        // It is what a key without the scope `content` is shown.
        assert!(!message.text().contains("what was said"), "{body}");
        let shown = api.get(&format!("/v1/jobs/{job_id}")).await.is(200).json();
        assert_eq!(body["data"]["failure"]["code"], shown["failure"]["code"], "{body}");
        for field in ["state", "attempts", "cost_usd", "finished_at", "output_sha256", "input_bytes"] {
            assert_eq!(body["data"][field], shown[field], "{field}: {body}");
        }
    }
    assert!(verified(&secret, &received[0], false) && verified(&secret, &received[7], false));
    assert!(!verified(&secret, &received[0], true), "another body does not verify");
    assert!(failures.received().iter().any(|message| message.text().contains("what was said")));
    let rights =
        "SELECT count(*) FROM harness_deliveries WHERE state = 'delivered' AND attempts = 1 AND status = 204";
    assert_eq!(fleet.database.count(rights).await, (jobs.len() + FAILED) as i64);
    fleet.database.audited().await;

    // An end without its delivery is a finding, and so is a delivery without an end.
    fleet.database.execute("UPDATE harness_webhooks SET enabled_since = now() - interval '1 day'").await;
    fleet.database.execute(&format!("DELETE FROM harness_deliveries WHERE job_id = '{}'", jobs[0])).await;
    let found = fleet.database.audit().await;
    let found = found.checks.iter().find(|checked| checked.check == "deliveries").expect("the check");
    assert!(found.offenders.iter().any(|offender| offender.id == jobs[0].to_string()), "{found:?}");
    // It is mended by a resend, under the same id.
    let again = format!("/v1/webhooks/{all_id}/resend");
    api.post(&again, &json!({"job_id": jobs[0]})).await.is(202);
    delivered(&api, &all_id, jobs.len()).await;
    let ids: Vec<String> = all.received().iter().map(|message| message.header("webhook-id")).collect();
    let wanted = format!("{all_id}_{}", jobs[0]);
    assert_eq!(ids.iter().filter(|id| **id == wanted).count(), 2, "{ids:?}");
}

#[tokio::test]
async fn a_receiver_that_was_down_gets_the_end_when_it_is_up_and_a_slow_one_holds_up_no_other() {
    let fleet = Fleet::new().await;
    let door = door(&fleet, "door").start().await;
    let api = Api::of(&door).await;
    let (mut down, slow, quick) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    down.stop().await;
    slow.hold();
    let (down_id, _) = webhook(&api, &down.url(), json!({})).await;
    let (slow_id, _) = webhook(&api, &slow.url(), json!({})).await;
    let (quick_id, _) = webhook(&api, &quick.url(), json!({})).await;
    for _ in 0..20 {
        let job_id = submitted(&api, json!({"agent_id": "echo"})).await;
        api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
    }
    // The slow one has answered nothing yet: it has eight places.
    delivered(&api, &quick_id, 20).await;
    assert_eq!(deliveries(&api, &slow_id, "delivered").await.len(), 0);
    let tried = async || {
        let waiting = deliveries(&api, &down_id, "pending").await;
        waiting.iter().find(|delivery| delivery["attempts"].as_i64() > Some(0)).cloned()
    };
    let tried = until("an attempt has failed", tried).await;
    assert!(tried["problem"].as_str().is_some_and(|problem| !problem.is_empty()), "{tried}");
    let failing = api.get(&format!("/v1/webhooks/{down_id}")).await.is(200).json();
    assert!(failing["failing_since"].is_string(), "{failing}");

    down.resume().await;
    slow.answer(204);
    // After a second attempt a delivery would wait for minutes.
    let due = format!(
        "UPDATE harness_deliveries SET due_at = now()
          WHERE webhook_id = '{down_id}' AND state = 'pending' AND taken_by IS NULL"
    );
    until("all are delivered", async || {
        fleet.database.execute(&due).await;
        (deliveries(&api, &down_id, "delivered").await.len() == 20).then_some(())
    })
    .await;
    let healthy = api.get(&format!("/v1/webhooks/{down_id}")).await.is(200).json();
    assert!(healthy["failing_since"].is_null(), "{healthy}");
    delivered(&api, &slow_id, 20).await;
    assert!(door.metric(r#"harness_webhook_deliveries_total{outcome="delivered"}"#).await >= 60.0);
    assert!(door.metric(r#"harness_webhook_deliveries_total{outcome="retried"}"#).await >= 1.0);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_sender_that_is_killed_before_it_noted_the_answer_leaves_the_end_to_the_next_under_the_same_id() {
    let fleet = Fleet::new().await;
    let mut first = door(&fleet, "first").start().await;
    let api = Api::of(&first).await;
    let receiver = Receiver::start().await;
    receiver.hold();
    let (id, secret) = webhook(&api, &receiver.url(), json!({})).await;
    let job_id = submitted(&api, json!({"agent_id": "echo"})).await;
    api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
    receiver.has(1).await;
    first.kill();
    first.ended().await;
    receiver.answer(204);
    // The time for which the first one had it is over.
    fleet.database.execute("UPDATE harness_leases SET expires_at = now()").await;
    fleet.database.execute("UPDATE harness_deliveries SET due_at = now()").await;
    let second = door(&fleet, "second").start().await;
    receiver.has(2).await;
    let received = receiver.received();
    assert_eq!(received[0].header("webhook-id"), received[1].header("webhook-id"));
    assert_eq!(received[0].text(), received[1].text());
    assert!(verified(&secret, &received[1], false));
    delivered(&Api::of(&second).await, &id, 1).await;
}

#[tokio::test]
async fn while_a_secret_is_replaced_both_sign() {
    let fleet = Fleet::new().await;
    let door = door(&fleet, "door").start().await;
    let api = Api::of(&door).await;
    let receiver = Receiver::start().await;
    let (id, old) = webhook(&api, &receiver.url(), json!({})).await;
    let rotate = format!("/v1/webhooks/{id}/rotate");
    let new = api.post(&rotate, &json!({})).await.is(200).text("secret");
    let end = async |count| {
        let job_id = submitted(&api, json!({"agent_id": "echo"})).await;
        api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
        receiver.has(count).await;
        receiver.received().remove(count - 1)
    };
    let both = end(1).await;
    assert!(verified(&old, &both, false) && verified(&new, &both, false));
    fleet.database.execute("UPDATE harness_webhooks SET old_secret_until = now()").await;
    let one = end(2).await;
    assert!(!verified(&old, &one, false) && verified(&new, &one, false));
    let shown = api.get("/v1/webhooks").await.is(200);
    assert!(!shown.body.contains("whsec_"), "{shown:?}");
    api.post(&rotate, &json!({"overlap_s": 99_999_999})).await.problem(422, Some("overlap_s"));
}

#[tokio::test]
async fn a_webhook_that_fails_for_five_days_or_is_gone_is_disabled() {
    let fleet = Fleet::new().await;
    let door = door(&fleet, "door").start().await;
    let api = Api::of(&door).await;
    let (failing, gone) = (Receiver::start().await, Receiver::start().await);
    failing.answer(500);
    let (failing_id, _) = webhook(&api, &failing.url(), json!({})).await;
    let end = async || {
        let job_id = submitted(&api, json!({"agent_id": "echo"})).await;
        api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
    };
    let is = async |id: &str, by: &str| {
        let look = async || {
            let shown = api.get(&format!("/v1/webhooks/{id}")).await.is(200).json();
            (shown["disabled_by"] == by || shown["failing_since"] == by).then_some(())
        };
        until(&format!("it is disabled: {by}"), look).await;
    };
    end().await;
    failing.has(1).await;
    let noted = "SELECT count(*) FROM harness_webhooks WHERE failing_since IS NOT NULL";
    until("the failure is noted", async || (fleet.database.count(noted).await == 1).then_some(())).await;
    fleet.database.execute("UPDATE harness_webhooks SET failing_since = now() - interval '5 days'").await;
    fleet.database.execute("UPDATE harness_deliveries SET due_at = now()").await;
    is(&failing_id, "failing").await;
    door.counted("harness_webhooks_disabled_total", 1.0).await;
    door.said("a webhook was disabled").await;

    gone.answer(410);
    let (gone_id, _) = webhook(&api, &gone.url(), json!({})).await;
    end().await;
    is(&gone_id, "gone").await;
    // No end is kept for one that is disabled, and what waited is sent when it is enabled.
    let written = format!("SELECT count(*) FROM harness_deliveries WHERE webhook_id = '{failing_id}'");
    assert_eq!(fleet.database.count(&written).await, 1);
    failing.answer(204);
    api.post(&format!("/v1/webhooks/{failing_id}/enable"), &json!(null)).await.is(200);
    fleet.database.execute("UPDATE harness_deliveries SET due_at = now()").await;
    delivered(&api, &failing_id, 1).await;

    // What was given up is listed, and can be sent again.
    let end_it = "UPDATE harness_deliveries SET state = 'failed', ended_at = now() WHERE webhook_id = ";
    fleet.database.execute(&format!("{end_it} '{failing_id}'")).await;
    let failed =
        fleet.producer(&["webhooks", "deliveries", &failing_id, "--state", "failed", "--json"]).await;
    assert_eq!(failed.json().len(), 1, "{failed:?}");
    assert_eq!(fleet.producer(&["webhooks", "resend", &failing_id, "--failed"]).await.code, 0);
    delivered(&api, &failing_id, 1).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn no_address_inside_is_reached() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let receiver = Receiver::start().await;
    for url in [
        receiver.url(),
        receiver.url().replace("http:", "https:"),
        "https://2130706433/".to_owned(),
        "https://[::ffff:127.0.0.1]/".to_owned(),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://10.0.0.1/".to_owned(),
        "https://user@example.com/".to_owned(),
        "http://example.com/".to_owned(),
    ] {
        api.post("/v1/webhooks", &json!({"url": url})).await.problem(422, Some("url"));
    }
    for (body, field) in [
        (json!({}), "url"),
        (json!({"url": "https://example.com/", "tenant": "x"}), "tenant"),
        (json!({"url": "https://example.com/", "states": ["running"]}), "states"),
        (json!({"url": "https://example.com/", "states": "failed"}), "body"),
        (json!({"url": "https://example.com/", "label": "a\nb"}), "label"),
    ] {
        api.post("/v1/webhooks", &body).await.problem(422, Some(field));
    }
    // A name leads to an address only when something is sent.
    let by_name = receiver.url().replace("127.0.0.1", "localhost").replace("http:", "https:");
    let (id, _) = webhook(&api, &by_name, json!({})).await;
    let tried = api.post(&format!("/v1/webhooks/{id}/test"), &json!(null)).await.is(200).json();
    assert_eq!(tried["delivered"], false, "{tried}");
    assert!(tried["problem"].as_str().is_some_and(|why| why.contains("public internet")), "{tried}");
    assert_eq!(receiver.connections(), 0);
    // What was made while it was allowed is refused as well when something is sent.
    fleet.database.execute(&format!("UPDATE harness_webhooks SET url = '{}'", receiver.url())).await;
    let tried = fleet.producer(&["webhooks", "test", &id]).await;
    assert_eq!((tried.code, receiver.connections()), (1, 0), "{tried:?}");
    let mut allowed = fleet.producer_command(&["webhooks", "test", &id]);
    allowed.env("WEBHOOK_ALLOW", "127.0.0.1");
    let tried = tests::Ran::of(allowed, "").await;
    assert_eq!((tried.code, receiver.received().len()), (0, 1), "{tried:?}");
    assert_eq!(receiver.received()[0].json()["type"], "webhook.test");
}

#[tokio::test]
async fn a_tenant_tries_two_webhooks_at_a_time_and_is_told_when_to_try_again() {
    let fleet = Fleet::new().await;
    let door = door(&fleet, "door").start().await;
    let (api, receiver) = (Api::of(&door).await, Receiver::start().await);
    let (id, _) = webhook(&api, &receiver.url(), json!({})).await;
    receiver.hold();
    let path = format!("/v1/webhooks/{id}/test");
    let trying = async || api.post(&path, &json!(null)).await;
    let two = async { tokio::join!(trying(), trying()) };
    let third = async {
        receiver.has(2).await;
        let refused = trying().await.problem(429, None);
        receiver.answer(204);
        refused
    };
    let ((one, other), refused) = tokio::join!(two, third);
    assert_eq!((one.is(200).json()["delivered"].take(), other.status), (json!(true), 200));
    let seen = (refused.text("type"), refused.header("retry-after").to_owned());
    assert_eq!(seen, ("urn:harness:too_many_tries".to_owned(), "5".to_owned()));
}

async fn caller(fleet: &Fleet, door: &Worker, tenant: &str, scopes: &str) -> Api {
    let _ = fleet.producer(&["tenants", "create", tenant]).await;
    let created = fleet.producer(&["keys", "create", "--tenant", tenant, "--scope", scopes]).await;
    assert_eq!(created.code, 0, "{created:?}");
    Api::of(door).await.with_key(created.out.trim())
}

#[tokio::test]
async fn another_tenant_s_webhook_is_answered_like_one_that_is_not_there() {
    let fleet = Fleet::new().await;
    let door = door(&fleet, "door").start().await;
    let acme = caller(&fleet, &door, "acme", "submit,read,operate").await;
    let other = caller(&fleet, &door, "other", "submit,read,content,operate,admin").await;
    let reads = caller(&fleet, &door, "acme", "read").await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&acme, &receiver.url(), json!({})).await;
    acme.post("/v1/webhooks", &json!({"url": receiver.url(), "content": true}))
        .await
        .problem(403, Some("content"));
    let theirs = submitted(&other, json!({"agent_id": "echo"})).await;
    other.post(&format!("/v1/jobs/{theirs}/cancel"), &json!(null)).await.is(200);
    let unknown = "wh_00000000000000000000000000000000";
    for (method, route, body) in [
        (Method::GET, "", json!(null)),
        (Method::DELETE, "", json!(null)),
        (Method::GET, "/deliveries", json!(null)),
        (Method::POST, "/enable", json!(null)),
        (Method::POST, "/disable", json!(null)),
        (Method::POST, "/rotate", json!({})),
        (Method::POST, "/test", json!(null)),
        (Method::POST, "/resend", json!({"job_id": theirs})),
    ] {
        let ask = async |caller: &Api, id: &str| {
            let json = [("content-type", "application/json")];
            let path = format!("/v1/webhooks/{id}{route}");
            caller.send(method.clone(), &path, &json, body.to_string().into_bytes()).await
        };
        let (there, not_there) = (ask(&other, &id).await.problem(404, None), ask(&other, unknown).await);
        assert_eq!((there.status, &there.body), (not_there.status, &not_there.body), "{route}");
        if method != Method::GET {
            ask(&reads, &id).await.problem(403, None);
        }
    }
    // Nor is another's job sent to one's own.
    acme.post(&format!("/v1/webhooks/{id}/resend"), &json!({"job_id": theirs})).await.problem(404, None);
    assert_eq!(other.get("/v1/webhooks").await.is(200).json()["items"], json!([]));
    let own = submitted(&acme, json!({"agent_id": "echo"})).await;
    acme.post(&format!("/v1/jobs/{own}/cancel"), &json!(null)).await.is(200);
    delivered(&acme, &id, 1).await;
    assert_eq!(receiver.received()[0].job_id(), own);
    let gone = acme.send(Method::DELETE, &format!("/v1/webhooks/{id}"), &[], Vec::new()).await;
    assert_eq!(gone.is(204).body, "");
    let log = fleet.producer(&["log", "--tenant", "acme"]).await;
    assert!(log.out.contains("webhook_created") && log.out.contains("webhook_removed"), "{log:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_was_given_up_is_sent_again_in_bounded_parts() {
    // Without a process that sends.
    let fleet = Fleet::new().await;
    assert_eq!(fleet.producer(&["webhooks", "add", "https://example.com/hook"]).await.code, 0);
    let id = fleet.database.texts("SELECT id FROM harness_webhooks").await.remove(0);
    let given_up = "
        INSERT INTO harness_deliveries (webhook_id, job_id, state, ended_at)
        SELECT id, overlay(gen_random_uuid()::text placing '7' from 15)::uuid, 'failed', now()
          FROM harness_webhooks, generate_series(1, 10007)";
    fleet.database.execute(given_up).await;
    let again = async || {
        let ran = fleet.producer(&["webhooks", "resend", &id, "--failed"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        (ran.out.trim().to_owned(), ran.err.contains("7 or more are left"))
    };
    assert_eq!(again().await, ("10000 deliveries are due again".to_owned(), true));
    assert_eq!(again().await, ("7 deliveries are due again".to_owned(), false));
    assert_eq!(again().await, ("0 deliveries are due again".to_owned(), false));
}

#[tokio::test]
async fn a_delivery_that_was_written_by_hand_stops_no_other() {
    let fleet = Fleet::new().await;
    let receiver = Receiver::start().await;
    let mut door = door(&fleet, "door").start().await;
    let api = Api::of(&door).await;
    let (id, _) = webhook(&api, &receiver.url(), json!({})).await;
    let by_hand = format!(
        "INSERT INTO harness_deliveries (webhook_id, job_id, due_at)
         SELECT '{id}', ('f47ac10b-58cc-4372-a567-0e02b2c3d4' || n)::uuid, now() FROM generate_series(10, 19) n"
    );
    fleet.database.execute(&by_hand).await;
    let job = submitted(&api, json!({"agent_id": "echo"})).await;
    api.post(&format!("/v1/jobs/{job}/cancel"), &json!(null)).await.is(200);
    delivered(&api, &id, 1).await;
    let look = async || (deliveries(&api, &id, "failed").await.len() == 10).then_some(());
    until("those without an end are given up", look).await;
    assert!(door.lives(), "{}", door.log());
    let audit = fleet.producer(&["audit"]).await;
    assert!(audit.out.contains("f47ac10b-58cc-4372-a567-0e02b2c3d410"), "{audit:?}");
}

#[tokio::test]
async fn slow_receivers_of_one_tenant_leave_places_for_the_others() {
    let database = Database::new().await;
    database
        .execute(
            "WITH w AS (
                INSERT INTO harness_webhooks (id, tenant, url, states, secret)
                SELECT format('wh_%s_%s', tenant, n), tenant, 'https://example.com/', ARRAY['failed'], 'whsec_'
                  FROM unnest(ARRAY['slow', 'slow', 'slow', 'other']) WITH ORDINALITY AS t(tenant, n) RETURNING id)
             INSERT INTO harness_deliveries (webhook_id, job_id) SELECT id, gen_random_uuid() FROM w, generate_series(1, 5)",
        )
        .await;
    let (store, sender) = (database.store(), Uuid::new_v4());
    let take = async |under_way: &[(String, u32)]| {
        let taking = store.take_deliveries(sender, under_way, [8, 6], 100, Duration::from_secs(60));
        let mut counts = BTreeMap::<String, u32>::new();
        for delivery in taking.await.expect("an answer") {
            *counts.entry(delivery.webhook_id).or_default() += 1;
        }
        counts
    };
    let of = |counts: &BTreeMap<String, u32>, tenant: &str| -> u32 {
        counts.iter().filter(|(id, _)| id.contains(tenant)).map(|(_, n)| n).sum()
    };
    let first = take(&[]).await;
    assert_eq!((of(&first, "slow"), of(&first, "other")), (6, 5), "{first:?}");
    let mut under_way: Vec<(String, u32)> = first.into_iter().collect();
    assert_eq!(of(&take(&under_way).await, "slow"), 0);
    under_way.retain(|(id, _)| !id.contains("other"));
    under_way[0].1 -= 1;
    assert_eq!(of(&take(&under_way).await, "slow"), 1, "one of them has ended");
}
