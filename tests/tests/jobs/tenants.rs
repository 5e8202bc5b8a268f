//! What one tenant does never meets what another does, even if their sessions have equal names. A message alone proves
//! no tenant: a claim believes it only of a job that the ledger knows.

use job::{JobId, JobSpec, JobState, Name, SessionKey, Tenant};
use lapin::BasicProperties;
use producer::SessionNow;
use serde_json::{Value, json};
use store::{Answer, Cancelled, FailureFilter, Fenced, SessionView, Store, Unwanted};
use tests::{Database, Fleet, Ran, Runner, claimed, job};

/// A job of a tenant in the session `s`.
fn job_of(tenant: &str, agent: &str, input: Value) -> JobSpec {
    JobSpec { tenant: tenant.parse().expect("a tenant"), ..job("s", agent, input) }
}

fn key(tenant: &str) -> SessionKey {
    let (tenant, session): (Tenant, Name) = (tenant.parse().expect("a tenant"), "s".parse().expect("a name"));
    SessionKey::new(&tenant, &session)
}

async fn session(store: &Store, tenant: &str) -> SessionView {
    let view = store.session(&key(tenant)).await.expect("the ledger").expect("a session");
    assert_eq!((view.head.tenant.as_str(), view.head.session_id.as_str()), (tenant, "s"));
    view
}

#[tokio::test]
async fn sessions_of_two_tenants_never_meet_even_if_their_names_are_equal() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let [ours, later] = [job("s", "echo", json!(1)), job("s", "echo", json!(2))];
    let [theirs, next] = [job_of("acme", "echo", json!(3)), job_of("acme", "echo", json!(4))];
    store.accept(&[ours.clone(), theirs.clone(), later.clone(), next.clone()]).await.unwrap();

    // Each session has an order of its own.
    let run = claimed(runner.claim(&ours).await.unwrap());
    let their_run = claimed(runner.claim(&theirs).await.unwrap());
    assert_eq!(their_run.claim.session_key(), "~acme/s");
    for blocked in [&later, &next] {
        assert!(matches!(runner.claim(blocked).await.unwrap(), Answer::Blocked));
    }
    // And a state of its own.
    for (run, checkpoints) in [(&run, 2), (&their_run, 3)] {
        for ordinal in 0..checkpoints {
            assert_eq!(runner.checkpoint(run, ordinal).await.unwrap(), Fenced::Done(()));
        }
    }
    assert_eq!(session(&store, "default").await.checkpoints.len(), 2);
    assert_eq!(session(&store, "acme").await.checkpoints.len(), 3);
    assert!(store.session(&key("other")).await.unwrap().is_none());

    let brought = runner.succeed(&their_run).await.unwrap().next.expect("their next job");
    assert_eq!(brought.claim.job_id(), next.job_id);
    assert_eq!(runner.succeed(&brought).await.unwrap().recorded, Fenced::Done(()));
    assert_eq!(store.jobs_of(&key("acme")).await.unwrap(), []);
    assert_eq!(store.jobs_of(&key("default")).await.unwrap(), [ours.job_id, later.job_id]);

    let view = store.jobs(&[theirs.job_id]).await.unwrap().remove(0);
    assert_eq!((view.tenant.as_str(), view.session_id.as_str()), ("acme", "s"));
    assert_eq!((view.state, view.iterations), (JobState::Succeeded, 3));
    assert_eq!(runner.succeed(&run).await.unwrap().next.expect("our next job").claim.job_id(), later.job_id);
    database.audited().await;
}

