//! What was accepted has its end, whatever was away meanwhile; and what is not known to be accepted is answered so,
//! in time.

use std::time::Duration;

use job::JobId;
use serde_json::json;
use sqlx::{AssertSqlSafe, raw_sql};
use tests::{Api, Fleet, Link, OwnBroker, Proxy, until};
use tokio::time::Instant;

#[tokio::test]
async fn jobs_are_accepted_while_rabbitmq_is_stopped_and_all_end_when_it_is_back_although_the_door_was_killed()
 {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    let mut door = fleet.door("door").set("AMQP_URL", &own.url).start().await;
    let api = Api::of(&door).await;
    own.stop().await;
    let submitting = (0..8).map(|caller| {
        let api = api.clone();
        async move {
            let mut accepted = Vec::new();
            for n in 0..25 {
                let spec = json!({"agent_id": "echo", "session_id": format!("s-{caller}"), "input": n});
                accepted.push(api.submit(&spec).await.is(202).text("job_id"));
            }
            accepted
        }
    });
    let accepted = futures::future::join_all(submitting).await.concat();
    let (status, ready) = door.get_json("/ready").await;
    assert_eq!((status, &ready["checks"]["database_connected"]), (200, &json!(true)), "{ready}");
    assert_ne!(ready["checks"]["broker"], "connected", "{ready}");
    // Between acceptance and publish.
    door.kill();
    own.start_again().await;
    let _worker = fleet.worker("worker").set("AMQP_URL", &own.url).start().await;
    let door = fleet.door("next").set("AMQP_URL", &own.url).start().await;
    let api = Api::of(&door).await;
    for job_id in &accepted {
        assert_eq!(api.wait(job_id).await.is(200).text("state"), "succeeded");
    }
    assert_eq!(accepted.len(), 200);
    fleet.database.audited().await;
}

#[tokio::test]
async fn while_postgres_is_silent_a_submission_has_its_503_within_two_seconds_and_names_the_job() {
    let fleet = Fleet::new().await;
    let proxy = Proxy::to(&fleet.database.url).await;
    let url = proxy.through(&fleet.database.url);
    let door = fleet.door("door").set("DATABASE_URL", url).start().await;
    let api = Api::of(&door).await;
    api.submit(&json!({"agent_id": "echo"})).await.is(202);
    for link in [Link::Frozen, Link::Cut, Link::RepliesLost] {
        proxy.set(link);
        for _ in 0..3 {
            let (job_id, asked) = (JobId::now().to_string(), Instant::now());
            let spec = json!({"agent_id": "echo", "job_id": job_id});
            let reply = api.submit(&spec).await.problem(503, None);
            let took = asked.elapsed();
            assert!(took < Duration::from_secs(4), "{link:?}: {took:?}");
            assert_eq!((reply.text("job_id"), reply.header("retry-after")), (job_id.clone(), "1"));
            api.get(&format!("/v1/jobs/{job_id}")).await.problem(503, None);
            // The id makes it safe to try again.
            if link == Link::RepliesLost {
                proxy.set(Link::Pass);
                let look = async || matches!(api.submit(&spec).await.status, 200 | 202).then_some(());
                until("the job is accepted", look).await;
                let count = format!("SELECT count(*) FROM harness_jobs WHERE job_id = '{job_id}'");
                assert_eq!(fleet.database.count(&count).await, 1);
                proxy.set(link);
            }
        }
        let unready = async || (door.get("/ready").await.0 == 503).then_some(());
        until("the door is not ready", unready).await;
        proxy.set(Link::Pass);
        let ready = async || (door.get("/ready").await.0 == 200).then_some(());
        until("the door is ready again", ready).await;
    }
}

#[tokio::test]
async fn an_id_that_another_transaction_holds_keeps_no_other_caller_waiting() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let held = JobId::now().to_string();
    let mut holder = fleet.database.connect().await;
    let insert = format!(
        "BEGIN; INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, message, state)
         VALUES ('{held}', 's', 'echo', 'default', '{{}}', 'scheduled')"
    );
    raw_sql(AssertSqlSafe(insert)).execute(&mut holder).await.expect("held");
    let spec = json!({"agent_id": "echo", "job_id": held});
    let waiting = async {
        let asked = Instant::now();
        let reply = api.submit(&spec).await.problem(503, None);
        assert_eq!(reply.text("job_id"), held);
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    };
    let others = async {
        for _ in 0..10 {
            let submitting = (0..8).map(|n| {
                let api = api.clone();
                async move { api.submit(&json!({"agent_id": "echo", "input": n})).await.is(202) }
            });
            futures::future::join_all(submitting).await;
        }
    };
    tokio::join!(waiting, others);
    raw_sql("ROLLBACK").execute(&mut holder).await.expect("released");
    let look = async || matches!(api.submit(&spec).await.status, 200 | 202).then_some(());
    until("the job is accepted", look).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 81);
}
