//! A workload in Kubernetes is resized as asked, and never on the basis of a look from before a change.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tests::{Cluster, Namespace, PodState, until, until_ok};
use workload::kubernetes::{self, Kubernetes};
use workload::{Event, Order, Target, TargetError, Unsettled, Wait, Workload, lowered};

/// A namespace of the shared cluster, and a workload in it, with the rights of `ops/k8s/autoscaler`.
async fn target(workload: &str) -> (Namespace, Kubernetes) {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let config = namespace.config_of_autoscaler(cluster).await;
    let target = kubernetes::Cluster::with(config).expect("a way to the cluster");
    let target =
        Kubernetes::new(&target, workload.parse().expect("a workload"), None, false).expect("a target");
    (namespace, target)
}

/// Looks until no more change is to come.
async fn at_rest(target: &Kubernetes) -> Workload {
    until_ok("the workload is at rest", async || {
        let seen = target.look().await.expect("a workload");
        if seen.unsettled.is_none() && seen.ready == seen.replicas { Ok(seen) } else { Err(seen) }
    })
    .await
}

fn names(pods: &[&str]) -> BTreeSet<String> {
    pods.iter().map(|pod| (*pod).to_owned()).collect()
}

/// The reason why it cannot be lowered now.
async fn waits(target: &Kubernetes, drained: &BTreeSet<String>) -> Wait {
    let seen = target.look().await.expect("a workload");
    let pods = target.pods(&seen).await.expect("its pods");
    lowered(&seen, &pods, drained, 0).expect_err("a reason to wait")
}

/// Lowers it by these pods as soon as the rule allows, and returns the new number.
async fn lower(target: &Kubernetes, drained: &BTreeSet<String>) -> u32 {
    until_ok("the workload is lowered", async || {
        let seen = target.look().await.expect("a workload");
        let pods = target.pods(&seen).await.expect("its pods");
        let lowering = lowered(&seen, &pods, drained, 0).map_err(|wait| wait.to_string())?;
        if lowering.leaving.len() < drained.len() {
            return Err(format!("only {:?} may leave", lowering.leaving));
        }
        match target.resize(&seen, lowering.to, &lowering.leaving).await {
            Ok(()) => Ok(lowering.to),
            Err(error) if error.is_retryable() => Err(error.to_string()),
            Err(error) => panic!("{error}"),
        }
    })
    .await
}

#[tokio::test]
async fn a_deployment_grows_and_shrinks_by_its_drained_pods_alone() {
    let (namespace, target) = target("deployment/worker").await;
    namespace.deployment(2).await;
    let seen = at_rest(&target).await;
    assert_eq!((seen.replicas, seen.order.clone()), (2, Order::NotReadyFirst));
    target.resize(&seen, 6, &[]).await.unwrap();
    namespace.settle(6).await;
    at_rest(&target).await;

    let pods = namespace.pod_names().await;
    let drained = names(&[&pods[1], &pods[4]]);
    assert!(matches!(waits(&target, &drained).await, Wait::StillReady { .. }));
    for pod in &drained {
        namespace.set_pod(pod, PodState::NotReady).await;
    }
    assert_eq!(lower(&target, &drained).await, 4);
    let left: Vec<_> = pods.into_iter().filter(|pod| !drained.contains(pod)).collect();
    until("two pods have gone", async || (namespace.pod_names().await == left).then_some(())).await;
    at_rest(&target).await;
}

#[tokio::test]
async fn a_stateful_set_shrinks_from_its_highest_ordinal() {
    let (namespace, target) = target("statefulset/worker").await;
    namespace.stateful_set(4, "Parallel").await;
    let seen = at_rest(&target).await;
    assert_eq!(seen.order, Order::HighestOrdinalFirst);

    namespace.set_pod("worker-0", PodState::NotReady).await;
    let first = names(&["worker-0"]);
    let wait = waits(&target, &first).await;
    assert_eq!(wait.to_string(), "pod worker-3 would go first and is not drained");
    namespace.set_pod("worker-0", PodState::Ready).await;

    let last = names(&["worker-2", "worker-3"]);
    for pod in &last {
        namespace.set_pod(pod, PodState::NotReady).await;
    }
    assert_eq!(lower(&target, &last).await, 2);
    let left = ["worker-0", "worker-1"];
    until("two pods have gone", async || (namespace.pod_names().await == left).then_some(())).await;
    target.resize(&at_rest(&target).await, 3, &[]).await.unwrap();
    namespace.settle(3).await;
}

