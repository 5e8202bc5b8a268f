//! Large bodies: those under way to slow receivers have a bound, and the others wait.

use serde_json::json;
use tests::{Api, Fleet};

use super::receiver::Receiver;
use super::{delivered, door, submitted, webhook};

#[tokio::test]
async fn few_large_bodies_are_under_way_at_a_time_and_small_ones_do_not_wait_for_them() {
    let fleet = Fleet::new().await;
    let door = door(&fleet, "door").start().await;
    let api = Api::of(&door).await;
    let (one, two, small) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let (mut large, content) = (Vec::new(), json!({"content": true}));
    for slow in [&one, &two] {
        slow.hold();
        large.push(webhook(&api, &slow.url(), content.clone()).await.0);
    }
    let (small_id, _) = webhook(&api, &small.url(), json!({})).await;
    let said = "x".repeat(900_000);
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(submitted(&api, json!({"agent_id": "echo", "input": said})).await);
    }
    // All at once: a delivery waits for its place for 20 s only.
    for job_id in jobs {
        api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
    }
    delivered(&api, &small_id, 6).await;
    one.has(2).await;
    two.has(2).await;
    // There are places for all six of each, but a webhook may have 2 MiB under way.
    assert_eq!([one.received().len(), two.received().len()], [2, 2]);
    for (slow, id) in [&one, &two].into_iter().zip(&large) {
        slow.answer(204);
        delivered(&api, id, 6).await;
        assert!(slow.received().iter().all(|message| message.json()["data"]["input"] == said));
    }
    fleet.database.audited().await;
}
