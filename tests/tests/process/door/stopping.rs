//! What a caller began ends in good order: when the door is asked to stop, and when the caller is gone or too slow.

use http::Method;
use lapin::Channel;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, raw_sql};
use tests::{Api, Fleet, until};

use super::upload::Upload;

const LINE: &str = "{\"agent_id\":\"echo\"}\n";

async fn accepted(fleet: &Fleet, count: i64) {
    let jobs = "SELECT count(*) FROM harness_jobs";
    until("the first ones are accepted", async || (fleet.database.count(jobs).await >= count).then_some(()))
        .await;
}

#[tokio::test]
async fn a_batch_under_way_is_answered_for_what_has_arrived_when_the_door_is_asked_to_stop() {
    let fleet = Fleet::new().await;
    let mut door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let mut batch = Upload::begin(&api, None);
    batch.send(&LINE.repeat(256));
    accepted(&fleet, 256).await;
    // Less than what is accepted together, and the beginning of one more.
    batch.send(&format!("{LINE}{LINE}{{\"agent"));
    // The answer to another request shows that the door has had its chance to read that.
    api.get("/v1/openapi.json").await.is(200);
    door.terminate();
    let (status, _, answer) = tokio::task::spawn_blocking(move || batch.answer()).await.unwrap();
    assert_eq!((status, &answer["complete"]), (200, &json!(false)), "{answer}");
    let items = answer["items"].as_array().expect("answers");
    let (last, before) = items.split_last().expect("answers");
    assert!(before.iter().all(|item| item["status"] == 202), "{answer}");
    assert_eq!((&last["status"], last.get("job_id")), (&json!(503), None), "{answer}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, before.len() as i64);
    assert!(before.len() == 258, "{}", before.len());
    assert_eq!(door.exit().await, 0);
}

/// The next reply in a queue.
async fn reply(channel: &Channel) -> Value {
    let get = async || channel.basic_get("replies".into(), Default::default()).await.expect("a queue");
    serde_json::from_slice(&until("the reply", get).await.delivery.data).expect("JSON")
}

#[tokio::test]
async fn the_reply_of_a_cancelled_job_is_sent_although_its_caller_waits_no_longer() {
    let fleet = Fleet::new().await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.unwrap();
    channel.queue_declare("replies".into(), Default::default(), Default::default()).await.unwrap();
    // Less than the ten seconds of a statement: the cancel waits on.
    let door = fleet.door("door").set("API_ANSWER_WITHIN_MS", 4_000).start().await;
    let api = Api::of(&door).await;
    let spec = json!({"agent_id": "echo", "session_id": "s", "reply_to": "replies"});
    let job_id = api.submit(&spec).await.is(202).text("job_id");
    let mut holder = fleet.database.connect().await;
    let hold = format!("BEGIN; SELECT FROM harness_jobs WHERE job_id = '{job_id}' FOR UPDATE");
    raw_sql(AssertSqlSafe(hold)).execute(&mut holder).await.expect("held");
    let cancelled = api.send(Method::POST, &format!("/v1/jobs/{job_id}/cancel"), &[], Vec::new()).await;
    assert_eq!(cancelled.problem(503, None).text("job_id"), job_id);
    raw_sql("COMMIT").execute(&mut holder).await.expect("released");
    let replied = reply(&channel).await;
    assert_eq!((&replied["job_id"], &replied["state"]), (&json!(job_id), &json!("cancelled")), "{replied}");
}