#[tokio::test]
async fn an_ordered_stateful_set_grows_and_is_never_lowered() {
    let (namespace, target) = target("statefulset/worker").await;
    namespace.stateful_set(1, "OrderedReady").await;
    target.resize(&at_rest(&target).await, 2, &[]).await.unwrap();
    namespace.settle(2).await;
    at_rest(&target).await;
    namespace.set_pod("worker-1", PodState::NotReady).await;
    let wait = waits(&target, &names(&["worker-1"])).await;
    assert!(matches!(&wait, Wait::Never(why) if why.contains("expected Parallel")), "{wait}");
}

#[tokio::test]
async fn what_was_looked_at_before_a_change_resizes_nothing() {
    let (namespace, target) = target("deployment/worker").await;
    namespace.deployment(2).await;
    let old = at_rest(&target).await;
    target.touch("demand returned").await.unwrap();
    let error = target.resize(&old, 1, &[]).await.unwrap_err();
    assert!(matches!(error, TargetError::Conflict { .. }) && error.is_retryable(), "{error}");
    let seen = target.look().await.expect("a workload");
    assert_eq!(seen.replicas, 2);
    target.resize(&seen, 3, &[]).await.unwrap();
    assert!(matches!(target.resize(&seen, 4, &[]).await, Err(TargetError::Conflict { .. })));

    let worker = namespace.api::<Deployment>().get("worker").await.unwrap();
    let annotations = worker.metadata.annotations.unwrap();
    assert!(annotations["harness-fleet/undrained-at"].ends_with(": demand returned"), "{annotations:?}");
}

#[tokio::test]
async fn a_touch_changes_a_stateful_set_too() {
    let (namespace, target) = target("statefulset/worker").await;
    namespace.stateful_set(1, "Parallel").await;
    let old = at_rest(&target).await;
    target.touch("demand returned").await.unwrap();
    assert!(matches!(target.resize(&old, 0, &[]).await, Err(TargetError::Conflict { .. })));
}

