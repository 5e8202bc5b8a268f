//! A message that the broker gives up after a thousand deliveries, none of which reached a slot, ends no job: it is
//! published again.

use job::JobState;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use queue::DEAD_QUEUE;
use serde_json::json;
use tests::{Fleet, job, until};

#[tokio::test]
async fn a_job_whose_message_no_slot_saw_runs_although_the_broker_gave_the_message_up() {
    let fleet = Fleet::new().await;
    let spec = job("given-up", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.expect("a channel");
    let queue = queue::jobs_queue(&spec.pool);
    let give_back = BasicNackOptions { requeue: true, ..Default::default() };
    // Once more than the delivery limit.
    for _ in 0..=1_000 {
        let get = async || {
            channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.expect("an answer")
        };
        let message = until("the message", get).await;
        channel.basic_nack(message.delivery.delivery_tag, give_back).await.expect("given back");
    }
    until("the broker gives it up", async || {
        (fleet.vhost.look_at(DEAD_QUEUE).await.ok()?.0 == 1).then_some(())
    })
    .await;

    let _worker = fleet.worker("worker").start().await;
    let ended = fleet.ended(spec.job_id).await;
    assert_eq!(ended.state, JobState::Succeeded, "{ended:?}");
    // The letter stays, because an operator should find out what gave the message back.
    let letters = fleet.vhost.dead_letters().await;
    assert!(letters[0].reason.contains("published again once"), "{letters:?}");
}
