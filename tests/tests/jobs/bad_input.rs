//! Promise 6: bad input is answered, kept and visible. It leads to a clear error or to a dead letter with its reason,
//! never to a loop, a silent drop or a crash.

use std::net::SocketAddr;
use std::time::Duration;

use job::{FailureCode, JobId, JobState};
use lapin::BasicProperties;
use serde_json::{Value, json};
use tests::{Database, Fleet, job, until};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};

/// A valid body with one field set to another value.
fn with(field: &str, value: Value) -> Vec<u8> {
    let mut body: Value = serde_json::from_str(&job::encode(&job("s", "echo", json!(1)))).expect("JSON");
    body[field] = value;
    body.to_string().into_bytes()
}

/// An id whose time is off by this many milliseconds.
fn id_off_by(ms: i64) -> String {
    let now = uuid::Uuid::from(JobId::now()).as_u128();
    let at = (now >> 80) as i64 + ms;
    uuid::Uuid::from_u128(((at as u128) << 80) | (now & ((1 << 80) - 1))).to_string()
}

#[tokio::test]
async fn every_bad_message_becomes_a_dead_letter_that_names_its_field_and_the_good_ones_go_on() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    const DAY_MS: i64 = 86_400_000;
    let bad: Vec<(Vec<u8>, &str)> = vec![
        (b"{not json".to_vec(), "body: "),
        (b"\xff\xfe".to_vec(), "body: not UTF-8"),
        (b"[1]".to_vec(), "body: "),
        (b"".to_vec(), "body: "),
        (with("input", json!("x".repeat(1024 * 1024))), "body: got 104"),
        (
            with("schema", json!("harness.job.v2")),
            "schema: got \"harness.job.v2\", expected \"harness.job.v1\"",
        ),
        (with("job_id", json!("0198c0de")), "job_id: "),
        (with("job_id", json!(id_off_by(-3 * DAY_MS))), "job_id: got "),
        (with("job_id", json!(id_off_by(DAY_MS + 600_000))), "job_id: got "),
        (with("session_id", json!(7)), "session_id: invalid type: integer `7`"),
        (with("session_id", json!("../x")), "session_id: got \"../x\""),
        (with("tenant", json!("a/b")), "tenant: got \"a/b\""),
        (with("agent_id", json!(null)), "agent_id: "),
        (with("user_id", json!("a\u{0}b")), "user_id: "),
        (with("input", json!("a\u{0}b")), "input: a string contains \\u0000"),
        (with("retry", json!({"max_attempts": "x"})), "retry.max_attempts: "),
        (with("retry", json!({"max_attempts": 0})), "retry.max_attempts: got 0, expected 1 to 100"),
        (with("timeout_ms", json!(0)), "timeout_ms: got 0"),
        (with("reply_to", json!("")), "reply_to: got \"\""),
    ];
    let good: Vec<_> = (0..bad.len()).map(|n| job(&format!("s-{}", n % 3), "echo", json!(n))).collect();
    let mut messages = Vec::new();
    for ((body, _), spec) in bad.iter().zip(&good) {
        messages.push((body.clone(), BasicProperties::default().with_app_id("a foreign client".into())));
        messages.push((job::encode(spec).into_bytes(), BasicProperties::default()));
    }
    // A message is found by its message id, so that must be the body's job id.
    let other = job("s", "echo", json!(1));
    let wrong_id = BasicProperties::default().with_message_id(JobId::now().to_string().into());
    messages.push((job::encode(&other).into_bytes(), wrong_id));
    fleet.vhost.publish(messages).await;
    for spec in &good {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }

    // An id that belongs to a job of another session.
    let mut taken = good[0].clone();
    taken.session_id = "thief".parse().unwrap();
    fleet.vhost.publish(vec![(job::encode(&taken).into_bytes(), BasicProperties::default())]).await;
    let (undecodable, id_taken) = (
        r#"harness_dead_letters_total{code="undecodable"}"#,
        r#"harness_dead_letters_total{code="job_id_taken"}"#,
    );
    worker.counted(id_taken, 1.0).await;
    worker.counted(undecodable, bad.len() as f64 + 1.0).await;

    let letters = fleet.vhost.dead_letters().await;
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(letters.len(), bad.len() + 2, "{reasons:?}");
    let report = |body: &[u8], reason: &str| {
        letters.iter().any(|letter| {
            letter.body == body
                && letter.reason.starts_with(reason)
                && letter.headers["x-harness-reason"] == letter.reason.as_str()
                && letter.headers["x-harness-queue"] == "harness.jobs.default"
                && letter.dead_at_unix_ms.is_some()
        })
    };
    for (body, reason) in &bad {
        let start = String::from_utf8_lossy(&body[..body.len().min(200)]);
        assert!(report(body, reason), "no dead letter \"{reason}\" for {start} in {reasons:?}");
    }
    assert!(report(job::encode(&other).as_bytes(), "message_id: got "), "{reasons:?}");
    let reason = format!("job_id: got {}, which is taken by a job of session s-0", taken.job_id);
    assert!(report(job::encode(&taken).as_bytes(), &reason), "{reasons:?}");
    // None of them is run, and none is delivered again.
    let results = fleet.database.count("SELECT count(*) FROM harness_results").await;
    assert_eq!(
        (results, fleet.database.count("SELECT count(*) FROM harness_jobs").await),
        (good.len() as i64, 0)
    );
    assert_eq!(worker.get("/ready").await.0, 200);
}

