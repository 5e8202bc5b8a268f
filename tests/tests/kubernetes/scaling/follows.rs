//! It follows the backlog of a healthy fleet, and removes no worker that is busy or that it cannot tell from others.

use job::{JobSpec, JobState};
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::json;
use tests::{PodState, steps, until};

use super::world::{World, decides};

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_follows_a_burst_and_no_job_is_interrupted_when_it_shrinks() {
    let world = World::new().await;
    world.namespace.deployment(1).await;
    let node = world.node();
    world.fleet.workers_alive(1).await;
    let mut autoscaler = world.start("autoscaler", "Deployment").await;
    let long = steps(0, 1_000, 100);
    let burst: Vec<JobSpec> = (1..16).map(|session| steps(session, 30, 100)).collect();
    world.fleet.enqueue(std::slice::from_ref(&long)).await;
    world.fleet.enqueue(&burst).await;
    world.pods(4).await;
    world.fleet.undisturbed(&burst).await;
    // The long job runs on one of the four workers; the three idle ones go.
    world.pods(1).await;
    assert_eq!(world.fleet.view(long.job_id).await.unwrap().state, JobState::Running);
    let cancelled = world.fleet.producer(&["cancel", &long.job_id.to_string()]).await;
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let ended = world.fleet.ended(long.job_id).await;
    assert_eq!((ended.state, ended.attempts), (JobState::Cancelled, 1), "{ended:?}");
    until("the processes have ended", async || (node.exits().len() == 3).then_some(())).await;
    assert!(node.exits().iter().all(|(_, code)| *code == 0), "{:?}", node.exits());

    let events = world.namespace.events().await;
    let text =
        |from: &str| events.iter().any(|event| event.note.as_ref().is_some_and(|note| note.contains(from)));
    assert!(text("from 1 to") && text("to 1"), "{events:?}");
    autoscaler.terminate();
    assert_eq!(autoscaler.exit().await, 0);
    world.pods(1).await;
    world.fleet.database.audited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_loses_its_highest_ordinals() {
    let world = World::new().await;
    world.namespace.stateful_set(3, "Parallel").await;
    let _node = world.node();
    world.fleet.workers_alive(3).await;
    let _autoscaler = world.start("autoscaler", "StatefulSet").await;
    assert_eq!(world.pods(1).await, ["worker-0"]);
    world.fleet.database.audited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_goes_while_an_undrained_pod_is_not_ready() {
    let world = World::new().await;
    world.namespace.deployment(3).await;
    let _node = world.node();
    world.fleet.workers_alive(3).await;
    // A rollout that does not progress, because its new pod cannot start.
    let stuck = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "worker", "image": "newer" }] } },
                                  "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } } } });
    drop(_node);
    world.patch(stuck).await;
    let pods = world.pods(4).await;
    let autoscaler = world.start("autoscaler", "Deployment").await;
    decides(&autoscaler).await;
    assert_eq!(world.replicas().await, 3, "of {pods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn demand_that_returns_takes_marks_back_before_the_workload_grows() {
    let world = World::new().await;
    world.namespace.deployment(2).await;
    let pods = world.pods(2).await;
    // Two workers of the test itself; their pods stay Ready whatever the workers report, so that none may go.
    let mut workers = Vec::new();
    for pod in &pods {
        workers.push(world.fleet.worker(pod).set("POD_NAME", pod).start().await);
    }
    let _autoscaler = world.start("autoscaler", "Deployment").await;
    world.drained(1).await;
    let jobs: Vec<JobSpec> = (0..8).map(|session| steps(session, 70, 100)).collect();
    world.fleet.enqueue(&jobs).await;
    world.drained(0).await;
    world.fleet.undisturbed(&jobs).await;
    assert_eq!(world.namespace.pod_names().await, pods, "neither more nor fewer, nor others");
    for worker in &workers {
        assert!(
            worker.metric("harness_requests_total{outcome=\"succeeded\"}").await > 0.0,
            "both have worked"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_autoscalers_one_decides_and_the_other_takes_over_from_one_that_was_paused() {
    let world = World::new().await;
    world.namespace.deployment(1).await;
    let _node = world.node();
    world.fleet.workers_alive(1).await;
    let first = world.start("first", "Deployment").await;
    first.said("leads").await;
    let second = world.start("second", "Deployment").await;
    assert_eq!(second.get_json("/ready").await.1["checks"]["role"], "standby");

    first.pause();
    second.said("leads").await;
    let jobs: Vec<JobSpec> = (0..16).map(|session| steps(session, 60, 100)).collect();
    world.fleet.enqueue(&jobs).await;
    world.pods(4).await;
    first.resume();
    first.said("leads no more").await;
    let epochs = "SELECT count(DISTINCT epoch) FROM harness_scale_decisions WHERE from_replicas <> desired_replicas AND outcome = 'resized'";
    assert_eq!(world.fleet.database.count(epochs).await, 1, "the paused one has changed nothing");
    world.fleet.undisturbed(&jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_of_another_autoscaler_is_left_alone() {
    let world = World::new().await;
    world.namespace.deployment(1).await;
    let hpa = json!({ "metadata": { "name": "theirs" }, "spec": { "maxReplicas": 9,
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "worker" } } });
    world.namespace.create::<k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler>(hpa).await;
    let autoscaler = world.start("autoscaler", "Deployment").await;
    let jobs: Vec<JobSpec> = (0..16).map(|session| steps(session, 1, 10)).collect();
    world.fleet.enqueue(&jobs).await;
    let said = autoscaler.said("is also scaled by").await;
    assert!(said.contains("theirs"), "{said}");
    until("an event says so", async || {
        let events = world.namespace.events().await;
        events
            .iter()
            .any(|event| event.note.as_ref().is_some_and(|note| note.contains("theirs")))
            .then_some(())
    })
    .await;
    assert_eq!(world.namespace.pod_names().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_that_would_remove_its_pods_one_by_one_is_not_shrunk() {
    let world = World::new().await;
    world.namespace.stateful_set(2, "OrderedReady").await;
    let _node = world.node();
    world.fleet.workers_alive(2).await;
    let autoscaler = world.start("autoscaler", "StatefulSet").await;
    decides(&autoscaler).await;
    let sets = world.namespace.api::<StatefulSet>();
    assert_eq!(sets.get_scale("worker").await.expect("a scale").spec.and_then(|spec| spec.replicas), Some(2));
    let pod = &world.namespace.pod_names().await[1];
    world.namespace.set_pod(pod, PodState::CrashLooping).await;
    decides(&autoscaler).await;
    assert_eq!(sets.get_scale("worker").await.expect("a scale").spec.and_then(|spec| spec.replicas), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_round_by_hand_says_what_it_does_and_a_dry_run_does_nothing() {
    let world = World::new().await;
    world.namespace.deployment(1).await;
    let jobs: Vec<JobSpec> = (0..16).map(|session| steps(session, 1, 1)).collect();
    world.fleet.enqueue(&jobs).await;

    let dry = world.once(&["--dry-run"]).await;
    assert_eq!((dry.code, dry.out.contains("default: grows from 1 to 4")), (0, true), "{dry:?}");
    assert_eq!(world.namespace.pod_names().await.len(), 1, "a dry run writes nothing");
    let decisions = "SELECT count(*) FROM harness_scale_decisions";
    assert_eq!(world.fleet.database.count(decisions).await, 0, "not even into the ledger");

    let elsewhere = world.once(&["--kube-context", "elsewhere"]).await;
    assert_eq!((elsewhere.code, elsewhere.err.contains("elsewhere")), (1, true), "{elsewhere:?}");

    let done = world.once(&["--kube-context", "test", "--json"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.json()[0]["decision"]["desired"], 4);
    world.pods(4).await;

    // A round by hand leaves no lease behind, and does nothing while another autoscaler has the lease.
    let leader = world.start("autoscaler", "Deployment").await;
    leader.said("leads").await;
    let second = world.once(&[]).await;
    assert_eq!((second.code, second.err.contains("another autoscaler")), (3, true), "{second:?}");
}