#[tokio::test]
async fn nothing_is_lowered_while_a_rollout_is_in_progress() {
    let (namespace, target) = target("deployment/worker").await;
    namespace.deployment(3).await;
    at_rest(&target).await;
    let image = json!({ "containers": [{ "name": "worker", "image": "newer" }] });
    let patch = Patch::Strategic(json!({ "spec": { "template": { "spec": image } } }));
    namespace.api::<Deployment>().patch("worker", &PatchParams::default(), &patch).await.unwrap();
    let drained: BTreeSet<_> = namespace.pod_names().await.into_iter().take(1).collect();
    let rollout = |wait: &Wait| matches!(wait, Wait::Unsettled(Unsettled::Rollout(_)));
    until_ok("the rollout is seen", async || {
        let wait = waits(&target, &drained).await;
        if rollout(&wait) { Ok(()) } else { Err(wait) }
    })
    .await;
    // The pod of the new revision exists, but is not Ready.
    until("a fourth pod is there", async || (namespace.pods().await.len() == 4).then_some(())).await;
    let wait = waits(&target, &drained).await;
    assert!(rollout(&wait), "{wait}");
    until("the rollout is over", async || {
        namespace.settle(3).await;
        target.look().await.expect("a workload").unsettled.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn pods_that_start_or_crash_make_it_wait() {
    let (namespace, target) = target("deployment/worker").await;
    namespace.deployment(3).await;
    at_rest(&target).await;
    let pods = namespace.pod_names().await;
    let drained = names(&[&pods[0]]);
    namespace.set_pod(&pods[0], PodState::NotReady).await;
    namespace.set_pod(&pods[2], PodState::CrashLooping).await;
    let wait = waits(&target, &drained).await;
    assert_eq!(wait.to_string(), format!("pod {} is not Ready (CrashLoopBackOff) and not drained", pods[2]));
    namespace.set_pod(&pods[2], PodState::Ready).await;

    let grown = until_ok("it grows", async || {
        let seen = target.look().await.expect("a workload");
        target.resize(&seen, 4, &[]).await
    });
    grown.await;
    until("a fourth pod is there", async || (namespace.pods().await.len() == 4).then_some(())).await;
    let waiting = until_ok("its controller has made the pod", async || {
        let wait = waits(&target, &drained).await;
        if matches!(wait, Wait::Unsettled(_)) { Err(wait) } else { Ok(wait) }
    });
    let wait = waiting.await;
    let starting = matches!(&wait, Wait::NotReady { trouble: Some(trouble), .. } if trouble == "Pending");
    assert!(starting, "{wait}");
}

#[tokio::test]
async fn a_wait_is_an_event_of_the_workload() {
    let (namespace, target) = target("deployment/worker").await;
    namespace.deployment(1).await;
    at_rest(&target).await;
    for usual in [false, true] {
        let why = format!("usual: {usual}");
        target.report(&Event::Waits { from: 6, to: 2, why, usual }).await;
    }
    let events = namespace.events().await;
    let text: Vec<_> = events
        .iter()
        .map(|event| (event.type_.as_deref(), event.reason.as_deref(), event.note.as_deref()))
        .collect();
    let note = |usual| format!("Shrinking from 6 to 2 replicas waits: usual: {usual}");
    let (warning, normal) = (note(false), note(true));
    let expected = [("Warning", &warning), ("Normal", &normal)];
    assert_eq!(text, expected.map(|(kind, note)| (Some(kind), Some("ScaleInWaits"), Some(note.as_str()))));
}

/// A kind that is not known beforehand, but whose pods are ranked by readiness as usual.
#[tokio::test]
async fn any_kind_with_a_scale_grows_and_shrinks_where_it_is_known_who_goes() {
    let (namespace, target) = target("v1/ReplicationController/worker").await;
    namespace.grant("autoscaler", "controllers", json!([
        { "apiGroups": [""], "resources": ["replicationcontrollers"], "verbs": ["get", "patch"] },
        { "apiGroups": [""], "resources": ["replicationcontrollers/scale"], "verbs": ["get", "patch"] },
    ]))
    .await;
    let labels = json!({ "app": "worker" });
    let container = json!([{ "name": "worker", "image": "none" }]);
    let template = json!({ "metadata": { "labels": labels }, "spec": { "containers": container } });
    let spec = json!({ "replicas": 2, "selector": labels, "template": template });
    namespace
        .create::<ReplicationController>(json!({ "metadata": { "name": "worker" }, "spec": spec }))
        .await;
    namespace.settle(2).await;
    until_ok("the rights are noticed", async || target.look().await).await;
    let seen = at_rest(&target).await;
    assert_eq!((seen.replicas, &seen.order), (2, &Order::NotReadyFirst));

    target.resize(&seen, 3, &[]).await.unwrap();
    assert!(matches!(target.resize(&seen, 4, &[]).await, Err(TargetError::Conflict { .. })));
    namespace.settle(3).await;
    let old = at_rest(&target).await;
    target.touch("demand returned").await.unwrap();
    assert!(matches!(target.resize(&old, 1, &[]).await, Err(TargetError::Conflict { .. })));

    let drained = names(&[&namespace.pod_names().await[1]]);
    for pod in &drained {
        namespace.set_pod(pod, PodState::NotReady).await;
    }
    assert_eq!(lower(&target, &drained).await, 2);
    until("the drained pod has gone", async || {
        let pods = namespace.pod_names().await;
        (pods.len() == 2 && pods.iter().all(|pod| !drained.contains(pod))).then_some(())
    })
    .await;
}

async fn an_object_of_that_kind_is_resized(namespace: &Namespace, fleet: &Kubernetes) {
    let rules = json!([
        { "apiGroups": ["example.com"], "resources": ["armada"], "verbs": ["get", "patch"] },
        { "apiGroups": ["example.com"], "resources": ["armada/scale"], "verbs": ["get", "patch"] },
    ]);
    namespace.grant("autoscaler", "fleets", rules).await;
    let object = json!({ "apiVersion": "example.com/v1", "kind": "Fleet", "metadata": { "name": "worker" },
                         "spec": { "size": 2 } });
    namespace.create_raw("/apis/example.com/v1", "armada", &object).await;
    let seen = until_ok("the rights are noticed", async || fleet.look().await).await;
    assert_eq!(seen.replicas, 2);
    assert!(matches!(&seen.order, Order::Never(why) if why.contains("no selector")), "{seen:?}");
    until_ok("it grows", async || fleet.resize(&seen, 5, &[]).await).await;
    assert!(matches!(fleet.resize(&seen, 6, &[]).await, Err(TargetError::Conflict { .. })));
    let seen = fleet.look().await.expect("the fleet");
    assert_eq!(seen.replicas, 5);
    fleet.touch("demand returned").await.expect("a touch");
    assert!(matches!(fleet.resize(&seen, 1, &[]).await, Err(TargetError::Conflict { .. })));
}

/// Defines a custom kind as operators do, with or without a scale.
async fn define(cluster: &Cluster, kind: &str, plural: &str, scale: bool) {
    let integer = json!({ "type": "integer" });
    let schema = json!({ "type": "object", "properties": {
        "spec": { "type": "object", "properties": { "size": integer } },
        "status": { "type": "object", "properties": { "size": integer, "selector": { "type": "string" } } },
    } });
    let paths = json!({ "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size",
                        "labelSelectorPath": ".status.selector" });
    let subresources = if scale { json!({ "scale": paths }) } else { json!({}) };
    let version = json!({ "name": "v1", "served": true, "storage": true, "subresources": subresources,
                          "schema": { "openAPIV3Schema": schema } });
    let names = json!({ "plural": plural, "kind": kind });
    let definition = json!({ "metadata": { "name": format!("{plural}.example.com") },
                             "spec": { "group": "example.com", "scope": "Namespaced", "names": names,
                                       "versions": [version] } });
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client().await);
    let definition = serde_json::from_value(definition).expect("a definition");
    definitions.create(&PostParams::default(), &definition).await.expect("a new kind");
}

#[tokio::test]
async fn a_kind_of_ones_own_is_found_by_its_definition() {
    let cluster = Cluster::shared().await;
    let (namespace, fleet) = target("example.com/v1/Fleet/worker").await;
    let error = fleet.look().await.unwrap_err();
    let none = "the API server has no kind Fleet in example.com/v1";
    assert!(matches!(&error, TargetError::NotFound { message, .. } if message == none), "{error}");

    define(cluster, "Fleet", "armada", true).await;
    let right =
        format!("the right to get armada of example.com named worker in the namespace {}", namespace.name);
    until_ok("the kind is found, and the missing right is named", async || match fleet.look().await {
        Err(error @ TargetError::Forbidden { .. }) if error.to_string().contains(&right) => Ok(()),
        other => Err(other),
    })
    .await;
    let rules = json!([{ "apiGroups": ["example.com"], "resources": ["armada"], "verbs": ["get"] }]);
    namespace.grant("autoscaler", "fleets", rules).await;
    until_ok("the object is asked for", async || match fleet.look().await {
        Err(TargetError::NotFound { message, .. })
            if message.contains("armada.example.com \"worker\" not found") =>
        {
            Ok(())
        }
        other => Err(other),
    })
    .await;

    if cluster.takes_custom_objects() {
        an_object_of_that_kind_is_resized(&namespace, &fleet).await;
    }

    let config = namespace.config_of_autoscaler(cluster).await;
    let boat = kubernetes::Cluster::with(config).expect("a way to the cluster");
    let boat = Kubernetes::new(&boat, "example.com/v1/Boat/worker".parse().unwrap(), None, false).unwrap();
    define(cluster, "Boat", "boats", false).await;
    let text = "a Boat cannot be scaled: it has no subresource scale";
    until_ok("the missing scale is reported", async || match boat.look().await {
        Err(TargetError::Refused { message, .. }) if message == text => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn a_workload_that_is_not_there_is_said_to_be_missing() {
    let (_namespace, target) = target("deployment/worker").await;
    let error = target.look().await.expect_err("a rival");
    assert!(matches!(error, TargetError::NotFound { .. }) && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains("\"worker\" not found"), "{error}");
}

#[tokio::test]
async fn a_restart_of_the_api_server_is_outlived() {
    let mut cluster = Cluster::start().await;
    let namespace = cluster.namespace().await;
    let config = namespace.config_of_autoscaler(&cluster).await;
    let way = kubernetes::Cluster::with(config).expect("a way to the cluster");
    let target = Kubernetes::new(&way, "deployment/worker".parse().unwrap(), None, false).unwrap();
    namespace.deployment(2).await;
    let seen = at_rest(&target).await;
    cluster.kill_api_server();
    for call in [target.look().await.map(|_| ()), target.resize(&seen, 3, &[]).await] {
        let error = call.unwrap_err();
        assert!(matches!(error, TargetError::Unreachable { .. }) && error.is_retryable(), "{error}");
    }
    cluster.start_api_server().await;
    let seen = until_ok("the API server is found again", async || target.look().await).await;
    assert_eq!(seen.replicas, 2);
    until_ok("it grows", async || target.resize(&target.look().await?, 3, &[]).await).await;
    namespace.settle(3).await;
}

#[tokio::test]
async fn an_api_server_that_is_silent_is_given_up_on_in_time() {
    // Accepts connections, and answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let way = kubernetes::Cluster::with(config).expect("a way to the cluster");
    let target = Kubernetes::new(&way, "deployment/worker".parse().unwrap(), None, false).unwrap();
    let begin = Instant::now();
    let error = target.look().await.expect_err("a rival");
    assert!(matches!(error, TargetError::Unreachable { .. }), "{error}");
    assert!(begin.elapsed() >= Duration::from_secs(4), "it was not given its time");
    let server = format!("the API server http://{address} (KUBECONFIG, KUBE_CONTEXT)");
    assert_eq!(
        error.to_string(),
        format!("Deployment default/worker: {server} gave no answer within 5000 ms")
    );
}
