//! A job that a service enqueues within its own transaction runs if that commits, and only then; and a service's open
//! transaction holds up nobody.

use std::time::Duration;

use job::{FailureCode, JobId, JobState, Limits, ReplyRule, decode_strict};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tests::{Api, Database, Fleet, Pooler, TIMEOUT, python_with, until};

/// A role that may do nothing but enqueue jobs of the tenant; returns its name and its address.
pub(super) async fn service(fleet: &Fleet, tenant: &str) -> (String, String) {
    let name = format!("service_{}", uuid::Uuid::new_v4().simple());
    fleet.database.execute(&format!("CREATE ROLE {name} LOGIN PASSWORD 'password'")).await;
    let ran = fleet.producer(&["roles", "add", &name, "--tenant", tenant]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let url = as_role(&fleet.database.url, &name);
    (name, url)
}

fn as_role(url: &str, role: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("an address");
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{role}:password@{host}")
}

pub(super) async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("a connection")
}

pub(super) async fn enqueue(connection: &mut PgConnection, job: &str) -> Result<JobId, sqlx::Error> {
    let id = sqlx::query("SELECT harness_enqueue($1::json)::text").bind(job).fetch_one(connection).await?;
    Ok(id.get::<String, _>(0).parse().expect("a UUIDv7"))
}