#[tokio::test]
async fn dead_letters_are_shown_to_people_and_to_programs() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let id = JobId::now().to_string();
    let properties = || BasicProperties::default().with_message_id(id.as_str().into());
    let bodies = [with("timeout_ms", json!(-1)), b"{".to_vec()];
    fleet.vhost.publish(bodies.iter().map(|body| (body.clone(), properties())).collect()).await;
    worker.said("timeout_ms").await;
    worker.said("body: ").await;

    let list = fleet.producer(&["dead", "list"]).await;
    assert_eq!(list.code, 0, "{list:?}");
    assert!(list.out.contains("timeout_ms") && list.out.contains("undecodable"), "{list:?}");
    assert!(list.err.contains("2 of 2 dead letters"), "{list:?}");
    let list = fleet.producer(&["dead", "list", "--json"]).await.json();
    let reason = list.iter().find(|letter| letter["body"].is_object()).unwrap()["reason"].as_str().unwrap();
    assert!(reason.starts_with("timeout_ms: "), "{reason}");

    for letter in ["1", id.as_str()] {
        let shown = fleet.producer(&["dead", "show", letter, "--json"]).await;
        assert_eq!((shown.code, &shown.json()[0]["message_id"]), (0, &json!(id)), "{shown:?}");
    }
    let none = fleet.producer(&["dead", "show", "3"]).await;
    assert_eq!(none.code, 1, "{none:?}");
    // Looking removes nothing.
    fleet.vhost.so_many_dead_letters(2).await;
}

