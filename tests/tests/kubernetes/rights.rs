//! The autoscaler needs no rights beyond those in `ops/k8s/autoscaler`, and has no others.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use tests::{Cluster, Namespace, until_ok};
use workload::kubernetes::{self, Kubernetes};
use workload::{Event, Target, TargetError};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn target(config: kube::Config, workload: &str, deletion_cost: bool) -> Kubernetes {
    let cluster = kubernetes::Cluster::with(config).expect("a way to the cluster");
    Kubernetes::new(&cluster, workload.parse().expect("a workload"), None, deletion_cost).expect("a target")
}

/// Whether the API server would allow this to the client.
async fn may(client: &Client, namespace: &str, verb: &str, group: &str, resource: &str, name: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let asked = json!({ "namespace": namespace, "verb": verb, "group": group, "resource": resource,
                        "subresource": subresource, "name": name });
    let review = json!({ "spec": { "resourceAttributes": asked } });
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review =
        reviews.create(&PostParams::default(), &serde_json::from_value(review).expect("a review")).await;
    review.ok().and_then(|review| review.status).expect("an answer").allowed
}

#[tokio::test]
async fn the_role_is_enough_for_all_that_a_target_does() {
    let cluster = Cluster::shared().await;
    for (workload, manifest) in [("deployment/worker", true), ("statefulset/worker", false)] {
        let namespace = cluster.namespace().await;
        let target = target(namespace.config_of_autoscaler(cluster).await, workload, false);
        if manifest {
            namespace.deployment(1).await;
        } else {
            namespace.stateful_set(1, "Parallel").await;
        }
        let seen = target.look().await.expect("a workload");
        assert_eq!(target.pods(&seen).await.expect("its pods").len(), 1);
        target.touch("a test").await.unwrap();
        until_ok("it grows", async || target.resize(&target.look().await.expect("a workload"), 2, &[]).await)
            .await;
        target.report(&Event::Resized { from: 1, to: 2, why: "a test".into() }).await;
        assert_eq!(namespace.events().await.len(), 1);
    }
}

#[tokio::test]
async fn the_role_allows_nothing_else() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let config = namespace.config_of_autoscaler(cluster).await;
    let client = Client::try_from(config.clone()).unwrap();
    let own = namespace.name.as_str();
    let elsewhere = cluster.namespace().await;
    for (verb, group, resource, name) in [
        ("create", "", "pods", ""),
        ("delete", "", "pods", "any"),
        ("patch", "", "pods", "any"),
        ("create", "", "pods/exec", "any"),
        ("create", "", "pods/eviction", "any"),
        ("get", "", "secrets", "any"),
        ("list", "", "secrets", ""),
        ("list", "", "configmaps", ""),
        ("patch", "apps", "deployments", "worker"),
        ("update", "apps", "deployments", "worker"),
        ("delete", "apps", "deployments", "worker"),
        ("create", "apps", "deployments", ""),
        ("list", "apps", "deployments", ""),
        ("get", "apps", "deployments", "autoscaler"),
        ("patch", "apps", "deployments/scale", "autoscaler"),
        ("patch", "apps", "deployments/status", "autoscaler"),
        ("patch", "apps", "statefulsets", "worker"),
        ("delete", "autoscaling", "horizontalpodautoscalers", "any"),
        ("delete", "events.k8s.io", "events", "any"),
        ("create", "rbac.authorization.k8s.io", "rolebindings", ""),
        ("create", "", "serviceaccounts/token", "autoscaler"),
    ] {
        assert!(!may(&client, own, verb, group, resource, name).await, "it may {verb} {resource} {name}");
    }
    assert!(may(&client, own, "list", "", "pods", "").await);
    assert!(!may(&client, &elsewhere.name, "list", "", "pods", "").await, "it may list pods elsewhere");

    let error = target(config, "deployment/other", false).look().await.unwrap_err().to_string();
    let right = format!("the right to get deployments of apps named other in the namespace {own} is missing");
    assert!(error.contains(&right), "{error}");
}

/// Waits for the error about the next missing right. The rights granted so far need time to take effect.
async fn missing(target: &Kubernetes, plural: &str) -> String {
    until_ok("the next right is missing", async || match target.look().await {
        Err(error @ TargetError::Forbidden { .. }) if error.to_string().contains(plural) => {
            Ok(error.to_string())
        }
        other => Err(other),
    })
    .await
}