#[tokio::test]
async fn what_commits_runs_and_what_rolls_back_never_was() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let (_, url) = service(&fleet, "default").await;
    let mut connection = connect(&url).await;
    let (mut committed, mut rolled_back) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let mut transaction = connection.begin().await.expect("a transaction");
        let job = json!({"agent_id": "echo", "input": {"number": number}}).to_string();
        let id = enqueue(&mut transaction, &job).await.expect("an id");
        if number % 2 == 0 {
            transaction.commit().await.expect("a commit");
            // From the commit on it is a job.
            assert!(fleet.view(id).await.is_some(), "{number}");
            committed.push(id);
        } else {
            transaction.rollback().await.expect("a rollback");
            rolled_back.push(id);
        }
    }
    for (id, number) in committed.iter().zip((0..).step_by(2)) {
        let view = fleet.ended(*id).await;
        let output: Value = serde_json::from_str(view.output.expect("an output").as_str()).expect("JSON");
        assert_eq!((view.state, output), (JobState::Succeeded, json!({"number": number})));
    }
    assert!(fleet.store.jobs(&rolled_back).await.expect("the ledger").is_empty());
    until("the inbox is empty", async || (fleet.store.inbox_backlog().await.ok()?.jobs == 0).then_some(()))
        .await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn an_open_transaction_of_a_service_holds_up_no_other_job_and_no_cancel() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let (_, url) = service(&fleet, "default").await;
    let (mut open, mut other) = (connect(&url).await, connect(&url).await);
    let mut transaction = open.begin().await.expect("a transaction");
    let late = enqueue(&mut transaction, r#"{"agent_id":"echo"}"#).await.expect("an id");
    let begun = std::time::Instant::now();
    let job = json!({"agent_id": "echo", "session_id": "s"}).to_string();
    let id = enqueue(&mut other, &job).await.expect("an id");
    assert_eq!(fleet.ended(id).await.state, JobState::Succeeded);
    let slow = json!({"agent_id": "scripted", "input": {"count": 1000, "delay_ms": 100}}).to_string();
    let running = enqueue(&mut other, &slow).await.expect("an id");
    fleet.iterated(running, 1).await;
    let ran = fleet.producer(&["cancel", &running.to_string()]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fleet.ended(running).await.state, JobState::Cancelled);
    assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
    assert!(fleet.view(late).await.is_none());
    transaction.commit().await.expect("a commit");
    // Its place is before those of the others, which have long been taken.
    assert_eq!(fleet.ended(late).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn what_is_no_job_ends_as_invalid_under_the_id_that_the_service_has() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let (_, url) = service(&fleet, "default").await;
    let mut connection = connect(&url).await;
    let own = JobId::now();
    for (job, field) in [
        (r#"{"agent_id":7}"#.to_owned(), "agent_id"),
        (r#"{}"#.to_owned(), "agent_id"),
        (r#"{"agent_id":"echo","agent":"x"}"#.to_owned(), "agent"),
        (r#"{"agent_id":"echo","pool":"no-such-pool"}"#.to_owned(), "pool"),
        (r#"{"agent_id":"echo","reply_to":"some.queue"}"#.to_owned(), "reply_to"),
        (r#"{"agent_id":"echo","input":[[1,"\u00e9"],2],"lane":"urgent"}"#.to_owned(), "lane"),
        (r#"{"agent_id":"echo","deadline_ms":0}"#.to_owned(), "deadline_ms"),
        (r#"{"agent_id":"echo","max_iterations":0}"#.to_owned(), "max_iterations"),
        (r#"{"agent_id":"echo","max_tokens":1.5}"#.to_owned(), "max_tokens"),
        (format!(r#"{{"agent_id":"echo","job_id":"{own}","timeout_ms":-1}}"#), "timeout_ms"),
        (format!(r#"{{"agent_id":"echo","input":"{}"}}"#, "x".repeat(2 << 20)), "body"),
    ] {
        let id = enqueue(&mut connection, &job).await.expect("an id");
        let view = fleet.ended(id).await;
        let failure = view.failure.expect("a failure");
        assert_eq!((view.state, failure.code), (JobState::Failed, FailureCode::Invalid), "{field}");
        assert!(failure.message.starts_with(field), "{field}: {}", failure.message);
    }
    // What the function itself refuses, it refuses at once, by the field.
    for (job, said) in [
        ("[]", "job: got array, expected a JSON object"),
        ("null", "job: got null"),
        (r#"{"agent_id":"echo","input":"\u0000"}"#, "unsupported Unicode escape sequence"),
        (r#"{"agent_id":"echo","job_id":"x"}"#, r#"job_id: got "x", expected a UUID of version 7"#),
        (r#"{"agent_id":"echo","job_id":"f47ac10b-58cc-4372-a567-0e02b2c3d479"}"#, "version 7"),
        (r#"{"agent_id":"echo","job_id":"0fffffff-ffff-7000-8000-000000000000"}"#, "more than a day ahead"),
    ] {
        let error = enqueue(&mut connection, job).await.expect_err(job).to_string();
        assert!(error.contains(said), "{job}: {error}");
    }
    // An id that is older than what the ledger keeps can have no end of its own.
    let old = r#"{"agent_id":"echo","job_id":"01000000-0000-7000-8000-000000000000"}"#;
    enqueue(&mut connection, old).await.expect("an id");
    let named = "SELECT failure->>'message' FROM harness_results WHERE failure->>'message' LIKE 'job_id:%'";
    let said = until("its end", async || fleet.database.texts(named).await.pop()).await;
    assert!(said.contains("01000000-0000-7000-8000-000000000000"), "{said}");
    fleet.database.audited().await;
    // There is no job in it that could run.
    let ran = fleet.producer(&["dead", "redrive", &own.to_string()]).await;
    assert!(ran.code != 0 && ran.err.contains("invalid"), "{ran:?}");
}

#[tokio::test]
async fn the_same_id_or_key_is_the_same_job_however_it_comes() {
    let fleet = Fleet::new().await;
    let (_, url) = service(&fleet, "default").await;
    let mut connection = connect(&url).await;
    let own = JobId::now();
    let job = json!({"agent_id": "echo", "job_id": own, "input": 1}).to_string();
    // Nothing takes from the inbox yet.
    for _ in 0..2 {
        assert_eq!(enqueue(&mut connection, &job).await.expect("an id"), own);
    }
    assert_eq!(fleet.store.inbox_backlog().await.expect("a count").jobs, 1);
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(own).await.state, JobState::Succeeded);
    assert_eq!(enqueue(&mut connection, &job).await.expect("an id"), own);

    let unique = json!({"agent_id": "echo", "unique": {"key": "k", "for_ms": 60_000}}).to_string();
    let first = enqueue(&mut connection, &unique).await.expect("an id");
    assert_eq!(fleet.ended(first).await.state, JobState::Succeeded);
    let second = enqueue(&mut connection, &unique).await.expect("an id");
    let view = fleet.ended(second).await;
    let why = view.failure.expect("a reason").message;
    assert_eq!(view.state, JobState::Cancelled);
    assert_eq!(why, format!("unique.key: the job {first} holds its key"));
    until("the inbox is empty", async || (fleet.store.inbox_backlog().await.ok()?.jobs == 0).then_some(()))
        .await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 3);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_row_that_a_crash_has_left_makes_no_second_job() {
    let fleet = Fleet::new().await;
    let (_, url) = service(&fleet, "default").await;
    let mut connection = connect(&url).await;
    let id = enqueue(&mut connection, r#"{"agent_id":"echo"}"#).await.expect("an id");
    let keep = "CREATE TABLE kept AS SELECT * FROM harness_inbox";
    fleet.database.execute(keep).await;
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(id).await.state, JobState::Succeeded);
    until("the row is gone", async || (fleet.store.inbox_backlog().await.ok()?.jobs == 0).then_some(()))
        .await;
    // As if the process had died before it removed the row.
    fleet.database.execute("INSERT INTO harness_inbox OVERRIDING SYSTEM VALUE SELECT * FROM kept").await;
    until("the row is gone", async || (fleet.store.inbox_backlog().await.ok()?.jobs == 0).then_some(()))
        .await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 1);
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_role_enqueues_for_its_tenant_and_can_do_nothing_else() {
    let fleet = Fleet::new().await;
    for tenant in ["acme", "globex"] {
        assert_eq!(fleet.producer(&["tenants", "create", tenant]).await.code, 0);
    }
    let _worker = fleet.worker("worker").start().await;
    let ((name, acme), (_, globex)) = (service(&fleet, "acme").await, service(&fleet, "globex").await);
    let (mut acme, mut globex) = (connect(&acme).await, connect(&globex).await);
    let own = JobId::now();
    let job = json!({"agent_id": "echo", "session_id": "s", "job_id": own}).to_string();
    assert_eq!(enqueue(&mut acme, &job).await.expect("an id"), own);
    let view = fleet.ended(own).await;
    assert_eq!((view.tenant.as_str(), view.session_id.as_str()), ("acme", "s"));
    // The id of another tenant's job is no way to it, and no way to harm it.
    enqueue(&mut globex, &job).await.expect("an id");
    let taken = "SELECT tenant || ' ' || (failure->>'message') FROM harness_results WHERE state = 'failed'";
    let said = until("an end", async || fleet.database.texts(taken).await.pop()).await;
    assert!(said.starts_with("globex job_id: got ") && said.contains("which is taken"), "{said}");

    for statement in [
        "SELECT * FROM harness_jobs",
        "SELECT * FROM harness_inbox",
        "INSERT INTO harness_inbox (tenant, job_id, job, bytes, role, may_reply)
         VALUES ('globex', gen_random_uuid(), '{}', 2, 'x', true)",
        "DELETE FROM harness_inbox",
        "SELECT * FROM harness_roles",
    ] {
        let error = sqlx::raw_sql(statement).execute(&mut acme).await.expect_err(statement).to_string();
        assert!(error.contains("permission denied"), "{statement}: {error}");
    }
    // Its own names, schemas and temporary tables are not looked at.
    for statement in [
        "CREATE TEMP TABLE harness_roles (role text, tenant text, may_reply boolean)",
        "INSERT INTO pg_temp.harness_roles VALUES (session_user, 'globex', true)",
        "CREATE TEMP TABLE harness_inbox (LIKE pg_temp.harness_roles)",
        "SET search_path = pg_temp, public",
    ] {
        sqlx::raw_sql(statement).execute(&mut acme).await.expect(statement);
    }
    let id = enqueue(&mut acme, r#"{"agent_id":"echo"}"#).await.expect("an id");
    assert_eq!(fleet.ended(id).await.tenant.as_str(), "acme");

    let stranger = format!("stranger_{}", uuid::Uuid::new_v4().simple());
    fleet.database.execute(&format!("CREATE ROLE {stranger} LOGIN PASSWORD 'password'")).await;
    let mut denied = connect(&as_role(&fleet.database.url, &stranger)).await;
    let error = enqueue(&mut denied, r#"{"agent_id":"echo"}"#).await.expect_err("no right").to_string();
    assert!(error.contains("permission denied for function harness_enqueue"), "{error}");

    assert_eq!(fleet.producer(&["tenants", "close", "acme"]).await.code, 0);
    let error = enqueue(&mut acme, r#"{"agent_id":"echo"}"#).await.expect_err("closed").to_string();
    assert!(error.contains(r#"the tenant "acme" is closed"#), "{error}");
    let listed = fleet.producer(&["roles", "list", "--json"]).await.json();
    let ours = listed.iter().find(|role| role["role"] == name.as_str()).expect("the role");
    assert_eq!((&ours["tenant"], &ours["may_call"]), (&json!("acme"), &json!(true)));
    assert_eq!(fleet.producer(&["roles", "remove", &name]).await.code, 0);
    assert!(enqueue(&mut acme, r#"{"agent_id":"echo"}"#).await.is_err());
    for (arguments, said) in [
        (["roles", "add", "no_such_role"], "Postgres has no such role"),
        (["roles", "remove", "no_such_role"], "may not enqueue"),
    ] {
        let ran = fleet.producer(&arguments).await;
        assert!(ran.code == 1 && ran.err.contains(said), "{ran:?}");
    }
    let ran = fleet.producer(&["roles", "add", &stranger, "--tenant", "nobody"]).await;
    assert!(ran.code == 1 && ran.err.contains("no such tenant"), "{ran:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn the_api_shows_and_cancels_a_job_that_is_still_in_the_inbox() {
    let fleet = Fleet::new().await;
    assert_eq!(fleet.producer(&["tenants", "create", "acme"]).await.code, 0);
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (_, url) = service(&fleet, "default").await;
    let (_, acme) = service(&fleet, "acme").await;
    // The pool is served; the worker that served it is gone, and no relay runs.
    fleet.worker("worker").start().await.kill();
    let mut connection = connect(&url).await;
    let id = enqueue(&mut connection, r#"{"agent_id":"echo"}"#).await.expect("an id");
    let theirs = enqueue(&mut connect(&acme).await, r#"{"agent_id":"echo"}"#).await.expect("an id");
    let seen = api.get(&format!("/v1/jobs/{id}")).await.is(200).json();
    assert_eq!(seen["state"], "scheduled", "{seen}");
    let why = api.get(&format!("/v1/jobs/{id}/why")).await.is(200).text("why");
    assert!(why.starts_with("scheduled: in the inbox for "), "{why}");
    api.get(&format!("/v1/jobs/{theirs}")).await.is(404);
    api.get(&format!("/v1/jobs/{theirs}/why")).await.is(404);
    api.post(&format!("/v1/jobs/{theirs}/cancel"), &json!(null)).await.is(404);
    let ended = api.post(&format!("/v1/jobs/{id}/cancel"), &json!(null)).await.is(200).json();
    assert_eq!(ended["state"], "cancelled", "{ended}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_inbox").await, 1);
    fleet.database.audited().await;
}

/// Runs an example of a service behind a pooler of transactions; its table `orders` is there.
async fn behind_a_pooler(command: impl FnOnce(&Fleet) -> std::process::Command) {
    // The driver of Java sends this parameter when it connects.
    let pooler =
        Pooler::start("--release 1.24 --mode transaction --set ignore_startup_parameters=extra_float_digits")
            .await;
    let fleet = Fleet::on(Database::new().await);
    let _worker = fleet.worker("worker").start().await;
    let (name, url) = service(&fleet, "default").await;
    fleet.database.execute(&format!("CREATE TABLE orders (id int); GRANT ALL ON orders TO {name}")).await;
    let mut command = command(&fleet);
    command.env("DATABASE_URL", pooler.through(&url));
    let ran = tests::Ran::of(command, "").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let id: JobId = ran.out.trim().parse().unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(fleet.ended(id).await.state, JobState::Succeeded);
    assert_eq!(fleet.database.count("SELECT count(*) FROM orders").await, 1);
}

#[tokio::test]
async fn a_python_service_enqueues_with_its_own_rows_through_a_pooler_of_transactions() {
    behind_a_pooler(|fleet| {
        let packages = [("psycopg", "psycopg[binary]==3.2.3")];
        let mut command =
            std::process::Command::new(python_with(&fleet.folder.path().join("python"), &packages));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/enqueue_by_sql.py"));
        command
    })
    .await;
}

#[tokio::test]
async fn a_java_service_enqueues_with_its_own_rows_through_a_pooler_of_transactions() {
    behind_a_pooler(|_| {
        // `ops/dev/tools` installs both.
        let mut command = std::process::Command::new("java");
        command.args(["-classpath", "/usr/share/java/postgresql.jar"]);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/EnqueueBySql.java"));
        command
    })
    .await;
}

/// What the decoder takes, the function takes: otherwise a service's transaction would fail for a job that is right.
#[tokio::test]
async fn the_function_refuses_nothing_that_the_decoder_takes() {
    let fleet = Fleet::new().await;
    let (_, url) = service(&fleet, "default").await;
    let mut connection = connect(&url).await;
    let (send, mut drawn) = tokio::sync::mpsc::channel::<String>(64);
    let drawing = std::thread::spawn(move || {
        let mut runner =
            TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
        runner.run(&job_text(), |text| {
            send.blocking_send(text).expect("it is received");
            Ok(())
        })
    });
    let (mut taken, mut refused) = (0, 0);
    while let Some(text) = drawn.recv().await {
        let limits = Limits {
            max_bytes: job::DEFAULT_MAX_BYTES,
            retention: Duration::from_secs(86_400),
            now_unix_ms: JobId::now().unix_ms(),
            replies: ReplyRule::default(),
        };
        let decoded = decode_strict(&text, &limits);
        match (&decoded, enqueue(&mut connection, &text).await) {
            (Ok(asked), Ok(id)) => {
                taken += 1;
                assert!(!asked.has_own_id || asked.spec.job_id == id, "{text}: {id}");
            }
            (Ok(_), Err(error)) => panic!("{text}: {error}"),
            (Err(_), _) => refused += 1,
        }
    }
    drawing.join().expect("a thread").expect("all were drawn");
    assert!(taken > 100 && refused > 20, "{taken} and {refused}");
}

/// Jobs as people may write them, right and wrong.
fn job_text() -> impl Strategy<Value = String> {
    let id = prop_oneof![
        3 => Just(None),
        1 => Just(Some("null".to_owned())),
        4 => (0..5usize).prop_map(|form| {
            let id = uuid::Uuid::now_v7();
            let text = match form {
                0 => id.hyphenated().to_string(),
                1 => id.simple().to_string(),
                2 => id.urn().to_string(),
                3 => id.braced().to_string(),
                _ => id.hyphenated().to_string().to_uppercase(),
            };
            Some(format!("\"{text}\""))
        }),
        1 => Just(Some("\"018f\"".to_owned())),
    ];
    let input = prop_oneof![
        Just("1e400000".to_owned()),
        Just("-0.10E+2".to_owned()),
        Just(r#"{"a":1,"a":2,"é":"\ud83d\ude00"}"#.to_owned()),
        Just(r#""\u0000""#.to_owned()),
        Just(r#""\ud800""#.to_owned()),
        Just("12345678901234567890123".to_owned()),
        (1..120usize).prop_map(|depth| "[".repeat(depth) + &"]".repeat(depth)),
        any::<String>().prop_map(|text| json!(text).to_string()),
        any::<f64>().prop_map(|number| json!(number).to_string()),
    ];
    let agent = prop_oneof![4 => Just("\"echo\"".to_owned()), 1 => any::<String>().prop_map(|text| json!(text).to_string())];
    let space = prop_oneof![Just(""), Just(" "), Just("\n\t"), Just("\r\n")];
    (id, input, agent, space, any::<bool>()).prop_map(|(id, input, agent, space, unique)| {
        let mut fields = vec![format!("\"agent_id\":{space}{agent}"), format!("\"input\"{space}:{input}")];
        fields.extend(id.map(|id| format!("\"job_id\":{id}")));
        if unique {
            fields.push(r#""unique":{"key":"k\\\"","for_ms":5},"labels":{"a":"b"}"#.to_owned());
        }
        format!("{space}{{{space}{}{space}}}{space}", fields.join(&format!("{space},{space}")))
    })
}