#[tokio::test]
async fn a_worker_reports_all_wrong_settings_at_once() {
    let fleet = Fleet::new().await;
    let agents = fleet.folder.path().join("agents.toml");
    let text = "[agents.a]\nharness = 'ecko'\n[agents.b]\nharness = 'command'\ncommand = ['/no/agent']\ntimeout = 5\n";
    std::fs::write(&agents, text).unwrap();
    let mut worker = fleet
        .worker("worker")
        .set("AGENTS_FILE", agents.display())
        .set("POOL", "a b")
        .set("WORKER_SLOTS", 0)
        .set("LEASE_S", "ten")
        .set("LOG_JSON", "maybe")
        .set("ENVIRONMENT", "prod")
        .set("AMQP_URL", "http://user:secret@host/")
        .unset("DATABASE_URL")
        .launch();
    assert_eq!(worker.exit().await, 2);
    let log = worker.log();
    for report in [
        "8 settings are wrong",
        "AGENTS_FILE: ",
        "line 2: agents.a.harness: got \"ecko\", expected one of echo, scripted, command",
        "line 5: agents.b.command[0]: got \"/no/agent\", expected a program",
        "line 6: agents.b.timeout: unknown `timeout`, expected one of `command`, `env_allow`",
        "POOL: got \"a b\"",
        "WORKER_SLOTS: got 0, expected 1 to 1024",
        "LEASE_S: got \"ten\"",
        "LOG_JSON: got \"maybe\"",
        "ENVIRONMENT: got \"prod\", expected development, staging or production",
        "DATABASE_URL: not set, expected postgres://",
        "AMQP_URL does not start with amqp:// or amqps://",
    ] {
        assert!(log.contains(report), "{report} is not in: {log}");
    }
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn a_file_of_pools_is_refused_with_all_its_mistakes_and_an_address_with_the_right_one() {
    let fleet = Fleet::new().await;
    let pools = "[pools.a]\ntarget = 'worker'\npolicy.max_replica = 2\n[pools.b]\npolicy = { min_replicas = 'x' }\n\
                 [pools.c]\ntarget = 'process'\npolicy.max_replicas = 0\n[policies]\n";
    let mut autoscaler = fleet.autoscaler("autoscaler", pools).set("ADMIN_ADDR", ":8000").launch();
    assert_eq!(autoscaler.exit().await, 2);
    let log = autoscaler.log();
    for report in [
        "2 settings are wrong",
        "line 2: pools.a.target: got \"worker\"",
        "line 3: pools.a.policy.max_replica: unknown `max_replica`, expected one of `mode`, `min_replicas`",
        "line 4: pools.b: missing `target`",
        "line 5: pools.b.policy.min_replicas: invalid type: string \"x\", expected a whole number",
        "line 8: pools.c.policy.max_replicas: 0 allows no worker",
        "line 9: policies: unknown, expected policy or pools",
        "ADMIN_ADDR: got \":8000\", expected an IP address and a port, such as 0.0.0.0:8000",
    ] {
        assert!(log.contains(report), "{report} is not in: {log}");
    }
    let mut relay = fleet.relay("relay").set("ADMIN_ADDR", "localhost:8000").unset("AMQP_URL").launch();
    assert_eq!(relay.exit().await, 2);
    let log = relay.log();
    assert!(log.contains("ADMIN_ADDR: got \"localhost:8000\"") && log.contains("AMQP_URL: not set"), "{log}");
    let health = fleet.producer(&["health", "--admin-addr", "8000"]).await;
    assert_eq!(health.code, 2);
    assert!(health.err.contains("such as 0.0.0.0:8000"), "{health:?}");
}

#[tokio::test]
async fn without_the_schema_everything_says_how_to_get_it() {
    let fleet = Fleet::on(Database::empty().await);
    let mut worker = fleet.worker("worker").launch();
    assert_eq!(worker.exit().await, 1);
    assert!(worker.log().contains("run `producer migrate`"), "{}", worker.log());
    for command in [&["enqueue", "--session", "s", "--agent", "echo"][..], &["sessions", "show", "s"]] {
        let ran = fleet.producer(command).await;
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.contains("run `producer migrate`"), "{ran:?}");
    }
    let migrated = fleet.producer(&["migrate"]).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");
    assert!(migrated.out.contains("the schema is up to date"), "{migrated:?}");
    let _worker = fleet.worker("worker").start().await;
}

/// Reserves a port of this machine on which nothing listens yet, so that connections are refused.
fn closed_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = socket.local_addr().expect("its address");
    (socket, address)
}

