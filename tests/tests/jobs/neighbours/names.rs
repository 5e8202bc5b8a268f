//! A foreign reply name harms no other caller: it is refused, or used where it cannot do harm.

use futures::StreamExt;
use job::{FailureCode, JobSpec, JobState};
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Consumer};
use serde_json::{Value, json};
use tests::{Fleet, TIMEOUT, job, until};
use tokio::time::timeout;

fn jobs(session: &str, count: usize) -> Vec<JobSpec> {
    (0..count).map(|n| job(&format!("{session}-{n}"), "echo", json!(n))).collect()
}

fn replying_to(name: impl AsRef<str>) -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2).with_reply_to(name.as_ref().into())
}

async fn publish(fleet: &Fleet, jobs: &[JobSpec], names: &[String]) {
    let names = names.iter().cycle();
    let messages =
        jobs.iter().zip(names).map(|(spec, name)| (job::encode(spec).into_bytes(), replying_to(name)));
    fleet.vhost.publish(messages.collect()).await;
}

/// The broker's connections by name, each with its client port. The broker lists them a little later than they open.
async fn connections(fleet: &Fleet) -> Vec<(String, String)> {
    until("the worker's connections are listed", async || {
        let mut all = fleet.vhost.connections();
        all.retain(|(name, _)| ["worker, consuming", "worker, publishing"].contains(&name.as_str()));
        all.sort();
        (all.len() == 2).then_some(all)
    })
    .await
}

/// Names that break a connection in RabbitMQ up to 4.1.
fn made_up() -> Vec<String> {
    // The last one is only the beginning of a pid.
    ["cGlk", "%%%", "g1h2AA5yZXBseUA3MzExNDMwOAAAGvcA", "g1g="]
        .map(|pid| format!("amq.rabbitmq.reply-to.{pid}.cKz5+xVU/WVQ1u2igtb+nQ=="))
        .into()
}

/// Valid names of clients at a node that does not exist. `AAAAAAAAAAEAAAAAa...` is process and creation.
fn nowhere() -> Vec<String> {
    ["g1h2AAlyZXBseUAxMjMAAAABAAAAAGsJj2Q=", "g1h2AAlyZXBseUAxMjQAAAABAAAAAGsJj2Q="]
        .map(|pid| format!("amq.rabbitmq.reply-to.{pid}.cKz5+xVU/WVQ1u2igtb+nQ=="))
        .into()
}

#[tokio::test]
async fn names_that_no_broker_can_decode_are_refused_and_all_other_jobs_go_on() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let before = connections(&fleet).await;
    let (bad, good) = (jobs("bad", 40), jobs("good", 40));
    publish(&fleet, &bad, &made_up()).await;
    fleet.enqueue(&good).await;
    fleet.undisturbed(&good).await;
    let letters = until("a letter for each", async || {
        Some(fleet.vhost.dead_letters().await).filter(|letters| letters.len() == bad.len())
    })
    .await;
    for letter in letters {
        assert!(letter.reason.starts_with("reply_to: got \"amq.rabbitmq.reply-to."), "{}", letter.reason);
    }
    assert_eq!(connections(&fleet).await, before);
    assert!(!worker.log().contains("lost the connection"), "{}", worker.log());
}

/// Returns a client that waits for replies on its channel, without a queue.
pub async fn client(connection: &lapin::Connection) -> (Channel, Consumer) {
    let channel = connection.create_channel().await.expect("a channel");
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consuming =
        channel.basic_consume("amq.rabbitmq.reply-to".into(), "".into(), options, Default::default());
    let replies = consuming.await.expect("consuming");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    (channel, replies)
}

/// Runs a job for a client and returns the reply.
pub async fn call(channel: &Channel, replies: &mut Consumer, spec: &JobSpec) -> Value {
    let (options, key) = (BasicPublishOptions { mandatory: true, ..Default::default() }, "default");
    let (body, properties) = (job::encode(spec), replying_to("amq.rabbitmq.reply-to"));
    let sent = channel.basic_publish("harness.jobs".into(), key.into(), options, body.as_bytes(), properties);
    assert!(sent.await.expect("published").await.expect("confirmed").is_ack());
    let reply = timeout(TIMEOUT, replies.next()).await.expect("a reply in time").expect("a consumer");
    serde_json::from_slice(&reply.expect("a reply").data).expect("JSON")
}

