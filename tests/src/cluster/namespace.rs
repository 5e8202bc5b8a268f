//! A namespace for one test: workloads, their pods, and access rights.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::servers::end_of;
use super::{Cluster, config};
use crate::until;

/// The name of every workload of workers here. It is the one that our Role allows.
const WORKER: &str = "worker";

/// A namespace in a cluster.
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// A client with all rights.
    pub client: Client,
    admin: PathBuf,
    kubectl: PathBuf,
    folder: PathBuf,
}

/// A pod's state as a kubelet would report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// The pod runs and its probe succeeds.
    Ready,
    /// The pod runs and its probe fails.
    NotReady,
    /// The container exits again and again.
    CrashLooping,
    /// The image cannot be pulled.
    NeverPulled,
}

impl Namespace {
    pub(super) async fn new(cluster: &Cluster) -> Namespace {
        let name = format!("test-{}", uuid::Uuid::new_v4().simple());
        let client = cluster.client().await;
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).expect("a namespace");
        namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace");
        let (admin, kubectl) = (cluster.kubeconfig(), cluster.kubectl().to_owned());
        Namespace { name, client, admin, kubectl, folder: cluster.folder().to_owned() }
    }

    /// The objects of one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates an object from its manifest.
    pub async fn create<K>(&self, manifest: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>
            + DeserializeOwned
            + serde::Serialize,
        K: Clone + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(manifest).expect("a manifest");
        self.api()
            .create(&PostParams::default(), &object)
            .await
            .expect("an object that the API server accepts")
    }

    /// Creates an object of a kind that this program does not know.
    pub async fn create_raw(&self, api: &str, plural: &str, object: &Value) {
        let path = format!("{api}/namespaces/{}/{plural}", self.name);
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(object.to_string().into_bytes()).expect("a request");
        let _: Value = self.client.request(request).await.expect("an object that the API server accepts");
    }

    /// Creates a Deployment `worker` whose pods all exist and are Ready.
    pub async fn deployment(&self, replicas: usize) {
        let spec = json!({ "replicas": replicas, "selector": selector(), "template": template() });
        self.create::<Deployment>(json!({ "metadata": { "name": WORKER }, "spec": spec })).await;
        self.settle(replicas).await;
    }

    /// As `deployment`, but creates a StatefulSet with the given `podManagementPolicy`.
    pub async fn stateful_set(&self, replicas: usize, policy: &str) {
        let spec = json!({ "replicas": replicas, "selector": selector(), "template": template(),
                           "serviceName": WORKER, "podManagementPolicy": policy });
        self.create::<StatefulSet>(json!({ "metadata": { "name": WORKER }, "spec": spec })).await;
        self.settle(replicas).await;
    }

    /// Makes all pods Ready until there are exactly this many and no more are coming.
    pub async fn settle(&self, replicas: usize) {
        until(&format!("{replicas} pods are there"), async || {
            let pods = self.pods().await;
            for pod in &pods {
                if !is_ready(pod) {
                    self.set_pod(&name(pod), PodState::Ready).await;
                }
            }
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            (ready == replicas && pods.len() == replicas).then_some(())
        })
        .await;
    }

    /// The workers' pods, sorted by name.
    pub async fn pods(&self) -> Vec<Pod> {
        let workers = ListParams::default().labels(&format!("app={WORKER}"));
        let mut pods = self.api::<Pod>().list(&workers).await.expect("pods").items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.sort_by_key(name);
        pods
    }

    /// The names of the workers' pods, sorted.
    pub async fn pod_names(&self) -> Vec<String> {
        self.pods().await.iter().map(name).collect()
    }

    /// Sets a pod's status as a kubelet would. A pod that has just gone stays gone.
    pub async fn set_pod(&self, pod: &str, state: PodState) {
        let running = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "back-off" } });
        let ready = state == PodState::Ready;
        let container = json!({
            "name": "worker", "image": "none", "imageID": "", "ready": ready,
            "restartCount": if state == PodState::CrashLooping { 5 } else { 0 },
            "state": match state {
                PodState::Ready | PodState::NotReady => running,
                PodState::CrashLooping => waiting("CrashLoopBackOff"),
                PodState::NeverPulled => waiting("ImagePullBackOff"),
            },
        });
        let condition = json!({ "type": "Ready", "status": if ready { "True" } else { "False" } });
        let phase = if state == PodState::NeverPulled { "Pending" } else { "Running" };
        let status = json!({ "phase": phase, "conditions": [condition], "containerStatuses": [container] });
        let patch = Patch::Merge(json!({ "status": status }));
        match self.api::<Pod>().patch_status(pod, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => panic!("pod {pod} cannot be set to {state:?}: {error}"),
        }
    }

    /// The events of the workers' workload, oldest first.
    pub async fn events(&self) -> Vec<Event> {
        let mut events = self.api::<Event>().list(&ListParams::default()).await.expect("events").items;
        events.retain(|event| {
            event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(WORKER))
                && event.reporting_controller.as_deref() == Some("harness-fleet-autoscaler")
        });
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        events
    }

    /// Applies a kustomization of this repository in this namespace.
    pub async fn apply(&self, kustomization: &str, components: &[&str]) {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        let overlay = self.folder.join(format!("{}-{}", self.name, uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&overlay).expect("a folder");
        // Kustomize accepts no absolute paths, so this path goes up to the root and down again.
        let up = "../".repeat(overlay.canonicalize().expect("its path").components().count() - 1);
        let path =
            |path: &str| format!("{up}{}", repository.join(path).to_string_lossy().trim_start_matches('/'));
        let components: Vec<_> = components.iter().map(|component| path(component)).collect();
        let manifest = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": self.name,
            "resources": [path(kustomization)],
            "components": components,
        });
        std::fs::write(overlay.join("kustomization.yaml"), manifest.to_string()).expect("a file");
        let manifests = self.run_kubectl(&["kustomize", &overlay.to_string_lossy()], "").await;
        self.run_kubectl(&["apply", "-f", "-"], &manifests).await;
    }

    /// Returns the output of kubectl in this namespace.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        self.run_kubectl(&[&["-n", &self.name], arguments].concat(), "").await
    }

    async fn run_kubectl(&self, arguments: &[&str], input: &str) -> String {
        let mut kubectl = tokio::process::Command::new(&self.kubectl);
        kubectl.args(arguments).env("KUBECONFIG", &self.admin).env("HOME", &self.folder).kill_on_drop(true);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut kubectl = kubectl.spawn().expect("kubectl");
        let mut stdin = kubectl.stdin.take().expect("its input");
        stdin.write_all(input.as_bytes()).await.expect("kubectl reads its input");
        drop(stdin);
        let output = kubectl.wait_with_output().await.expect("kubectl ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {said}", arguments.join(" "));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Gives a ServiceAccount of this namespace the rules of a Role. Creates the account if needed.
    pub async fn grant(&self, account: &str, role: &str, rules: Value) {
        let metadata = |name: &str| json!({ "name": name, "namespace": self.name });
        let api = "rbac.authorization.k8s.io";
        let manifests = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(account) },
            { "apiVersion": format!("{api}/v1"), "kind": "Role", "metadata": metadata(role), "rules": rules },
            { "apiVersion": format!("{api}/v1"), "kind": "RoleBinding", "metadata": metadata(role),
              "roleRef": { "apiGroup": api, "kind": "Role", "name": role },
              "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": self.name }] },
        ] });
        self.run_kubectl(&["apply", "-f", "-"], &manifests.to_string()).await;
    }

    /// A kubeconfig for a ServiceAccount of this namespace.
    pub async fn kubeconfig_of(&self, cluster: &Cluster, account: &str) -> PathBuf {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", self.name);
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                           "spec": { "audiences": null, "expirationSeconds": 3600 } });
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(body.to_string().into_bytes()).expect("a request");
        let answer: Value = self.client.request(request).await.expect("a token");
        let token = answer["status"]["token"].as_str().expect("a token");
        cluster.kubeconfig_for(token, &self.name)
    }

    /// A kubeconfig with exactly the rights that `ops/k8s/autoscaler` grants.
    pub async fn kubeconfig_of_autoscaler(&self, cluster: &Cluster) -> PathBuf {
        self.apply("ops/k8s/autoscaler", &[]).await;
        self.kubeconfig_of(cluster, "autoscaler").await
    }

    /// A client's configuration with these rights.
    pub async fn config_of_autoscaler(&self, cluster: &Cluster) -> Config {
        config(&self.kubeconfig_of_autoscaler(cluster).await).await.expect("a configuration")
    }

    /// A client's configuration for a ServiceAccount of this namespace.
    pub async fn config_of(&self, cluster: &Cluster, account: &str) -> Config {
        config(&self.kubeconfig_of(cluster, account).await).await.expect("a configuration")
    }
}

impl Drop for Namespace {
    /// If the test has failed, the servers' logs may show why.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for server in ["kube-apiserver", "kube-controller-manager"] {
                let log = self.folder.join(format!("{server}.log"));
                eprintln!("---- the end of {server}'s log ----\n{}", end_of(&log));
            }
        }
    }
}

fn selector() -> Value {
    json!({ "matchLabels": { "app": WORKER } })
}

fn template() -> Value {
    json!({ "metadata": { "labels": { "app": WORKER } },
            "spec": { "containers": [{ "name": "worker", "image": "none" }] } })
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
