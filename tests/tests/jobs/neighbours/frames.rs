//! A message whose headers fill a frame becomes a dead letter for each of our consumers, and nothing waits for it.
//!
//! RabbitMQ accepts headers that fill a frame and adds its own (`x-delivery-count`, `x-death`). What it then sends is
//! larger than the agreed frame size.

use job::{FailureCode, JobSpec, JobState};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use queue::DeadLetter;
use serde_json::json;
use tests::{Fleet, Worker, job, until};

/// Sizes of headers that are accepted. The first two become too large with the broker's count of deliveries, the third
/// with its record of a death.
const SIZES: [usize; 3] = [131_002, 130_990, 130_900];

/// Headers of this many bytes on the wire.
fn headers(bytes: usize) -> BasicProperties {
    let mut table = FieldTable::default();
    // Name, type and length take seven bytes.
    table.insert("h".into(), AMQPValue::LongString("x".repeat(bytes - 7).into()));
    BasicProperties::default().with_delivery_mode(2).with_headers(table)
}

/// A message with such headers for an otherwise valid job.
fn heavy(spec: &JobSpec, bytes: usize) -> (Vec<u8>, BasicProperties) {
    let id = spec.job_id.to_string();
    (job::encode(spec).into_bytes(), headers(bytes).with_message_id(id.into()))
}

fn jobs(count: usize) -> Vec<JobSpec> {
    (0..count).map(|n| job(&format!("s-{n}"), "echo", json!(n))).collect()
}

/// Waits for the letter of this job's message.
async fn letter(fleet: &Fleet, spec: &JobSpec) -> DeadLetter {
    let id = spec.job_id.to_string();
    until("the letter", async || {
        let letters = fleet.vhost.dead_letters().await;
        letters.into_iter().find(|letter| letter.message_id.as_ref() == Some(&id))
    })
    .await
}

/// Checks that no connection of this process has ended.
fn undisturbed(process: &Worker) {
    assert!(!process.log().contains("lost the connection"), "{}", process.log());
}

#[tokio::test]
async fn a_message_whose_headers_fill_a_frame_is_a_dead_letter_and_all_other_jobs_go_on() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let (bad, good) = (jobs(4), jobs(40));
    let sizes = [SIZES[0], SIZES[1], SIZES[2], 122_881];
    let largest = job("just", "echo", json!(1));
    let mut messages: Vec<_> = bad.iter().zip(sizes).map(|(spec, bytes)| heavy(spec, bytes)).collect();
    messages.push(heavy(&largest, 122_880));
    fleet.vhost.publish(messages).await;
    fleet.enqueue(&good).await;
    fleet.undisturbed(&good).await;
    assert_eq!(fleet.ended(largest.job_id).await.state, JobState::Succeeded);
    for (spec, bytes) in bad.iter().zip(sizes) {
        let letter = letter(&fleet, spec).await;
        let reason = format!("headers: got {bytes} bytes, expected at most 122880");
        assert_eq!((letter.reason, letter.code.as_str()), (reason, "undecodable"));
        assert_eq!(letter.headers["x-harness-headers-dropped"], json!(bytes));
        assert_eq!(letter.body, job::encode(spec).into_bytes());
    }
    undisturbed(&worker);
}

#[tokio::test]
async fn a_message_that_the_broker_gives_up_ends_its_job_is_listed_and_can_be_redriven() {
    let fleet = Fleet::new().await;
    // A worker has declared its queue.
    fleet.vhost.broker().await.close().await;
    let relay = fleet.relay("relay").launch();
    relay.said("relays due jobs").await;
    let (known, strangers) = (jobs(SIZES.len()), jobs(SIZES.len()));
    fleet.store.accept(&known).await.expect("accepted");
    let dying = known.iter().chain(&strangers).zip(SIZES.iter().cycle()).map(|(spec, bytes)| {
        let (body, properties) = heavy(spec, *bytes);
        (body, properties.with_expiration("1".into()))
    });
    fleet.vhost.publish(dying.collect()).await;
    for spec in &known {
        let ended = fleet.ended(spec.job_id).await;
        let code = ended.failure.map(|failure| failure.code);
        assert_eq!((ended.state, code), (JobState::Failed, Some(FailureCode::DeadLettered)));
    }
    for (spec, bytes) in strangers.iter().zip(SIZES) {
        let letter = letter(&fleet, spec).await;
        assert_eq!(
            (letter.code.as_str(), letter.headers["x-harness-headers-dropped"].clone()),
            ("expired", json!(bytes))
        );
    }
    let list = fleet.producer(&["dead", "list", "--json"]).await;
    assert_eq!((list.code, list.json().len()), (0, 2 * SIZES.len()), "{list:?}");
    let worker = fleet.worker("worker").start().await;
    let ids = strangers.iter().map(|spec| spec.job_id.to_string());
    let redrive = [vec!["dead".to_owned(), "redrive".to_owned()], ids.collect()].concat();
    let redriven = fleet.producer(&redrive.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(redriven.code, 0, "{redriven:?}");
    fleet.undisturbed(&strangers).await;
    undisturbed(&relay);
    undisturbed(&worker);
}

#[tokio::test]
async fn where_frames_are_small_a_dead_letter_keeps_the_headers_that_fit() {
    let fleet = Fleet::new().await;
    let address = format!("{}?frame_max=4096", fleet.vhost.url);
    let worker = fleet.worker("worker").set("AMQP_URL", address).start().await;
    let mut table = FieldTable::default();
    for (name, bytes) in [("a", 1_000), ("b", 1_200), ("c", 1_700)] {
        table.insert(name.into(), AMQPValue::LongString("x".repeat(bytes).into()));
    }
    let bad = BasicProperties::default().with_message_id("bad".into()).with_headers(table);
    fleet.vhost.publish(vec![(b"{".to_vec(), bad)]).await;
    let good = jobs(10);
    fleet.enqueue(&good).await;
    fleet.undisturbed(&good).await;
    let letters = until("the letter", async || {
        Some(fleet.vhost.dead_letters().await).filter(|letters| !letters.is_empty())
    })
    .await;
    let headers = &letters[0].headers;
    assert!(letters[0].reason.starts_with("body: "), "{headers:?}");
    let kept = ["a", "b", "c"].map(|name| headers.contains_key(name));
    assert_eq!(
        (kept, &headers["x-harness-headers-dropped"]),
        ([true, true, false], &json!(1_707)),
        "{headers:?}"
    );
    undisturbed(&worker);
}
