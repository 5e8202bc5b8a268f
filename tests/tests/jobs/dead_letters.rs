//! Final failures are listed in one place, and each can be run again once or dropped. A job whose message was given up,
//! by the broker or by a worker, fails instead of waiting for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use job::{FailureCode, JobId, JobSpec, JobState, Name};
use lapin::options::{BasicGetOptions, BasicPublishOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use queue::{DEAD_QUEUE, DEAD_SWEEP_QUEUE, JOBS_EXCHANGE};
use serde_json::{Value, json};
use store::{End, Fenced, Unwanted};
use tests::{Database, Fleet, Ran, Runner, claimed, job, until};

/// A job that fails at its first attempt.
fn failing(session: &str) -> JobSpec {
    job(session, "scripted", json!({"iterations": [{"fail": {"message": "it breaks", "retryable": false}}]}))
}

/// A body that is not a job, but whose session can be read.
fn undecodable(session: &str) -> Vec<u8> {
    let mut body: Value = serde_json::from_str(&job::encode(&job(session, "echo", json!(1)))).expect("JSON");
    body["timeout_ms"] = json!(-1);
    body.to_string().into_bytes()
}

async fn dead(fleet: &Fleet, arguments: &[&str]) -> Ran {
    fleet.producer(&[&["dead"], arguments].concat()).await
}

async fn listed(fleet: &Fleet, arguments: &[&str]) -> Vec<Value> {
    let ran = dead(fleet, &[&["list", "--json"], arguments].concat()).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()
}

/// One field of each entry, sorted.
fn each(list: &[Value], field: &str) -> Vec<String> {
    let mut texts: Vec<String> =
        list.iter().map(|it| it[field].as_str().unwrap_or_default().to_owned()).collect();
    texts.sort();
    texts
}

/// Waits until this many messages are in `harness.dead`.
async fn buried(fleet: &Fleet, count: usize) {
    fleet.vhost.so_many_dead_letters(count).await;
}

async fn confirming(fleet: &Fleet) -> (lapin::Connection, Channel) {
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(Default::default()).await.expect("confirms");
    (connection, channel)
}

/// Publishes as a foreign client, and waits for the confirm.
async fn publish(channel: &Channel, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) {
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
    assert!(sent.expect("published").await.expect("an answer").is_ack());
}

/// Takes a message from a queue and rejects it.
async fn reject(channel: &Channel, queue: &str) {
    let get = async || channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("an answer");
    let message = until("the message", get).await;
    let options = BasicRejectOptions { requeue: false };
    channel.basic_reject(message.delivery.delivery_tag, options).await.expect("rejected");
}

/// Sets up two failed jobs (one of an unknown agent, which leaves a letter) and two messages that are not jobs.
async fn fleet_with_dead_letters(fleet: &Fleet) -> (JobSpec, JobSpec) {
    let (failed, unknown) = (failing("failing"), job("unknown", "nobody", json!(1)));
    let worker = fleet.worker("worker").start().await;
    fleet.enqueue(std::slice::from_ref(&failed)).await;
    let properties = BasicProperties::default;
    let bodies = [job::encode(&unknown).into_bytes(), undecodable("unread"), b"{".to_vec()];
    fleet.vhost.publish(bodies.map(|body| (body, properties())).to_vec()).await;
    fleet.ended(failed.job_id).await;
    assert_eq!(fleet.ended(unknown.job_id).await.state, JobState::Failed);
    buried(fleet, 3).await;
    drop(worker);
    (failed, unknown)
}

#[tokio::test]
async fn failed_jobs_and_undecodable_messages_are_one_list_that_filters_cut() {
    let fleet = Fleet::new().await;
    let (failed, unknown) = fleet_with_dead_letters(&fleet).await;

    let all = listed(&fleet, &[]).await;
    assert_eq!(each(&all, "kind"), ["job", "job", "message", "message"], "{all:?}");
    let jobs = listed(&fleet, &["--kind", "job"]).await;
    let mut ids = [failed.job_id.to_string(), unknown.job_id.to_string()];
    ids.sort();
    assert_eq!(each(&jobs, "id"), ids);
    assert_eq!(each(&jobs, "code"), ["harness_error", "unknown_agent"]);
    for (flags, sessions) in [
        (&["--kind", "message"][..], &["", "unread"][..]),
        (&["--code", "undecodable"], &["", "unread"]),
        (&["--code", "unknown_agent"], &["unknown"]),
        (&["--session", "unread"], &["unread"]),
        (&["--session", "failing"], &["failing"]),
        (&["--agent", "nobody"], &["unknown"]),
        (&["--agent", "echo"], &["unread"]),
        (&["--pool", "default"], &["", "failing", "unknown", "unread"]),
        (&["--pool", "other"], &[]),
        (&["--since", "1h"], &["", "failing", "unknown", "unread"]),
        (&["--before", "1h"], &[]),
        (&["--code", "undecodable", "--session", "failing"], &[]),
    ] {
        assert_eq!(each(&listed(&fleet, flags).await, "session_id"), sessions, "{flags:?}");
    }
    let died: Vec<u64> = all.iter().map(|it| it["dead_at_unix_ms"].as_u64().expect("a time")).collect();
    assert!(died.is_sorted(), "oldest first: {died:?}");

    let table = dead(&fleet, &["list", "--limit", "3"]).await;
    assert!(table.err.contains("3 of 4 dead letters"), "{table:?}");
    let table = dead(&fleet, &["list"]).await;
    assert!(table.err.contains("4 of 4 dead letters"), "{table:?}");
    for id in each(&all, "id") {
        assert!(table.out.contains(&id), "{id}: {table:?}");
        let shown = dead(&fleet, &["show", &id, "--json"]).await;
        assert_eq!((shown.code, shown.json()[0]["id"].as_str()), (0, Some(id.as_str())), "{shown:?}");
    }
    let shown = &dead(&fleet, &["show", &failed.job_id.to_string(), "--json"]).await.json()[0];
    assert_eq!(shown["envelope"]["input"], serde_json::from_str::<Value>(failed.input.as_str()).unwrap());
    assert_eq!((&shown["reason"], &shown["result"]["attempts"]), (&json!("it breaks"), &json!(1)), "{shown}");
    let none = dead(&fleet, &["show", &JobId::now().to_string()]).await;
    assert_eq!(none.code, 1, "{none:?}");
    // Looking removes nothing.
    fleet.vhost.so_many_dead_letters(3).await;
}

#[tokio::test]
async fn a_failed_job_is_redriven_once_however_many_ask_for_it() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let (_connection, channel) = confirming(&fleet).await;
    channel.queue_declare("replies".into(), Default::default(), Default::default()).await.unwrap();
    let failed = JobSpec { reply_to: Some("replies".to_owned()), ..failing("s") };
    let id = failed.job_id.to_string();
    fleet.enqueue(std::slice::from_ref(&failed)).await;
    fleet.ended(failed.job_id).await;

    let redrive = async || dead(&fleet, &["redrive", &id]).await;
    let (one, other) = tokio::join!(redrive(), redrive());
    let mut codes = [one.code, other.code];
    codes.sort();
    assert_eq!(codes, [0, 3], "{one:?} {other:?}");
    let done = if one.code == 0 { one } else { other };
    let new = done.out.trim().strip_prefix(&format!("{id} redriven as ")).expect(&done.out).to_owned();
    assert_eq!(fleet.ended(new.parse().unwrap()).await.state, JobState::Failed, "it does the same work");
    worker.counted(r#"harness_requests_total{outcome="failed"}"#, 2.0).await;
    let again = redrive().await;
    assert_eq!(again.code, 3);
    assert!(again.err.contains(&format!("was redriven before, as {new}")), "{again:?}");
    assert_eq!(each(&listed(&fleet, &[]).await, "id"), [new.as_str()], "the old one is settled");
    let shown = dead(&fleet, &["show", &id, "--json"]).await.json();
    assert_eq!(shown[0]["redriven_as"], json!(new));

    // The caller recognises the reply.
    for (job_id, correlation) in [(&id, &id), (&new, &id)] {
        let get = async || channel.basic_get("replies".into(), Default::default()).await.unwrap();
        let reply = until("the reply", get).await.delivery;
        assert_eq!(reply.properties.message_id().as_ref().unwrap().as_str(), job_id);
        assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), correlation);
    }
    let succeeded = job("t", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&succeeded)).await;
    fleet.ended(succeeded.job_id).await;
    let ran = dead(&fleet, &["redrive", &succeeded.job_id.to_string(), "no-such-id"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("it has not failed: succeeded"), "{ran:?}");
    assert!(ran.err.contains("no-such-id: no such dead letter"), "{ran:?}");
}

