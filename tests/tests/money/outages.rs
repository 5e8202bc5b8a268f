//! Postgres away or slow while programs call models: without it no call begins, and none before what the program wrote
//! before it is durable.

use std::fs::read_to_string;
use std::path::PathBuf;

use job::{JobSpec, JobState};
use serde_json::{Value, json};
use sqlx::Connection;
use tests::provider::{PROVIDER_KEY, Provider};
use tests::{Fleet, Launch, Link, Proxy, job, until};

use crate::programs::fleet_and_provider;

/// Asks a model as often as its input says, and again and again where it is answered 503. It halts before the question
/// `halt` until it may go on, and writes a checkpoint before the question `checkpoint`. It counts in files what it meets.
const PATIENT: &str = r#"#!/usr/bin/env python3
import json, os, sys, time, urllib.error, urllib.request

asked = json.load(sys.stdin)["job"]["input"]

def note(what):
    with open(os.path.join(asked["folder"], what + "." + os.environ["HARNESS_SESSION_ID"]), "a") as file:
        file.write("x")

for number in range(asked["questions"]):
    if number == asked.get("halt"):
        note("halted")
        while not os.path.exists(os.path.join(asked["folder"], "go")):
            time.sleep(0.02)
    if number == asked.get("checkpoint"):
        print(json.dumps({"type": "checkpoint", "memory": {"written": number}}), flush=True)
        note("wrote")
    words = f"Question {number} of {os.environ['HARNESS_SESSION_ID']}"
    body = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": words}]}
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
        json.dumps(body).encode(),
        {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"},
    )
    while True:
        try:
            json.load(urllib.request.urlopen(request))
            break
        except urllib.error.HTTPError as refused:
            if refused.code != 503:
                print(json.dumps({"type": "error", "message": f"{refused.code} {refused.read().decode()}"}), flush=True)
                sys.exit(0)
            note("refused")
            time.sleep(0.05)
    note("answered")
print(json.dumps({"type": "result", "output": number}), flush=True)
"#;

struct Scene {
    fleet: Fleet,
    provider: Provider,
}

impl Scene {
    async fn new() -> Scene {
        let (fleet, provider) = fleet_and_provider().await;
        Scene { fleet, provider }
    }

    fn worker(&self) -> Launch {
        let program = self.fleet.program("patient", PATIENT);
        let agents = self.file("agents.toml");
        let toml = format!(
            "[agents.patient]\nharness = \"command\"\ncommand = [{program:?}]\nmodels = [\"claude-opus-5-5\"]\n"
        );
        std::fs::write(&agents, toml).expect("written");
        let launch = self.fleet.worker("worker").set("AGENTS_FILE", agents.display());
        launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", self.provider.base_url())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.fleet.folder.path().join(name)
    }

    fn job(&self, session: &str, mut input: Value) -> JobSpec {
        input["folder"] = json!(self.fleet.folder.path());
        job(session, "patient", input)
    }

    /// Waits until a program has met this so often.
    async fn noted(&self, what: &str, session: &str, times: usize) {
        let file = self.file(&format!("{what}.{session}"));
        let look = async || (read_to_string(&file).unwrap_or_default().len() >= times).then_some(());
        until(&format!("{session} has {what}"), look).await;
    }

    /// What the provider was asked in this session.
    fn asked_by(&self, session: &str) -> usize {
        let of_session = format!("of {session}\"");
        let asked = self.provider.asked();
        asked.iter().filter(|asked| String::from_utf8_lossy(&asked.body).contains(&of_session)).count()
    }
}

async fn no_call_begins_without_postgres(link: Link, refusals: usize) {
    let scene = Scene::new().await;
    let Scene { fleet, provider } = &scene;
    let proxy = Proxy::to(&fleet.database.url).await;
    // Its jobs stay its own, however long this takes.
    let launch = scene.worker().set("DATABASE_URL", proxy.through(&fleet.database.url)).set("LEASE_S", 120);
    let _worker = launch.start().await;
    let sessions = ["s-1", "s-2", "s-3"];
    let jobs = sessions.map(|session| scene.job(session, json!({"questions": 5, "halt": 2})));
    fleet.enqueue(&jobs).await;
    for session in sessions {
        scene.noted("halted", session, 1).await;
    }
    let before = (provider.bill_micros(), provider.asked().len());
    assert_eq!(before.1, 6);
    proxy.set(link);
    std::fs::write(scene.file("go"), "").expect("written");
    for session in sessions {
        scene.noted("refused", session, refusals).await;
    }
    assert_eq!((provider.bill_micros(), provider.asked().len()), before, "{link:?}");
    proxy.set(Link::Pass);
    for spec in &jobs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    }
    assert_eq!(provider.asked().len(), 15);
    // What was refused may have been held for a moment, and is free.
    let held = "SELECT count(*) FROM harness_calls WHERE state NOT IN ('settled', 'free')";
    until("nothing is held", async || (fleet.database.count(held).await == 0).then_some(())).await;
    let paid = fleet.database.count("SELECT sum(cost_microusd)::bigint FROM harness_calls").await;
    assert_eq!(paid, provider.bill_micros() as i64);
    fleet.database.audited().await;
}

#[tokio::test]
async fn while_postgres_is_away_no_call_begins_and_the_jobs_end_when_it_is_back() {
    no_call_begins_without_postgres(Link::Cut, 3).await;
}

#[tokio::test]
async fn while_postgres_is_silent_no_call_begins_and_the_jobs_end_when_it_answers() {
    no_call_begins_without_postgres(Link::Frozen, 1).await;
}

#[tokio::test]
async fn a_request_is_sent_when_the_checkpoint_that_was_written_before_it_is_durable() {
    let scene = Scene::new().await;
    let Scene { fleet, provider } = &scene;
    let _worker = scene.worker().start().await;
    let writes = scene.job("s-writes", json!({"questions": 3, "halt": 1, "checkpoint": 1}));
    let plain = scene.job("s-plain", json!({"questions": 10, "halt": 1}));
    fleet.enqueue(&[writes.clone(), plain.clone()]).await;
    for session in ["s-writes", "s-plain"] {
        scene.noted("halted", session, 1).await;
    }
    // From now on no checkpoint can be written. All else can.
    let mut slow = fleet.database.connect().await;
    let mut lock = slow.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE harness_checkpoints IN SHARE MODE").execute(&mut *lock).await.expect("locked");
    std::fs::write(scene.file("go"), "").expect("written");
    scene.noted("wrote", "s-writes", 1).await;
    // Nine answers of the other program take longer than a request needs that does not wait.
    scene.noted("answered", "s-plain", 10).await;
    assert_eq!(scene.asked_by("s-plain"), 10);
    assert_eq!(scene.asked_by("s-writes"), 1, "its checkpoint is not durable");
    let calls = format!("SELECT count(*) FROM harness_calls WHERE job_id = '{}'", writes.job_id);
    assert_eq!(fleet.database.count(&calls).await, 1, "and nothing is held for it");
    lock.rollback().await.expect("unlocked");
    for spec in [&writes, &plain] {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    }
    assert_eq!(scene.asked_by("s-writes"), 3);
    assert_eq!(fleet.view(writes.job_id).await.expect("its record").iterations, 1);
    assert_eq!(provider.findings().len(), 0);
    fleet.database.audited().await;
}