#[tokio::test]
async fn a_worker_waits_for_services_that_are_away_and_says_which() {
    let fleet = Fleet::new().await;
    let ((broker, broker_port), (postgres, postgres_port)) = (closed_port(), closed_port());
    let amqp: lapin::uri::AMQPUri = fleet.vhost.url.parse().unwrap();
    let real_broker = format!("{}:{}", amqp.authority.host, amqp.authority.port);
    let real_postgres = fleet.database.url.split(['@', '/']).nth(3).unwrap().to_owned();
    let mut worker = fleet
        .worker("worker")
        .set("AMQP_URL", fleet.vhost.url.replace(&real_broker, &broker_port.to_string()))
        .set("DATABASE_URL", fleet.database.url.replace(&real_postgres, &postgres_port.to_string()))
        .launch();
    worker.said("reading the schema from Postgres failed, trying again").await;
    assert_eq!(worker.get("/health").await.0, 200);
    let (status, ready) = worker.get_json("/ready").await;
    assert_eq!((status, &ready["ready"]), (503, &json!(false)), "{ready}");
    assert_eq!(ready["checks"]["database_connected"], json!(false), "{ready}");
    assert_eq!(ready["checks"]["queue_consuming"], json!(false), "{ready}");

    // Both services come up, one after the other.
    tokio::spawn(forward(postgres, real_postgres));
    let database = async || {
        let (status, ready) = worker.get_json("/ready").await;
        (ready["checks"]["database_connected"] == true).then_some((status, ready))
    };
    let (status, ready) = until("Postgres is reached", database).await;
    assert_eq!((status, &ready["checks"]["queue_consuming"]), (503, &json!(false)), "{ready}");
    let reason = ready["reasons"]["queue_consuming"].as_str().unwrap();
    assert!(reason.contains("refused"), "{reason}");
    tokio::spawn(forward(broker, real_broker));
    worker.ready().await;
    let spec = job("s", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    worker.terminate();
    assert_eq!(worker.exit().await, 0);
}

/// Listens from now on and forwards every connection.
async fn forward(port: TcpSocket, to: String) {
    let listener = port.listen(64).expect("listening");
    while let Ok((mut here, _)) = listener.accept().await {
        let to = to.clone();
        tokio::spawn(async move {
            let mut there = TcpStream::connect(to).await.expect("the service");
            // Ends when either side ends, for any reason.
            let _ = copy_bidirectional(&mut here, &mut there).await;
        });
    }
}

#[tokio::test]
async fn a_worker_whose_services_never_come_ends_at_once_on_sigterm() {
    let fleet = Fleet::new().await;
    let (_reserved, port) = closed_port();
    let mut worker = fleet
        .worker("worker")
        .set("AMQP_URL", format!("amqp://u:p@{port}/v"))
        .set("DATABASE_URL", format!("postgres://u:p@{port}/d"))
        .launch();
    worker.said("trying again").await;
    worker.terminate();
    assert_eq!(worker.exit_within(Duration::from_secs(12)).await, 0);
}

#[tokio::test]
async fn a_number_that_a_session_could_not_keep_is_refused_by_its_place_and_others_come_back() {
    let fleet = Fleet::new().await;
    let program = |memory: &str| {
        let checkpoint = format!(
            r#"{{"type":"checkpoint","memory":{memory},"context_window":[],"feature_progress":{{"n":1}}}}"#
        );
        let result = r#"{"type":"result","output":{"wei":123456789012345678901234567890}}"#;
        format!("#!/bin/sh\ncat <<'END'\n{checkpoint}\n{result}\nEND\n")
    };
    let refused = [
        (
            r#"{"a":[1,{"wei":123456789012345678901234567890}]}"#,
            "memory.a[1].wei: 123456789012345678901234567890 has more",
        ),
        (
            r#"{"price":12345678901234567890.12}"#,
            "memory.price: 12345678901234567890.12 has more digits than",
        ),
        (r#"{"past":1e309}"#, "memory.past: 1e309 is past the numbers"),
        (r#"{"past":-1e512}"#, "memory.past: -1e512 is past the numbers"),
    ];
    let kept = r#"{"i": 9007199254740993, "f": 0.1, "u": 18446744073709551615}"#;
    let paths: Vec<String> = refused
        .iter()
        .map(|(memory, _)| *memory)
        .chain([kept])
        .enumerate()
        .map(|(at, memory)| fleet.program(&format!("program-{at}"), &program(memory)))
        .collect();
    let names: Vec<String> = (0..paths.len()).map(|at| format!("agent-{at}")).collect();
    let agents: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(paths.iter().map(String::as_str)).collect();
    let _worker = fleet.worker("worker").set("AGENTS_FILE", fleet.agents(&agents)).start().await;
    let jobs: Vec<_> = names.iter().map(|agent| job(agent, agent, json!(1))).collect();
    fleet.enqueue(&jobs).await;
    for (spec, (_, place)) in jobs.iter().zip(refused) {
        let ended = fleet.ended(spec.job_id).await;
        let failure = ended.failure.expect("a failure");
        assert_eq!(failure.code, FailureCode::Unstorable, "{failure}");
        assert!(failure.message.starts_with(&format!("stdout line 1: {place}")), "{failure}");
    }
    let last = jobs.last().unwrap();
    let ended = fleet.ended(last.job_id).await;
    assert_eq!(ended.output.unwrap().as_str(), r#"{"wei":123456789012345678901234567890}"#);
    let memory = "SELECT delta ->> 'memory' FROM harness_checkpoints WHERE delta ? 'memory'
                  UNION ALL SELECT memory::text FROM harness_sessions WHERE memory::text <> '{}'";
    let memory: Value = serde_json::from_str(&fleet.database.texts(memory).await[0]).unwrap();
    assert_eq!(memory, serde_json::from_str::<Value>(kept).unwrap());
}

#[tokio::test]
async fn every_optional_field_of_a_message_may_be_null() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let id = JobId::now();
    let body = json!({
        "schema": "harness.job.v1", "job_id": id, "session_id": "s", "agent_id": "echo", "input": null, "user_id": null,
        "timeout_ms": null, "deadline_ms": null, "max_stalled_iterations": null, "max_iterations": null, "max_tokens": null, "max_cost_usd": null, "reply_to": null, "correlation_id": null,
        "traceparent": null, "pool": null, "retry": null, "on_busy": null,
    });
    fleet.vhost.publish(vec![(body.to_string().into_bytes(), BasicProperties::default())]).await;
    assert_eq!(fleet.ended(id).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_job_whose_envelope_in_the_ledger_cannot_be_decoded_fails_with_its_reason() {
    let fleet = Fleet::new().await;
    let theirs = job::JobSpec { tenant: "acme".parse().expect("a tenant"), ..job("s", "echo", json!(1)) };
    let (first, next) =
        (job("s", "scripted", json!({"count": 9000, "delay_ms": 20})), job("s", "echo", json!(2)));
    let after = job("s", "echo", json!(3));
    let worker = fleet.worker("worker").start().await;
    fleet.enqueue(&[first.clone(), next.clone(), after.clone()]).await;
    fleet.iterated(first.job_id, 1).await;
    let blocked =
        format!("SELECT count(*) FROM harness_jobs WHERE job_id = '{}' AND state = 'blocked'", next.job_id);
    until("the next one waits", async || (fleet.database.count(&blocked).await > 0).then_some(())).await;
    fleet.store.accept(std::slice::from_ref(&theirs)).await.expect("accepted");
    let broken = format!(
        r#"UPDATE harness_jobs SET message = (message::jsonb || '{{"retry": "x"}}')::json
            WHERE job_id IN ('{}', '{}')"#,
        theirs.job_id, next.job_id
    );
    fleet.database.execute(&broken).await;
    // One comes by its message, and the other one by the end of the job before it.
    fleet.vhost.publish(vec![(job::encode(&theirs).into_bytes(), BasicProperties::default())]).await;
    fleet.store.cancel("a test", &[first.job_id]).await.expect("an answer");
    for job_id in [theirs.job_id, next.job_id] {
        let view = fleet.ended(job_id).await;
        let failure = view.failure.expect("a failure");
        assert_eq!((view.state, failure.code), (JobState::Failed, FailureCode::DeadLettered));
        let said = "the job's envelope in the ledger cannot be decoded: retry: ";
        assert!(failure.message.starts_with(said), "{failure:?}");
    }
    assert_eq!(fleet.ended(after.job_id).await.state, JobState::Succeeded, "its session goes on");
    assert!(worker.log().contains("a claimed job has failed"), "{}", worker.log());
    assert!(fleet.vhost.dead_letters().await.is_empty(), "its message was no bad one");
    fleet.database.audited().await;
}