#[tokio::test]
async fn when_redrives_and_a_drop_race_only_one_counts() {
    let database = Database::new().await;
    let (store, other) = (database.store(), database.store());
    let runner = Runner::register(&store).await;
    let mut dropped = 0;
    for round in 0..30 {
        let spec = job(&format!("s-{round}"), "echo", json!(1));
        let run = claimed(runner.claim(&spec).await.unwrap());
        let failure = job::Failure::permanent(FailureCode::HarnessError, "x");
        let end = store.conclude(runner.conclusion(&run, End::Failed(failure))).await.unwrap();
        assert_eq!(end.recorded, Fenced::Done(()));
        let again = || [(spec.job_id, JobSpec { job_id: JobId::now(), ..spec.clone() })];
        let (first, second, ids) = (again(), again(), [spec.job_id]);
        let (first, second, dismissed) = tokio::join!(
            store.redrive("a test", &first),
            other.redrive("a test", &second),
            store.dismiss("a test", &ids)
        );
        let (first, second, dismissed) = (first.unwrap(), second.unwrap(), dismissed.unwrap());
        assert_eq!(first.len() + second.len() + dismissed.len(), 1, "{first:?} {second:?} {dismissed:?}");
        dropped += dismissed.len() as i64;
    }
    let open = "SELECT count(*) FROM harness_results WHERE redriven_as IS NULL AND dismissed_at IS NULL";
    assert_eq!(database.count(open).await, 0);
    let new = "SELECT count(*) FROM harness_jobs j JOIN harness_results r ON r.redriven_as = j.job_id
                WHERE j.state = 'publishing' AND r.dismissed_at IS NULL";
    assert_eq!(database.count(new).await, 30 - dropped);
}

