//! Whatever is broken in the cluster, as many healthy workers as are wanted take jobs, and nothing that could continue
//! waits for ever.

use std::collections::BTreeMap;

use job::JobSpec;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tests::{PodState, Worker, steps, until, until_ok};

use super::world::{World, decides};

/// Waits until the autoscaler has wanted one worker for three rounds.
async fn wants_one(autoscaler: &Worker) {
    let wanted = async || autoscaler.metric("harness_autoscaler_desired_replicas{pool=\"default\"}").await;
    until("one worker is wanted", async || (wanted().await == 1.0).then_some(())).await;
    decides(autoscaler).await;
}

/// Jobs for four workers.
fn burst() -> Vec<JobSpec> {
    (0..16).map(|session| steps(session, 30, 100)).collect()
}

/// A change of the pods' template that removes no pod before the next one is Ready.
fn newer() -> Value {
    json!({ "spec": { "template": { "spec": { "containers": [{ "name": "worker", "image": "newer" }] } },
                      "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } } } })
}

/// Waits until no pod of an older revision is left.
async fn rolled_out(world: &World) {
    let status = async || world.namespace.api::<Deployment>().get("worker").await.expect("it").status;
    until_ok("the rollout is over", async || {
        let status = status().await.unwrap_or_default();
        let over = status.updated_replicas == status.replicas && status.unavailable_replicas.is_none();
        if over { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_burst_beyond_the_nodes_room_a_new_job_starts_as_ever() {
    let world = World::new().await;
    world.namespace.deployment(1).await;
    let _node = world.node_with_room(2);
    world.fleet.workers_alive(1).await;
    let autoscaler = world.start("autoscaler", "Deployment").await;
    let jobs = burst();
    world.fleet.enqueue(&jobs).await;
    world.pods(4).await;
    world.fleet.undisturbed(&jobs).await;

    wants_one(&autoscaler).await;
    assert_eq!(world.marked().await, 0, "two pods are pending, so none can go");
    world.waits("is not Ready (Pending) and not drained").await;
    let waits = "harness_scale_in_waits{kind=\"not_ready\",pool=\"default\"}";
    autoscaler.counted(waits, 3.0).await;
    let next = steps(99, 1, 1);
    world.fleet.enqueue(std::slice::from_ref(&next)).await;
    world.fleet.undisturbed(&[next]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_while_a_pool_shrinks_is_over_in_its_own_time() {
    let world = World::new().await;
    world.namespace.deployment(4).await;
    let node = world.node_with_room(4);
    world.fleet.workers_alive(4).await;
    world.patch(newer()).await;
    world.pods(5).await;
    let autoscaler = world.start("autoscaler", "Deployment").await;
    wants_one(&autoscaler).await;
    assert_eq!((world.replicas().await, world.marked().await), (4, 0), "the rollout waits for room");
    world.waits("a rollout is in progress").await;

    node.set_room(usize::MAX);
    rolled_out(&world).await;
    world.pods(1).await;
    world.fleet.database.audited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_begins_when_workers_are_drained_already_gets_them_back() {
    let world = World::new().await;
    world.namespace.deployment(3).await;
    // Pods without a node stay Ready whatever their workers report, so drained ones do not go.
    let mut workers = Vec::new();
    for pod in world.pods(3).await {
        workers.push(world.fleet.worker(&pod).set("POD_NAME", &pod).start().await);
    }
    let autoscaler = world.start("autoscaler", "Deployment").await;
    world.drained(2).await;
    world.patch(newer()).await;
    autoscaler.said("draining workers take jobs again").await;
    until("no mark is left", async || (world.marked().await == 0).then_some(())).await;
    decides(&autoscaler).await;
    assert_eq!(world.marked().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_node_is_emptied_of_the_worker_that_should_stay_drained_ones_take_its_place() {
    let world = World::new().await;
    world.namespace.deployment(3).await;
    // Pods without a node stay Ready whatever their workers report, so drained ones do not go.
    let mut workers = BTreeMap::new();
    for pod in world.pods(3).await {
        workers.insert(pod.clone(), world.fleet.worker(&pod).set("POD_NAME", &pod).start().await);
    }
    let _autoscaler = world.start("autoscaler", "Deployment").await;
    world.drained(2).await;
    let stays = "SELECT pod_name FROM harness_workers WHERE drain_until IS NULL";
    let stays = world.fleet.database.texts(stays).await.remove(0);
    workers.get_mut(&stays).expect("one of them").terminate();
    world.namespace.api::<Pod>().delete(&stays, &DeleteParams::default()).await.expect("it goes");
    until("no mark is left", async || (world.marked().await == 0).then_some(())).await;
    let next = steps(99, 1, 1);
    world.fleet.enqueue(std::slice::from_ref(&next)).await;
    world.fleet.undisturbed(&[next]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_rollout_is_paused_no_worker_drains_and_the_pool_still_grows() {
    let world = World::new().await;
    world.namespace.deployment(2).await;
    let _node = world.node();
    world.fleet.workers_alive(2).await;
    world.patch(json!({ "spec": { "paused": true } })).await;
    world.patch(newer()).await;
    let autoscaler = world.start("autoscaler", "Deployment").await;
    wants_one(&autoscaler).await;
    assert_eq!((world.replicas().await, world.marked().await), (2, 0));
    world.waits("it is paused, 2 of 2 pods are of an older revision").await;

    let jobs = burst();
    world.fleet.enqueue(&jobs).await;
    world.pods(4).await;
    world.fleet.undisturbed(&jobs).await;
    world.patch(json!({ "spec": { "paused": false } })).await;
    rolled_out(&world).await;
    world.pods(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_a_quota_refuses_are_given_up_when_they_are_not_wanted() {
    let world = World::new().await;
    world.namespace.deployment(1).await;
    let _node = world.node();
    world.fleet.workers_alive(1).await;
    let hard = json!({ "pods": "2" });
    let quota = json!({ "metadata": { "name": "few" }, "spec": { "hard": hard } });
    world.namespace.create::<ResourceQuota>(quota).await;
    // No controller of this cluster counts for the quota.
    let status = Patch::Merge(json!({ "status": { "hard": hard, "used": { "pods": "1" } } }));
    let quotas = world.namespace.api::<ResourceQuota>();
    quotas.patch_status("few", &PatchParams::default(), &status).await.expect("a quota");

    let autoscaler = world.start("autoscaler", "Deployment").await;
    let jobs = burst();
    world.fleet.enqueue(&jobs).await;
    until("four are wanted", async || (world.replicas().await == 4).then_some(())).await;
    world.fleet.undisturbed(&jobs).await;
    until("one is left", async || (world.replicas().await == 1).then_some(())).await;
    world.pods(1).await;
    wants_one(&autoscaler).await;
    let next = steps(99, 1, 1);
    world.fleet.enqueue(std::slice::from_ref(&next)).await;
    world.fleet.undisturbed(&[next]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_never_starts_drains_no_worker_and_scale_in_goes_on_when_it_runs() {
    let world = World::new().await;
    world.namespace.deployment(3).await;
    let node = world.node_with_room(2);
    world.fleet.workers_alive(2).await;
    // The node runs the first two by their names.
    let broken = world.pods(3).await.remove(2);
    world.namespace.set_pod(&broken, PodState::CrashLooping).await;
    let autoscaler = world.start("autoscaler", "Deployment").await;
    for (state, why) in
        [(PodState::CrashLooping, "CrashLoopBackOff"), (PodState::NeverPulled, "ImagePullBackOff")]
    {
        world.namespace.set_pod(&broken, state).await;
        wants_one(&autoscaler).await;
        assert_eq!((world.replicas().await, world.marked().await), (3, 0), "{state:?}");
        let reason =
            format!("no worker can be removed yet: pod {broken} is not Ready ({why}) and not drained");
        if state == PodState::CrashLooping {
            let explained = world.explained().await;
            assert!(explained.contains(&reason), "{explained}");
        }
    }
    node.set_room(3);
    world.pods(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_pod_under_the_selector_neither_goes_nor_keeps_others() {
    let world = World::new().await;
    world.namespace.deployment(3).await;
    let foreign = json!({ "metadata": { "name": "by-hand", "labels": { "app": "worker" } },
                          "spec": { "containers": [{ "name": "worker", "image": "none" }] } });
    world.namespace.create::<Pod>(foreign).await;
    let _node = world.node();
    world.fleet.workers_alive(4).await;
    let _autoscaler = world.start("autoscaler", "Deployment").await;
    let left = world.pods(2).await;
    assert_eq!((left[0].as_str(), world.replicas().await), ("by-hand", 1));
    until("the foreign one works on", async || (world.marked().await == 0).then_some(())).await;
}