#[tokio::test]
async fn a_claim_believes_a_tenant_only_of_a_job_that_the_ledger_knows() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let spec = job_of("acme", "echo", json!(1));
    assert!(matches!(runner.claim(&spec).await.unwrap(), Answer::NotAccepted));
    let rows = "SELECT (SELECT count(*) FROM harness_jobs) + (SELECT count(*) FROM harness_sessions)";
    assert_eq!(database.count(rows).await, 0, "nothing is kept of it");

    store.accept(std::slice::from_ref(&spec)).await.unwrap();
    // Its id proves nothing for another tenant, nor for a message that names none.
    for tenant in ["other", "default"] {
        let forged = JobSpec { tenant: tenant.parse().unwrap(), ..spec.clone() };
        let answer = runner.claim(&forged).await.unwrap();
        assert!(matches!(&answer, Answer::OtherSession(session) if session == "~acme/s"), "{answer:?}");
    }
    let run = claimed(runner.claim(&spec).await.unwrap());
    assert!(matches!(runner.claim(&job_of("acme", "echo", json!(2))).await.unwrap(), Answer::NotAccepted));
    runner.succeed(&run).await.unwrap();
    assert!(matches!(runner.claim(&spec).await.unwrap(), Answer::Finished(JobState::Succeeded)));
    database.audited().await;
}

#[tokio::test]
async fn a_waiting_job_ends_in_its_own_tenants_session() {
    let database = Database::new().await;
    let store = database.store();
    let jobs =
        [job("s", "echo", json!(1)), job_of("acme", "echo", json!(2)), job_of("acme", "echo", json!(3))];
    store.accept(&jobs).await.unwrap();
    let theirs = store.jobs_of(&key("acme")).await.unwrap();
    assert_eq!(theirs, [jobs[1].job_id, jobs[2].job_id]);
    let (answers, _) = store.cancel("a test", &theirs).await.unwrap();
    assert_eq!(answers, [Cancelled::Now, Cancelled::Now]);
    assert_eq!(session(&store, "acme").await.head.version, 2);
    assert_eq!(session(&store, "default").await.head.version, 0, "nothing has ended in it");
    assert!(store.end_waiting(&[jobs[0].job_id], Unwanted::Overdue).await.unwrap().is_empty());
    assert_eq!(store.jobs_of(&key("default")).await.unwrap(), [jobs[0].job_id]);
    database.audited().await;
}

#[tokio::test]
async fn a_row_of_an_older_binary_is_the_tenant_defaults() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let spec = job("s", "echo", json!(1));
    let (id, message) = (spec.job_id, job::encode(&spec));
    // As it is inserted without the column.
    database
        .execute(&format!(
            "INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, message, state)
             VALUES ('{id}', 's', 'echo', 'default', '{message}', 'queued')"
        ))
        .await;
    let run = claimed(runner.claim(&spec).await.unwrap());
    runner.succeed(&run).await.unwrap();
    let view = store.jobs(&[id]).await.unwrap().remove(0);
    assert_eq!((view.tenant, view.session_id.as_str()), (Tenant::default(), "s"));
    assert!(
        !serde_json::to_string(&SessionNow::of(session(&store, "default").await).unwrap())
            .unwrap()
            .contains("tenant")
    );
    database.audited().await;
}

fn code_of(ran: &Ran, code: i32) -> &str {
    assert_eq!(ran.code, code, "{ran:?}");
    ran.out.trim()
}