#[tokio::test]
async fn what_no_worker_could_use_runs_when_there_is_one_that_can() {
    let fleet = Fleet::new().await;
    // Accepts at most a kilobyte, and does not know the agent.
    let mut first = fleet.worker("first").set("MAX_MESSAGE_BYTES", 1_024).start().await;
    let unknown = job("unknown", "late", json!(1));
    let large = job("large", "echo", json!("x".repeat(2_000)));
    fleet.enqueue(std::slice::from_ref(&unknown)).await;
    fleet.vhost.publish(vec![(job::encode(&large).into_bytes(), Default::default())]).await;
    fleet.ended(unknown.job_id).await;
    buried(&fleet, 2).await;
    first.terminate();
    assert_eq!(first.exit().await, 0);

    let late =
        fleet.program("late", "#!/bin/sh\nread line\necho '{\"type\":\"result\",\"output\":\"here\"}'\n");
    let agents = fleet.agents(&[("echo", ""), ("late", &late)]);
    let _second = fleet.worker("second").set("AGENTS_FILE", agents).start().await;
    let ran = dead(&fleet, &["redrive", "--all", "--yes", "--json"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.json();
    assert_eq!(each(&report, "fate"), ["cleared", "redriven", "returned"], "{report:?}");
    let redriven = report.iter().find(|line| line["fate"] == "redriven").unwrap();
    assert_eq!((&redriven["kind"], &redriven["id"]), (&json!("job"), &json!(unknown.job_id)));
    let new: JobId = redriven["redriven_as"].as_str().unwrap().parse().unwrap();
    assert_eq!(fleet.ended(new).await.output.unwrap().as_str(), r#""here""#);
    assert_eq!(
        fleet.ended(large.job_id).await.state,
        JobState::Succeeded,
        "the same message, so the same id"
    );
    assert_eq!(fleet.vhost.dead_letters().await, []);
    assert_eq!(listed(&fleet, &[]).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_dry_run_shows_all_and_changes_nothing() {
    let fleet = Fleet::new().await;
    let (failed, unknown) = fleet_with_dead_letters(&fleet).await;
    let before = each(&listed(&fleet, &[]).await, "id");
    for act in ["redrive", "drop"] {
        let ran = dead(&fleet, &[act, "--all", "--dry-run", "--json"]).await;
        let report = ran.json();
        let dispositions =
            if act == "drop" { ["dropped"; 4] } else { ["kept", "kept", "redriven", "redriven"] };
        assert_eq!(each(&report, "fate"), dispositions, "{report:?}");
        assert_eq!(ran.code, if act == "drop" { 0 } else { 3 }, "{ran:?}");
        let one = dead(&fleet, &[act, "--dry-run", &failed.job_id.to_string()]).await;
        assert_eq!(one.code, 0, "{one:?}");
        assert!(one.err.contains("would be"), "{one:?}");
        // A missing choice, everything without --yes, and filters without effect are refused.
        let id = unknown.job_id.to_string();
        for wrong in [&[act, "--all"][..], &[act], &[act, &id, "--all"], &[act, &id, "--kind", "job"]] {
            let ran = dead(&fleet, wrong).await;
            assert_eq!(ran.code, 2, "{wrong:?} {ran:?}");
        }
    }
    assert_eq!(each(&listed(&fleet, &[]).await, "id"), before);
    fleet.vhost.so_many_dead_letters(3).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
}

#[tokio::test]
async fn what_is_dropped_leaves_the_list_and_a_job_keeps_its_result() {
    let fleet = Fleet::new().await;
    let (failed, unknown) = fleet_with_dead_letters(&fleet).await;
    let message = listed(&fleet, &["--session", "unread"]).await[0]["id"].as_str().unwrap().to_owned();
    let ids = [unknown.job_id.to_string(), message];
    let ran = dead(&fleet, &["drop", &ids[0], &ids[1]]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    // The job's letter goes with it.
    fleet.vhost.so_many_dead_letters(1).await;
    assert_eq!(each(&listed(&fleet, &[]).await, "session_id"), ["", "failing"]);
    assert_eq!(fleet.view(unknown.job_id).await.unwrap().state, JobState::Failed);
    let again = dead(&fleet, &["drop", &ids[0], &ids[1]]).await;
    assert_eq!(again.code, 1, "the message is gone: {again:?}");
    assert!(again.err.contains("was dropped before"), "{again:?}");
    let redrive = dead(&fleet, &["redrive", &ids[0]]).await;
    assert_eq!(redrive.code, 3, "{redrive:?}");

    let rest = dead(&fleet, &["drop", "--all", "--since", "1h"]).await;
    assert_eq!(rest.code, 0, "{rest:?}");
    assert!(rest.err.contains("2 letters dropped"), "{rest:?}");
    assert_eq!(listed(&fleet, &[]).await, Vec::<Value>::new());
    assert_eq!(fleet.view(failed.job_id).await.unwrap().state, JobState::Failed);
    assert_eq!(fleet.vhost.dead_letters().await, []);
}

#[tokio::test]
async fn good_messages_are_found_among_thousands_of_malformed_ones() {
    const MALFORMED: usize = 3_000;
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let good: Vec<JobSpec> = (0..30).map(|n| job(&format!("s-{n}"), "echo", json!(n))).collect();
    let (_connection, channel) = confirming(&fleet).await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    for n in 0..MALFORMED {
        let mut headers = FieldTable::default();
        headers.insert("x-harness-reason".into(), text("body: no JSON"));
        headers.insert("x-harness-code".into(), text("undecodable"));
        headers.insert("x-harness-queue".into(), text("harness.jobs.default"));
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        let body = format!("{{ {n}");
        let key = DEAD_QUEUE.into();
        channel.basic_publish("".into(), key, options, body.as_bytes(), properties).await.expect("sent");
        if n % (MALFORMED / good.len()) == 7 {
            let body = job::encode(&good[n / (MALFORMED / good.len())]);
            publish(&channel, JOBS_EXCHANGE, "nowhere", body.as_bytes(), Default::default()).await;
        }
    }
    channel.wait_for_confirms().await.expect("confirms");

    let kept = dead(&fleet, &["redrive", "--all", "--code", "unroutable"]).await;
    assert_eq!(kept.code, 3, "{kept:?}");
    assert!(kept.err.contains("--to-pool") && kept.err.contains("30 letters kept"), "{kept:?}");
    let ran = dead(&fleet, &["redrive", "--all", "--yes", "--to-pool", "default"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("30 messages returned") && ran.err.contains("3000 letters kept"), "{ran:?}");
    assert!(ran.err.lines().count() < 40, "not a line for each: {}", ran.err);
    for spec in &good {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    let broker = fleet.vhost.broker().await;
    assert_eq!(broker.dead_letter_count().await.unwrap(), MALFORMED as u64, "and none has come back");
    let table = dead(&fleet, &["list", "--limit", "10"]).await;
    assert!(table.err.contains("10 of up to 3000 dead letters"), "{table:?}");
    let dropped = dead(&fleet, &["drop", "--all", "--code", "undecodable"]).await;
    assert_eq!(dropped.code, 0, "{dropped:?}");
    assert!(dropped.err.contains("3000 letters dropped"), "{dropped:?}");
    assert_eq!(broker.dead_letter_count().await.unwrap(), 0);
    broker.close().await;
}

#[tokio::test]
async fn a_job_whose_message_is_rejected_fails_with_the_reason_and_is_one_dead_letter() {
    let fleet = Fleet::new().await;
    // This worker relays, but serves another pool.
    let worker = fleet.worker("worker").start().await;
    let (_connection, channel) = confirming(&fleet).await;
    channel.queue_declare("replies".into(), Default::default(), Default::default()).await.unwrap();
    let rejected = JobSpec {
        pool: "elsewhere".parse().unwrap(),
        reply_to: Some("replies".to_owned()),
        ..job("s", "echo", json!(1))
    };
    let behind = job("s", "echo", json!(2));
    fleet.enqueue(&[rejected.clone(), behind.clone()]).await;
    reject(&channel, "harness.jobs.elsewhere").await;

    let view = fleet.ended(rejected.job_id).await;
    let failure = view.failure.expect("a failure");
    assert_eq!((view.state, failure.code), (JobState::Failed, FailureCode::DeadLettered));
    assert!(failure.message.contains("harness.jobs.elsewhere (rejected)"), "{failure:?}");
    assert_eq!(fleet.ended(behind.job_id).await.state, JobState::Succeeded, "the session goes on");
    let get = async || channel.basic_get("replies".into(), Default::default()).await.unwrap();
    let reply: Value = serde_json::from_slice(&until("the reply", get).await.delivery.data).unwrap();
    assert_eq!(reply["failure"]["code"], "dead_lettered");
    worker.said("its message is a dead letter").await;
    let list = listed(&fleet, &[]).await;
    assert_eq!((list.len(), &list[0]["kind"], &list[0]["code"]), (1, &json!("job"), &json!("dead_lettered")));
    fleet.vhost.so_many_dead_letters(1).await;

    // Of a message that the ledger has never seen, only the letter is known. It goes back to its queue.
    let stranger = job("t", "echo", json!(3));
    let body = job::encode(&stranger);
    publish(&channel, JOBS_EXCHANGE, "elsewhere", body.as_bytes(), Default::default()).await;
    reject(&channel, "harness.jobs.elsewhere").await;
    buried(&fleet, 2).await;
    let ran = dead(&fleet, &["redrive", "--all", "--yes", "--to-pool", "default", "--json"]).await;
    assert_eq!(
        (ran.code, each(&ran.json(), "fate")),
        (0, ["cleared", "redriven", "returned"].map(str::to_owned).to_vec())
    );
    assert_eq!(fleet.ended(stranger.job_id).await.state, JobState::Succeeded);
    assert_eq!(fleet.vhost.dead_letters().await, []);
}

#[tokio::test]
async fn a_job_whose_message_the_worker_cannot_use_fails_once_and_its_callers_hear_of_it() {
    let fleet = Fleet::new().await;
    let (_connection, channel) = confirming(&fleet).await;
    channel.queue_declare("replies".into(), Default::default(), Default::default()).await.unwrap();
    // The producer accepts a megabyte.
    let worker = fleet.worker("worker").set("MAX_MESSAGE_BYTES", 1_024).start().await;
    let large =
        JobSpec { reply_to: Some("replies".to_owned()), ..job("s", "echo", json!("x".repeat(2_000))) };
    let (id, behind) = (large.job_id.to_string(), job("s", "echo", json!(2)));
    fleet.enqueue(&[large.clone(), behind.clone()]).await;

    let waited = fleet.producer(&["wait", &id, "--json"]).await;
    assert_eq!(
        (waited.code, &waited.json()[0]["failure"]["code"]),
        (1, &json!("dead_lettered")),
        "{waited:?}"
    );
    let reason = waited.json()[0]["failure"]["message"].as_str().unwrap().to_owned();
    let report = format!("body: got {} bytes, expected at most 1024", job::encode(&large).len());
    assert_eq!(reason, report);
    let get = async || channel.basic_get("replies".into(), Default::default()).await.unwrap();
    let reply: Value = serde_json::from_slice(&until("the reply", get).await.delivery.data).unwrap();
    assert_eq!((&reply["job_id"], &reply["failure"]["message"]), (&json!(id), &json!(reason)));
    assert_eq!(fleet.ended(behind.job_id).await.state, JobState::Succeeded, "the session goes on");

    buried(&fleet, 1).await;
    let list = listed(&fleet, &[]).await;
    assert_eq!((each(&list, "id"), &list[0]["kind"]), (vec![id.clone()], &json!("job")), "{list:?}");
    let live = fleet.database.count("SELECT count(*) FROM harness_jobs").await;
    assert_eq!(live, 0, "so nothing is published again");
    worker.counted(r#"harness_dead_letters_total{code="undecodable"}"#, 1.0).await;
    drop(worker);

    let _roomy = fleet.worker("roomy").start().await;
    let ran = dead(&fleet, &["redrive", &id]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let new = ran.out.trim().strip_prefix(&format!("{id} redriven as ")).expect(&ran.out);
    assert_eq!(fleet.ended(new.parse().unwrap()).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_job_is_not_affected_by_what_a_foreign_client_publishes_under_its_id() {
    let fleet = Fleet::new().await;
    let (queued, running) = (
        job("queued", "echo", json!(1)),
        job("running", "scripted", json!({"iterations": [{}, {"delay_ms": 8_000}]})),
    );
    let garbage = |spec: &JobSpec| {
        let id = spec.job_id.to_string();
        let properties = || BasicProperties::default().with_message_id(id.as_str().into());
        let mut body: Value = serde_json::from_str(&job::encode(spec)).expect("JSON");
        body["timeout_ms"] = json!(-1);
        let padded = format!("{}{}", job::encode(spec), " ".repeat(2_000));
        [b"{".to_vec(), body.to_string().into_bytes(), padded.into_bytes()]
            .map(|body| (body, properties()))
            .to_vec()
    };
    drop(fleet.vhost.broker().await);
    // The message that is published first is refused first, while the job behind it waits for its own message.
    fleet.vhost.publish(garbage(&queued)).await;
    fleet.enqueue(std::slice::from_ref(&queued)).await;
    let worker = fleet.worker("worker").set("MAX_MESSAGE_BYTES", 1_024).set("WORKER_SLOTS", 1).start().await;
    assert_eq!(fleet.ended(queued.job_id).await.state, JobState::Succeeded);
    buried(&fleet, 3).await;
    drop(worker);

    let _worker = fleet.worker("worker").set("MAX_MESSAGE_BYTES", 1_024).set("WORKER_SLOTS", 2).start().await;
    fleet.enqueue(std::slice::from_ref(&running)).await;
    fleet.iterated(running.job_id, 1).await;
    fleet.vhost.publish(garbage(&running)).await;
    buried(&fleet, 6).await;
    assert_eq!(fleet.view(running.job_id).await.unwrap().state, JobState::Running);
    assert_eq!(fleet.ended(running.job_id).await.state, JobState::Succeeded);
    assert_eq!(listed(&fleet, &["--kind", "job"]).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_running_job_does_not_mind_the_death_of_another_copy_of_its_message() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 1).start().await;
    let spec = job("s", "scripted", json!({"iterations": [{}, {"delay_ms": 8_000}]}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 1).await;
    // Its only slot is busy, so the copy waits.
    fleet.vhost.publish(vec![(job::encode(&spec).into_bytes(), Default::default())]).await;
    let (_connection, channel) = confirming(&fleet).await;
    reject(&channel, "harness.jobs.default").await;
    buried(&fleet, 1).await;
    let broker = fleet.vhost.broker().await;
    let swept = async || (broker.depth(DEAD_SWEEP_QUEUE).await.unwrap()?.ready == 0).then_some(());
    until("a sweep finds it", swept).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    broker.close().await;
}

#[tokio::test]
async fn only_a_job_that_counts_on_its_message_fails_with_it() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let (pool, elsewhere): (Name, Name) = (Name::default(), "elsewhere".parse().unwrap());
    let dies_as = async |spec: &JobSpec, pool: &Name, body: &[u8]| {
        let why = Unwanted::DeadLettered { pool, body, reason: "it was rejected" };
        store.end_waiting(&[spec.job_id], why).await.expect("an answer").len()
    };
    let dies = async |spec: &JobSpec, pool: &Name| dies_as(spec, pool, job::encode(spec).as_bytes()).await;
    let [running, blocked, retried, published, queued] =
        ["a", "a", "b", "c", "d"].map(|session| job(session, "echo", json!(1)));
    let run = claimed(runner.claim(&running).await.unwrap());
    runner.claim(&blocked).await.unwrap();
    let again = claimed(runner.claim(&retried).await.unwrap());
    let later = End::Retry {
        failure: job::Failure::retryable(FailureCode::HarnessError, "x"),
        delay: Duration::from_secs(60),
    };
    store.conclude(runner.conclusion(&again, later)).await.unwrap();
    store.accept(&[published.clone(), queued.clone()]).await.unwrap();
    store.confirm(&[queued.job_id]).await.unwrap();
    for spec in [&running, &blocked, &retried] {
        assert_eq!(dies(spec, &pool).await, 0);
    }
    for spec in [&published, &queued] {
        assert_eq!(dies(spec, &elsewhere).await, 0, "that copy was in another pool's queue");
        for others in [b"\xff\0".to_vec(), format!("{} ", job::encode(spec)).into_bytes()] {
            assert_eq!(dies_as(spec, &pool, &others).await, 0, "that is not its message");
        }
        assert_eq!(dies(spec, &pool).await, 1);
        assert_eq!(dies(spec, &pool).await, 0, "once");
    }
    let lost = job("e", "echo", json!(1));
    store.accept(std::slice::from_ref(&lost)).await.unwrap();
    store.return_stuck(Duration::ZERO).await.unwrap();
    assert_eq!(dies(&lost, &pool).await, 1, "believed lost, and really dead");
    let states: BTreeSet<String> =
        database.texts("SELECT state FROM harness_jobs").await.into_iter().collect();
    assert_eq!(states, BTreeSet::from(["blocked", "running", "scheduled"].map(str::to_owned)));
    assert_eq!(runner.succeed(&run).await.unwrap().recorded, Fenced::Done(()));
}
