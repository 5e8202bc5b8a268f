//! A message of another tenant's job proves nothing but its id, because any AMQP client can send it again with other
//! fields. What runs, and what is replied to, is what the ledger accepted.

use job::{JobSpec, JobState, Json, OnBusy, SessionKey};
use lapin::{BasicProperties, Channel};
use serde_json::{Value, json};
use tests::{Database, Fleet, Runner, claimed, job, until};

fn job_of(tenant: &str, agent: &str, input: Value) -> JobSpec {
    JobSpec { tenant: tenant.parse().expect("a tenant"), ..job("s", agent, input) }
}

/// The same job with what a stranger would have it do.
fn forged(spec: &JobSpec) -> JobSpec {
    JobSpec {
        agent_id: "echo".parse().expect("a name"),
        user_id: Some("a stranger".to_owned()),
        input: Json::parse(r#""stolen""#).expect("JSON"),
        reply_to: Some("stolen".to_owned()),
        on_busy: OnBusy::Reject,
        timeout_ms: Some(1),
        ..spec.clone()
    }
}

async fn publish(fleet: &Fleet, spec: &JobSpec) {
    fleet.vhost.publish(vec![(job::encode(spec).into_bytes(), BasicProperties::default())]).await;
}

/// The next reply in a queue.
async fn reply(channel: &Channel, queue: &str) -> Value {
    let get = async || channel.basic_get(queue.into(), Default::default()).await.expect("a queue");
    let reply = until("the reply", get).await;
    serde_json::from_slice(&reply.delivery.data).expect("JSON")
}

#[tokio::test]
async fn a_claim_hands_out_the_ledgers_envelope_of_another_tenants_job_and_none_of_the_tenant_defaults() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let (ours, theirs) = (job("ours", "scripted", json!(1)), job_of("acme", "scripted", json!(2)));
    store.accept(&[ours.clone(), theirs.clone()]).await.unwrap();
    let run = claimed(runner.claim(&forged(&theirs)).await.unwrap());
    assert_eq!(run.message, Some(job::encode(&theirs)));
    assert_eq!(claimed(runner.claim(&ours).await.unwrap()).message, None);
    let key = SessionKey::new(&theirs.tenant, &theirs.session_id);
    let session = store.session(&key).await.unwrap().expect("a session");
    assert_eq!(session.head.agent_id, "scripted");
    let users = "SELECT count(*) FROM harness_sessions WHERE user_id IS NOT NULL";
    assert_eq!(database.count(users).await, 0);
}

#[tokio::test]
async fn a_message_that_names_another_tenants_job_changes_neither_what_runs_nor_who_gets_the_result() {
    let fleet = Fleet::new().await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.unwrap();
    for queue in ["ours", "stolen"] {
        channel.queue_declare(queue.into(), Default::default(), Default::default()).await.unwrap();
    }
    let worker = fleet.worker("worker").start().await;
    let spec =
        JobSpec { reply_to: Some("ours".to_owned()), ..job_of("acme", "scripted", json!({"count": 2})) };
    fleet.store.accept(std::slice::from_ref(&spec)).await.unwrap();
    publish(&fleet, &forged(&spec)).await;
    let ended = fleet.ended(spec.job_id).await;
    assert_eq!((ended.state, ended.iterations), (JobState::Succeeded, 2), "{ended:?}");
    assert_eq!(reply(&channel, "ours").await["job_id"], spec.job_id.to_string());
    // After its end, a message brings the reply once more.
    publish(&fleet, &forged(&spec)).await;
    assert_eq!(reply(&channel, "ours").await["job_id"], spec.job_id.to_string());
    worker.counted(r#"harness_claims_total{answer="finished"}"#, 1.0).await;
    assert_eq!(fleet.vhost.look_at("stolen").await.unwrap().0, 0);
    drop(worker);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_message_that_names_another_tenants_waiting_job_does_not_reject_it() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let long = job_of("acme", "scripted", json!({"count": 100_000, "delay_ms": 20}));
    let waits = job_of("acme", "echo", json!("accepted"));
    fleet.store.accept(&[long.clone(), waits.clone()]).await.unwrap();
    publish(&fleet, &long).await;
    fleet.iterated(long.job_id, 1).await;
    publish(&fleet, &forged(&waits)).await;
    worker.counted(r#"harness_claims_total{answer="blocked"}"#, 1.0).await;
    fleet.store.cancel("a test", &[long.job_id]).await.unwrap();
    let ended = fleet.ended(waits.job_id).await;
    assert_eq!(ended.state, JobState::Succeeded, "{ended:?}");
    assert_eq!(ended.output.as_ref().map(Json::as_str), Some(r#""accepted""#));
    fleet.ended(long.job_id).await;
    drop(worker);
    fleet.database.audited().await;
}
