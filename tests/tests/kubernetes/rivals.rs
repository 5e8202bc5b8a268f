//! A workload that another autoscaler scales is left to it, and events on the workload say so.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tests::{Cluster, Namespace, until, until_ok};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use workload::kubernetes::{self, Kubernetes};
use workload::{Event, Target, TargetError};

/// A Deployment `worker` with two replicas, and a target that has not looked at it yet.
async fn target() -> (Namespace, Kubernetes) {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace().await;
    namespace.deployment(2).await;
    let target = fresh(&namespace).await;
    (namespace, target)
}

/// Another autoscaler, which has no list of rivals yet.
async fn fresh(namespace: &Namespace) -> Kubernetes {
    let config = namespace.config_of_autoscaler(Cluster::shared().await).await;
    let cluster = kubernetes::Cluster::with(config).expect("a way to the cluster");
    Kubernetes::new(&cluster, "deployment/worker".parse().expect("a workload"), None, false)
        .expect("a target")
}

fn scales(kind: &str, name: &str) -> Value {
    json!({ "metadata": { "name": "rival" }, "spec": { "maxReplicas": 9,
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": kind, "name": name } } })
}

async fn replicas(namespace: &Namespace) -> Option<i32> {
    namespace
        .api::<Deployment>()
        .get("worker")
        .await
        .expect("the workload")
        .spec
        .and_then(|spec| spec.replicas)
}

#[tokio::test]
async fn a_workload_with_an_hpa_is_not_resized() {
    let (namespace, target) = target().await;
    namespace.create::<HorizontalPodAutoscaler>(scales("Deployment", "worker")).await;
    let error = target.look().await.expect_err("a rival");
    let text = format!(
        "Deployment {0}/worker is also scaled by HorizontalPodAutoscaler {0}/rival: remove that one, or give this \
         pool another workload",
        namespace.name
    );
    assert_eq!(error.to_string(), text);
    assert!(matches!(error, TargetError::Contested { .. }) && !error.is_retryable());

    namespace.api::<HorizontalPodAutoscaler>().delete("rival", &DeleteParams::default()).await.unwrap();
    fresh(&namespace).await.look().await.unwrap();
}

#[tokio::test]
async fn an_hpa_that_comes_later_is_noticed_before_the_next_write() {
    let (namespace, target) = target().await;
    target.look().await.expect("a workload");
    namespace.create::<HorizontalPodAutoscaler>(scales("Deployment", "worker")).await;
    // It writes the number that is already set, so nothing changes until it notices.
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
    until_ok("it grows", async || target.resize(&target.look().await.expect("a workload"), 3, &[]).await)
        .await;
    assert_eq!(replicas(&namespace).await, Some(3));
}

/// An API server that gives these answers, and "not found" to everything else: one with KEDA, or of another version.
async fn answering(answers: Vec<(&'static str, Value)>) -> Kubernetes {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.expect("a request") == 0 {
                        return;
                    }
                    if line != "\r\n" {
                        lines.push(line);
                        continue;
                    }
                    let path = lines[0].split([' ', '?']).nth(1).expect("a path").to_owned();
                    lines.clear();
                    let answer = answers.iter().find(|(known, _)| *known == path);
                    let (code, body) = match answer {
                        Some((_, body)) => (200, body.to_string()),
                        None => (404, "404 page not found".to_owned()),
                    };
                    let answer = format!("HTTP/1.1 {code} -\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.expect("a client that asked");
                }
            });
        }
    });
    let cluster =
        kubernetes::Cluster::with(kube::Config::new(url.parse().expect("a URL"))).expect("a way there");
    Kubernetes::new(&cluster, "deployment/worker".parse().expect("a workload"), None, false)
        .expect("a target")
}

const SCALED_OBJECTS: &str = "/apis/keda.sh/v1alpha1/namespaces/default/scaledobjects";
const OLD_HPAS: &str = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
const NEW_HPAS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

async fn rival_of(target: &Kubernetes) -> String {
    match target.look().await.expect_err("a rival") {
        TargetError::Contested { by, .. } => by,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_scaled_object_is_named_rather_than_the_hpa_that_keda_makes_of_it() {
    let object =
        json!({ "metadata": { "name": "rival" }, "spec": { "scaleTargetRef": { "name": "worker" } } });
    let mut hpa = scales("Deployment", "worker");
    hpa["metadata"]["name"] = json!("keda-hpa-rival");
    let answers = vec![(SCALED_OBJECTS, json!({ "items": [object] })), (OLD_HPAS, json!({ "items": [hpa] }))];
    assert_eq!(rival_of(&answering(answers).await).await, "ScaledObject default/rival");
}

#[tokio::test]
async fn an_hpa_is_found_in_whichever_version_is_served() {
    for path in [OLD_HPAS, NEW_HPAS] {
        let target = answering(vec![(path, json!({ "items": [scales("Deployment", "worker")] }))]).await;
        assert_eq!(rival_of(&target).await, "HorizontalPodAutoscaler default/rival");
    }
}

#[tokio::test]
async fn a_change_and_a_refusal_are_events_of_the_workload() {
    let (namespace, target) = target().await;
    target.look().await.expect("a workload");
    target.report(&Event::Resized { from: 2, to: 5, why: "9 jobs wait".into() }).await;
    let refusal = Event::NotResized { why: "a HorizontalPodAutoscaler is there".into() };
    target.report(&refusal).await;
    // The same event again is not written again.
    target.report(&refusal).await;
    target.report(&Event::TakenBack { workers: 2, why: "demand returned".into() }).await;
    target.report(&Event::NotResized { why: "x".repeat(5000) }).await;

    let events = namespace.events().await;
    let text: Vec<_> = events.iter().map(|event| (event.type_.as_deref(), event.reason.as_deref())).collect();
    let expected = [("Normal", "Resized"), ("Warning", "NotResized"), ("Normal", "DrainTakenBack")];
    let expected = expected.into_iter().chain([("Warning", "NotResized")]);
    assert_eq!(text, expected.map(|(kind, reason)| (Some(kind), Some(reason))).collect::<Vec<_>>());
    assert_eq!(events[0].note.as_deref(), Some("Resized from 2 to 5 replicas: 9 jobs wait"));

    let worker = namespace.api::<Deployment>().get("worker").await.unwrap();
    let regarding = events[0].regarding.clone().unwrap();
    assert_eq!(regarding.uid, worker.metadata.uid);
    assert_eq!(regarding.kind.as_deref(), Some("Deployment"));
    let described = namespace.kubectl(&["describe", "deployment", "worker"]).await;
    assert!(described.contains("Resized from 2 to 5 replicas: 9 jobs wait"), "{described}");
}
