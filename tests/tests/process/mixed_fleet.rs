//! Processes of an older release may run beside newer ones, but not beside what they do not understand.

use job::JobState;
use serde_json::json;
use sqlx::AssertSqlSafe;
use tests::{Api, Fleet, job, older_worker, until};

/// A worker as a release registers it that knows no tenants.
const OLDER: &str = "
    INSERT INTO harness_workers (worker_id, host, pool, slots, state, lease_ms)
    VALUES (gen_random_uuid(), 'old-host', 'default', 4, 'alive', 3600000)";

#[tokio::test]
async fn no_tenant_is_created_while_a_worker_runs_that_knows_none() {
    let fleet = Fleet::new().await;
    fleet.database.execute(OLDER).await;
    let refused = fleet.producer(&["tenants", "create", "acme"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    for said in ["old-host", "pool default", "older release"] {
        assert!(refused.err.contains(said), "{said}: {refused:?}");
    }
    let submitted =
        fleet.producer(&["enqueue", "--tenant", "acme", "--session", "s", "--agent", "echo"]).await;
    assert!(submitted.code == 1 && submitted.err.contains("old-host"), "{submitted:?}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_tenants").await, 1);
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);

    // One that is gone is in no one's way, and nor is one of this release.
    fleet.database.execute("UPDATE harness_workers SET state = 'dead', ended_at = now()").await;
    let _worker = fleet.worker("worker").start().await;
    let created = fleet.producer(&["tenants", "create", "acme"]).await;
    assert_eq!(created.code, 0, "{created:?}");
}

#[tokio::test]
async fn no_worker_that_knows_no_tenants_registers_where_there_is_one() {
    let fleet = Fleet::new().await;
    fleet.database.execute(OLDER).await;
    fleet.database.execute("DELETE FROM harness_workers").await;
    assert_eq!(fleet.producer(&["tenants", "create", "acme"]).await.code, 0);
    let mut connection = fleet.database.connect().await;
    let refused = sqlx::raw_sql(AssertSqlSafe(OLDER)).execute(&mut connection).await.unwrap_err();
    assert!(refused.to_string().contains("run a newer release"), "{refused}");
    let _worker = fleet.worker("worker").start().await;
}

/// The schema of a release that knows no answers of persons.
const WITHOUT_INPUTS: i64 = 19;

#[tokio::test]
async fn no_job_waits_for_a_person_beside_a_worker_that_knows_no_answers() {
    let fleet = Fleet::new().await;
    fleet.database.execute(&older_worker(WITHOUT_INPUTS)).await;
    let _worker = fleet.worker("worker").start().await;
    let ask = json!({"iterations": [{"ask": {"call_id": "c1", "question": 1}}]});
    let [first, second] = ["a", "b"].map(|session| job(session, "scripted", ask.clone()));
    fleet.enqueue(std::slice::from_ref(&first)).await;
    let handed_back = async || {
        let view = fleet.view(first.job_id).await?;
        (view.state == JobState::Scheduled && view.failure.is_some()).then_some(view)
    };
    let view = until("it is due again later", handed_back).await;
    assert_eq!(view.attempts, 0);
    let failure = view.failure.unwrap();
    assert!(failure.message.contains("no worker of an older release"), "{failure:?}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_inputs").await, 0);

    // Once that is gone, jobs wait; and no such worker comes.
    fleet
        .database
        .execute("UPDATE harness_workers SET state = 'dead', ended_at = now() WHERE host = 'old-host'")
        .await;
    fleet.enqueue(std::slice::from_ref(&second)).await;
    let waits = async || (fleet.view(second.job_id).await?.state == JobState::AwaitingInput).then_some(());
    until("it waits for a person", waits).await;
    let mut connection = fleet.database.connect().await;
    let refused = sqlx::raw_sql(AssertSqlSafe(older_worker(WITHOUT_INPUTS)))
        .execute(&mut connection)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("run a newer release"), "{refused}");
    // But for another pool.
    fleet.database.execute(&older_worker(WITHOUT_INPUTS).replace("'default'", "'other'")).await;
}

/// The schema of a release whose workers lead and fire no schedules.
const WITHOUT_SCHEDULES: i64 = 29;

#[tokio::test]
async fn no_schedule_is_made_or_resumed_while_a_worker_runs_that_fires_none() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let schedule = json!({"name": "s", "cron": "0 0 * * *", "job": {"agent_id": "echo"}});
    api.post("/v1/schedules", &schedule).await.is(201);
    api.post("/v1/schedules/s/pause", &json!(null)).await.is(200);
    fleet.database.execute(&older_worker(WITHOUT_SCHEDULES)).await;
    let mut another = schedule.clone();
    another["name"] = json!("another");
    for (path, body) in [("/v1/schedules", &another), ("/v1/schedules/s/resume", &json!(null))] {
        let detail = api.post(path, body).await.problem(409, None).text("detail");
        assert!(detail.contains("older release") && !detail.contains("old-host"), "{path}: {detail}");
    }
    let job = r#"{"agent_id":"echo"}"#;
    for arguments in [&["add", "another", "--cron", "0 0 * * *", "--job", job][..], &["resume", "s"]] {
        let refused = fleet.producer(&[&["schedules"], arguments].concat()).await;
        assert!(refused.code == 1 && refused.err.contains("old-host, pool default"), "{refused:?}");
    }
    fleet.database.execute("UPDATE harness_workers SET state = 'dead', ended_at = now()").await;
    assert_eq!(fleet.producer(&["schedules", "resume", "s"]).await.code, 0);
}

/// The schema of a release that knows tenants and no webhooks.
const WITHOUT_DELIVERIES: i64 = 13;

#[tokio::test]
async fn no_webhook_is_made_or_enabled_while_a_worker_runs_that_ends_jobs_without_deliveries() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let url = "https://example.com/hook";
    let made = api.post("/v1/webhooks", &json!({"url": url})).await.is(201).text("id");
    api.post(&format!("/v1/webhooks/{made}/disable"), &json!(null)).await.is(200);

    fleet.database.execute(&older_worker(WITHOUT_DELIVERIES)).await;
    for (path, body) in [
        ("/v1/webhooks".to_owned(), json!({"url": url})),
        (format!("/v1/webhooks/{made}/enable"), json!(null)),
    ] {
        let refused = api.post(&path, &body).await.problem(409, None);
        let detail = refused.text("detail");
        assert!(detail.contains("older release") && !detail.contains("old-host"), "{path}: {detail}");
    }
    for arguments in [["webhooks", "add", url], ["webhooks", "enable", &made]] {
        let refused = fleet.producer(&arguments).await;
        assert!(refused.code == 1 && refused.err.contains("old-host, pool default"), "{refused:?}");
    }
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_webhooks").await, 1);

    fleet.database.execute("UPDATE harness_workers SET state = 'dead', ended_at = now()").await;
    api.post(&format!("/v1/webhooks/{made}/enable"), &json!(null)).await.is(200);
    assert_eq!(fleet.producer(&["webhooks", "add", url]).await.code, 0);
    let mut connection = fleet.database.connect().await;
    let refused = sqlx::raw_sql(AssertSqlSafe(older_worker(WITHOUT_DELIVERIES)))
        .execute(&mut connection)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("run a newer release"), "{refused}");
    let _worker = fleet.worker("worker").start().await;
}
