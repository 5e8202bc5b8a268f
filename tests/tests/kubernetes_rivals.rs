//! A workload that another autoscaler scales is left to it, and those who look at the workload are told.

use autoscaler::apply::kubernetes::{self, Kubernetes};
use autoscaler::apply::{Event, Target, TargetError};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use tests::{Cluster, Namespace, until, until_ok};

/// A Deployment `worker` of two, and a target that looks at it for the first time.
async fn target() -> (Namespace, Kubernetes) {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    namespace.deployment(2).await;
    let target = fresh(&namespace).await;
    (namespace, target)
}

/// Another autoscaler, which knows no list of others yet.
async fn fresh(namespace: &Namespace) -> Kubernetes {
    let config = namespace.config_of_autoscaler(Cluster::shared().await).await;
    let cluster = kubernetes::Cluster::with(config).unwrap();
    cluster.target("deployment/worker".parse().unwrap(), None, false).unwrap()
}

fn scales(kind: &str, name: &str) -> Value {
    json!({ "metadata": { "name": "rival" }, "spec": { "maxReplicas": 9,
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": kind, "name": name } } })
}

async fn replicas(namespace: &Namespace) -> Option<i32> {
    namespace.api::<Deployment>().get("worker").await.unwrap().spec.unwrap().replicas
}

#[tokio::test]
async fn a_workload_with_an_hpa_is_not_resized() {
    let (namespace, target) = target().await;
    namespace.create::<HorizontalPodAutoscaler>(scales("Deployment", "worker")).await;
    let error = target.look().await.unwrap_err();
    let told = format!(
        "Deployment {0}/worker is also scaled by HorizontalPodAutoscaler {0}/rival: remove that one, or give this \
         pool another workload",
        namespace.name
    );
    assert_eq!(error.to_string(), told);
    assert!(matches!(error, TargetError::Contested { .. }) && !error.is_retryable());

    namespace.api::<HorizontalPodAutoscaler>().delete("rival", &DeleteParams::default()).await.unwrap();
    fresh(&namespace).await.look().await.unwrap();
}

#[tokio::test]
async fn an_hpa_that_comes_later_is_noticed_before_the_next_write() {
    let (namespace, target) = target().await;
    target.look().await.unwrap();
    namespace.create::<HorizontalPodAutoscaler>(scales("Deployment", "worker")).await;
    // It writes the number that is there already, so that nothing is changed until it notices.
    let by = until("it notices", async || {
        let seen = fresh(&namespace).await.look().await;
        assert!(matches!(seen, Err(TargetError::Contested { .. })), "{seen:?}");
        match target.look().await {
            Ok(seen) => match target.resize(&seen, 2, &[]).await {
                Err(TargetError::Contested { by, .. }) => Some(by),
                other => other.map(|()| None).unwrap(),
            },
            Err(TargetError::Contested { by, .. }) => Some(by),
            Err(other) => panic!("{other}"),
        }
    });
    assert_eq!(by.await, format!("HorizontalPodAutoscaler {}/rival", namespace.name));
    assert_eq!(replicas(&namespace).await, Some(2));
}

#[tokio::test]
async fn an_hpa_of_another_workload_is_no_rival() {
    let (namespace, target) = target().await;
    namespace.create::<HorizontalPodAutoscaler>(scales("StatefulSet", "worker")).await;
    let mut other = scales("Deployment", "other");
    other["metadata"]["name"] = json!("of-another");
    namespace.create::<HorizontalPodAutoscaler>(other).await;
    until_ok("it grows", async || target.resize(&target.look().await.unwrap(), 3, &[]).await).await;
    assert_eq!(replicas(&namespace).await, Some(3));
}

/// The kind of KEDA, as far as it matters here.
async fn define_scaled_objects(cluster: &Cluster) {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let version = json!({ "name": "v1alpha1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } });
    let names = json!({ "plural": "scaledobjects", "singular": "scaledobject", "kind": "ScaledObject",
                        "listKind": "ScaledObjectList" });
    let definition = json!({ "metadata": { "name": "scaledobjects.keda.sh" },
                             "spec": { "group": "keda.sh", "scope": "Namespaced", "names": names,
                                       "versions": [version] } });
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client().await);
    let definition = serde_json::from_value(definition).unwrap();
    definitions.create(&PostParams::default(), &definition).await.unwrap();
}

#[tokio::test]
async fn a_workload_with_a_scaled_object_is_not_resized() {
    let (namespace, target) = target().await;
    // No such kind is served: there are none.
    let seen = target.look().await.unwrap();
    define_scaled_objects(Cluster::shared().await).await;
    let scaled = json!({ "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": { "name": "rival" },
                         "spec": { "scaleTargetRef": { "name": "worker" } } });
    let scaled = serde_json::from_value(scaled).unwrap();
    let rivals = namespace.dynamic("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects");
    until_ok("the kind is served", async || rivals.create(&PostParams::default(), &scaled).await).await;
    // KEDA makes an HPA of each; the ScaledObject is the one to remove.
    namespace.create::<HorizontalPodAutoscaler>(scales("Deployment", "worker")).await;
    let error = fresh(&namespace).await.resize(&seen, 3, &[]).await.unwrap_err();
    let rival = format!("ScaledObject {}/rival", namespace.name);
    assert!(matches!(&error, TargetError::Contested { by, .. } if *by == rival), "{error}");
    assert_eq!(replicas(&namespace).await, Some(2));
}

#[tokio::test]
async fn a_change_and_a_refusal_are_events_of_the_workload() {
    let (namespace, target) = target().await;
    target.look().await.unwrap();
    target.tell(&Event::Resized { from: 2, to: 5, why: "9 jobs wait".into() }).await;
    let refusal = Event::NotResized { why: "a HorizontalPodAutoscaler is there".into() };
    target.tell(&refusal).await;
    // The same again is not told again.
    target.tell(&refusal).await;
    target.tell(&Event::TakenBack { workers: 2, why: "demand returned".into() }).await;
    target.tell(&Event::NotResized { why: "x".repeat(5000) }).await;

    let events = namespace.events().await;
    let told: Vec<_> = events.iter().map(|event| (event.type_.as_deref(), event.reason.as_deref())).collect();
    let expected = [("Normal", "Resized"), ("Warning", "NotResized"), ("Normal", "DrainTakenBack")];
    let expected = expected.into_iter().chain([("Warning", "NotResized")]);
    assert_eq!(told, expected.map(|(kind, reason)| (Some(kind), Some(reason))).collect::<Vec<_>>());
    assert_eq!(events[0].note.as_deref(), Some("Resized from 2 to 5 replicas: 9 jobs wait"));

    let worker = namespace.api::<Deployment>().get("worker").await.unwrap();
    let regarding = events[0].regarding.clone().unwrap();
    assert_eq!(regarding.uid, worker.metadata.uid);
    assert_eq!(regarding.kind.as_deref(), Some("Deployment"));
    let described = namespace.kubectl(&["describe", "deployment", "worker"]).await;
    assert!(described.contains("Resized from 2 to 5 replicas: 9 jobs wait"), "{described}");
}