#[tokio::test]
async fn each_missing_right_is_named_and_who_may_not_look_for_others_scales_nothing() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    namespace.deployment(1).await;
    let list =
        |group: &str, plural: &str| json!({ "apiGroups": [group], "resources": [plural], "verbs": ["list"] });
    let mut rules: Vec<Value> = Vec::new();
    namespace.grant("poor", "some", json!(rules)).await;
    let target = target(namespace.config_of(cluster, "poor").await, "deployment/worker", false);
    for (group, plural) in [("keda.sh", "scaledobjects"), ("autoscaling", "horizontalpodautoscalers")] {
        let right = format!("the right to list {plural} of {group} in the namespace {}", namespace.name);
        let error = missing(&target, plural).await;
        assert!(error.contains(&right), "{error}");
        rules.push(list(group, plural));
        namespace.grant("poor", "some", json!(rules)).await;
    }
    let error = missing(&target, "deployments").await;
    assert!(error.contains("the right to get deployments of apps named worker"), "{error}");
    rules.push(json!({ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"] }));
    namespace.grant("poor", "some", json!(rules)).await;
    let seen = until_ok("it may look", async || target.look().await).await;

    for (right, error) in [
        ("list pods of the core group", target.pods(&seen).await.map(|_| ()).unwrap_err()),
        ("patch deployments/scale of apps named worker", target.resize(&seen, 2, &[]).await.unwrap_err()),
        ("patch deployments/status of apps named worker", target.touch("a test").await.unwrap_err()),
    ] {
        assert!(matches!(error, TargetError::Forbidden { .. }) && !error.is_retryable(), "{error}");
        assert!(error.to_string().contains(&format!("the right to {right}")), "{error}");
    }
    let worker = namespace.api::<Deployment>().get("worker").await.unwrap();
    assert_eq!(worker.spec.unwrap().replicas, Some(1));
    // It cannot write an event either, which is not reported as an error.
    target.report(&Event::NotResized { why: "a test".into() }).await;
    assert!(namespace.events().await.is_empty());
}

#[tokio::test]
async fn unknown_credentials_are_reported_as_such() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let mut config = namespace.config_of_autoscaler(cluster).await;
    config.auth_info = serde_json::from_value(json!({ "token": "made up" })).unwrap();
    let error = target(config, "deployment/worker", false).look().await.unwrap_err();
    assert!(matches!(&error, TargetError::Forbidden { right, .. } if right == "authenticate"), "{error}");
}

/// The deletion cost that is set on a pod.
async fn cost_of(namespace: &Namespace, pod: &str) -> Option<String> {
    let pod = namespace.api::<Pod>().get(pod).await.expect("a pod");
    pod.metadata.annotations.and_then(|annotations| annotations.get(DELETION_COST).cloned())
}

#[tokio::test]
async fn pods_that_go_are_made_cheap_first_where_that_is_switched_on() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    let config = namespace.config_of_autoscaler(cluster).await;
    namespace.deployment(2).await;
    let [plain, costly] = [false, true].map(|cost| target(config.clone(), "deployment/worker", cost));
    let pods = namespace.pod_names().await;
    let leaving = [pods[0].clone(), "gone-already".to_owned()];
    let old = plain.look().await.unwrap();
    plain.touch("makes what was seen old").await.unwrap();

    assert!(matches!(plain.resize(&old, 1, &leaving).await, Err(TargetError::Conflict { .. })));
    assert_eq!(cost_of(&namespace, &pods[0]).await, None);
    let error = costly.resize(&old, 1, &leaving).await.unwrap_err();
    assert!(error.to_string().contains("the right to patch pods of the core group named"), "{error}");

    namespace.apply("ops/k8s/autoscaler", &["ops/k8s/autoscaler/deletion-cost"]).await;
    let error = until_ok("the right is noticed", async || match costly.resize(&old, 1, &leaving).await {
        Err(error @ TargetError::Forbidden { .. }) => Err(error),
        other => Ok(other),
    });
    assert!(matches!(error.await, Err(TargetError::Conflict { .. })));
    assert_eq!(cost_of(&namespace, &pods[0]).await.as_deref(), Some("-1000"));
    assert_eq!(cost_of(&namespace, &pods[1]).await, None);
}