#[tokio::test]
async fn a_message_that_names_a_tenant_runs_if_its_job_was_accepted_and_is_a_dead_letter_otherwise() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let (known, unknown) =
        (job_of("acme", "scripted", json!({"count": 1})), job_of("acme", "echo", json!(1)));
    fleet.store.accept(std::slice::from_ref(&known)).await.unwrap();
    let message = |spec: &JobSpec| (job::encode(spec).into_bytes(), BasicProperties::default());
    fleet.vhost.publish(vec![message(&unknown), message(&known)]).await;
    assert_eq!(fleet.ended(known.job_id).await.state, JobState::Succeeded);
    assert_eq!(session(&fleet.store, "acme").await.head.iteration_count, 1);

    let counted = r#"harness_dead_letters_total{code="tenant_not_accepted"}"#;
    worker.counted(counted, 1.0).await;
    let letters = fleet.vhost.dead_letters().await;
    let reason = "tenant: got \"acme\", and the ledger does not know the job, expected \"default\"";
    let found: Vec<_> = letters.iter().map(|it| (it.code.as_str(), it.reason.as_str())).collect();
    assert_eq!(found, [("tenant_not_accepted", reason)]);
    assert!(fleet.view(unknown.job_id).await.is_none());
    assert!(worker.log().contains(r#"tenant="acme""#), "{}", worker.log());

    // Otherwise, a redrive by an operator would run it.
    let redriven = fleet.producer(&["dead", "redrive", &letters[0].mark]).await;
    let said = [redriven.out.as_str(), &redriven.err].concat();
    assert!(redriven.code == 3 && said.contains(reason), "{redriven:?}");
    fleet.vhost.so_many_dead_letters(1).await;
}

#[tokio::test]
async fn the_commands_of_an_operator_name_a_tenant() {
    let fleet = Fleet::new().await;
    let enqueue = async |tenant: &str, agent: &str, input: Value| {
        let input = input.to_string();
        let ran = fleet
            .producer(&["enqueue", "--tenant", tenant, "--session", "s", "--agent", agent, "--input", &input])
            .await;
        code_of(&ran, 0).parse::<JobId>().unwrap()
    };
    let fails = json!({"iterations": [{"fail": {"message": "it breaks", "retryable": false}}]});
    let (ours, theirs) =
        (enqueue("default", "scripted", fails.clone()).await, enqueue("acme", "scripted", fails).await);
    let line = json!({"tenant": "other", "session_id": "s", "agent_id": "echo"}).to_string();
    let ran = fleet.producer_with_input(&line, &["enqueue", "--file", "-", "--print-ids"]).await;
    let others: JobId = code_of(&ran, 0).parse().unwrap();
    // Nothing runs yet.
    let ran = fleet.producer(&["cancel", "--session", "s", "--tenant", "other"]).await;
    assert_eq!(code_of(&ran, 0), format!("{others} cancelled"));

    let worker = fleet.worker("worker").start().await;
    for job_id in [ours, theirs] {
        assert_eq!(fleet.ended(job_id).await.state, JobState::Failed);
    }
    let status = fleet.producer(&["status", "--json", &theirs.to_string(), &ours.to_string()]).await.json();
    assert_eq!((&status[0]["tenant"], &status[0]["session_id"]), (&json!("acme"), &json!("s")));
    assert!(status[1].get("tenant").is_none(), "{status:?}");
    let ran = fleet.producer(&["sessions", "show", "s", "--tenant", "acme", "--json"]).await;
    assert_eq!(ran.json()[0]["tenant"], json!("acme"));
    assert_eq!(fleet.producer(&["sessions", "show", "s", "--tenant", "nobody"]).await.code, 1);

    let dead = async |arguments: &[&str]| {
        let ran = fleet.producer(&[&["dead", "list", "--json"], arguments].concat()).await;
        let ids = ran.json().into_iter().map(|letter| letter["id"].as_str().unwrap_or_default().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(dead(&[]).await.len(), 2);
    assert_eq!(dead(&["--tenant", "acme"]).await, [theirs.to_string()]);
    assert_eq!(dead(&["--tenant", "acme", "--session", "s"]).await, [theirs.to_string()]);
    assert_eq!(dead(&["--session", "s"]).await, [ours.to_string()]);
    assert!(dead(&["--tenant", "other"]).await.is_empty());
    let of_acme = FailureFilter { tenant: Some("acme".parse().unwrap()), ..FailureFilter::default() };
    assert_eq!(fleet.store.count_failed(&of_acme).await.unwrap(), 1);

    // What is run again is the same tenant's.
    let ran = fleet.producer(&["dead", "redrive", &theirs.to_string(), "--json"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let sql = format!("SELECT redriven_as::text FROM harness_results WHERE job_id = '{theirs}'");
    let again: JobId = fleet.database.texts(&sql).await.remove(0).parse().unwrap();
    assert_eq!(fleet.ended(again).await.tenant.as_str(), "acme");
    drop(worker);
    fleet.database.audited().await;
}