#[tokio::test]
async fn a_client_gets_its_replies_while_others_name_clients_at_nodes_that_are_not_there() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 1).start().await;
    let before = connections(&fleet).await;
    let connection = fleet.vhost.lapin().await;
    let (channel, mut replies) = client(&connection).await;
    let mine = jobs("mine", 3);
    let first = call(&channel, &mut replies, &mine[0]).await;
    assert_eq!((&first["job_id"], &first["output"]), (&json!(mine[0].job_id), &json!(0)));
    // If the slot had to wait for each of these replies in turn, they would take too long.
    let (strangers, good) = (jobs("stranger", 60), jobs("good", 20));
    publish(&fleet, &strangers, &nowhere()).await;
    fleet.enqueue(&good).await;
    for spec in &mine[1..] {
        assert_eq!(call(&channel, &mut replies, spec).await["job_id"], json!(spec.job_id));
    }
    fleet.undisturbed(&good).await;
    fleet.undisturbed(&strangers).await;
    assert_eq!(connections(&fleet).await, before, "the connections of the worker were not touched");
}

#[tokio::test]
async fn a_reply_goes_where_the_rule_allows_and_never_into_the_fleets_own_queues() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").set("REPLY_TO_ALLOW", "results,team-*").start().await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.unwrap();
    for queue in ["results", "team-a", "elsewhere"] {
        channel.queue_declare(queue.into(), Default::default(), Default::default()).await.unwrap();
    }
    let allowed = jobs("allowed", 2);
    publish(&fleet, &allowed, &["results".to_owned(), "team-a".to_owned()]).await;
    for queue in ["results", "team-a"] {
        let get = async || channel.basic_get(queue.into(), Default::default()).await.unwrap();
        until("the reply", get).await;
    }
    let refused = ["harness.jobs.default", "harness.dead", "amq.direct", "elsewhere"].map(str::to_owned);
    let bad = jobs("bad", refused.len());
    publish(&fleet, &bad, &refused).await;
    let letters = until("a letter for each", async || {
        Some(fleet.vhost.dead_letters().await).filter(|letters| letters.len() == bad.len())
    })
    .await;
    for name in &refused {
        let named = format!("reply_to: got \"{name}\"");
        assert!(letters.iter().any(|letter| letter.reason.starts_with(&named)), "{named}: {letters:?}");
    }

    // The producer refuses them too. Where its rule is wider than the workers', the workers' rule decides.
    let mut at_the_door = job("door", "echo", json!(1));
    at_the_door.reply_to = Some("harness.dead".to_owned());
    let ran = fleet.producer_with_input(&job::encode(&at_the_door), &["enqueue", "--file", "-"]).await;
    assert!(ran.code != 0 && ran.err.contains("reply_to: got \"harness.dead\""), "{ran:?}");
    at_the_door.reply_to = Some("elsewhere".to_owned());
    fleet.enqueue(std::slice::from_ref(&at_the_door)).await;
    let ended = fleet.ended(at_the_door.job_id).await;
    assert_eq!((ended.state, ended.failure.unwrap().code), (JobState::Failed, FailureCode::DeadLettered));
    worker.said("the reply was not sent").await;
    assert_eq!(fleet.vhost.look_at("elsewhere").await.unwrap().0, 0);
}

#[tokio::test]
async fn ending_thousands_of_jobs_at_once_replies_to_all_of_their_callers() {
    const JOBS: usize = 2_500;
    let fleet = Fleet::new().await;
    fleet.vhost.broker().await.close().await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.unwrap();
    channel.queue_declare("results".into(), Default::default(), Default::default()).await.unwrap();
    let all: Vec<JobSpec> = (0..JOBS)
        .map(|n| JobSpec { reply_to: Some("results".to_owned()), ..job("s", "echo", json!(n)) })
        .collect();
    fleet.enqueue(&all).await;
    let ran = fleet.producer(&["cancel", "--session", "s"]).await;
    assert_eq!((ran.code, ran.out.lines().count()), (0, JOBS), "{}", ran.err);
    assert_eq!(fleet.vhost.look_at("results").await.unwrap().0 as usize, JOBS);
}
