//! A fleet, and a namespace of a cluster in which it runs.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use serde_json::Value;
use tests::{Cluster, Fleet, Launch, Namespace, Node, Ran, Worker, autoscaler_command, until, until_ok};

/// One to four workers, one per four jobs, with no limit on the speed.
fn pool(kind: &str) -> String {
    format!(
        "[pools.default]\ntarget = \"{kind}/worker\"\n[pools.default.policy]\nmin_replicas = 1\nmax_replicas = 4\n\
         mode = {{ type = \"backlog\", jobs_per_worker = 4 }}\nscale_up = {{ policies = [] }}\n\
         scale_down = {{ stabilization_window_s = 1, policies = [], tolerance = 0.0 }}\n"
    )
}

/// A fleet, and a namespace of a cluster in which it runs.
pub struct World {
    pub fleet: Fleet,
    pub namespace: Arc<Namespace>,
    kubeconfig: String,
}

impl World {
    pub async fn new() -> World {
        let cluster = Cluster::shared().await;
        let namespace = Arc::new(cluster.namespace().await);
        let kubeconfig = namespace.kubeconfig_of_autoscaler(cluster).await.to_string_lossy().into_owned();
        World { fleet: Fleet::new().await, namespace, kubeconfig }
    }

    pub fn autoscaler(&self, name: &str, kind: &str) -> Launch {
        self.fleet
            .autoscaler(name, &pool(kind))
            .set("KUBECONFIG", &self.kubeconfig)
            .set("AUTOSCALER_LEASE_S", 8)
    }

    pub async fn start(&self, name: &str, kind: &str) -> Worker {
        let autoscaler = self.autoscaler(name, kind).launch();
        autoscaler.said("watches the backlog").await;
        autoscaler
    }

    /// Runs `autoscaler once` with the settings of [`World::autoscaler`].
    pub async fn once(&self, arguments: &[&str]) -> Ran {
        let environment = self.autoscaler("once", "Deployment").environment();
        let pools = self.fleet.folder.path().join("once.toml");
        let mut command = autoscaler_command(&["once", "--pools", &pools.to_string_lossy()]);
        command.args(arguments).envs(environment);
        Ran::of(command, "").await
    }

    /// Runs the pods as workers.
    pub fn node(&self) -> Node {
        self.node_with_room(usize::MAX)
    }

    pub async fn pods(&self, count: usize) -> Vec<String> {
        let look = async || {
            let pods = self.namespace.pod_names().await;
            if pods.len() == count { Ok(pods) } else { Err(pods) }
        };
        until_ok(&format!("there are {count} pods"), look).await
    }

    /// Runs this many of the pods as workers; the others stay pending.
    pub fn node_with_room(&self, room: usize) -> Node {
        let template = self.fleet.worker("pod").environment();
        Node::run(self.namespace.clone(), room, move |pod| Launch::of(pod, template.clone()))
    }

    /// The Deployment's `spec.replicas`.
    pub async fn replicas(&self) -> i32 {
        let scale = self.namespace.api::<Deployment>().get_scale("worker").await.expect("a scale");
        scale.spec.and_then(|spec| spec.replicas).expect("a number")
    }

    /// Changes the Deployment.
    pub async fn patch(&self, change: Value) {
        let deployments = self.namespace.api::<Deployment>();
        let patch = Patch::Strategic(change);
        deployments.patch("worker", &PatchParams::default(), &patch).await.expect("a change");
    }

    /// Waits until the last decision says that the scale-in waits, for this reason.
    pub async fn waits(&self, why: &str) {
        let last = "SELECT coalesce(outcome || ': ' || detail, outcome, '') FROM harness_scale_decisions
                     ORDER BY id DESC LIMIT 1";
        until_ok(&format!("it waits: {why}"), async || {
            let last = self.fleet.database.texts(last).await;
            let waits = |row: &String| row.starts_with("waiting: ") && row.contains(why);
            if last.iter().any(waits) { Ok(()) } else { Err(last) }
        })
        .await;
    }

    /// The output of `autoscaler explain`.
    pub async fn explained(&self) -> String {
        let mut command = autoscaler_command(&["explain"]);
        command.envs(self.autoscaler("explain", "Deployment").environment());
        let ran = Ran::of(command, "").await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    }

    /// The number of living workers that have a mark.
    pub async fn marked(&self) -> i64 {
        let marked = "SELECT count(*) FROM harness_workers WHERE drain_until > now() AND state = 'alive'";
        self.fleet.database.count(marked).await
    }

    pub async fn drained(&self, count: i64) {
        let drained =
            "SELECT count(*) FROM harness_workers WHERE drained_at IS NOT NULL AND drain_until > now()";
        let look = async || (self.fleet.database.count(drained).await == count).then_some(());
        until(&format!("{count} workers are drained"), look).await;
    }
}

/// Waits for three more decisions: seconds in which it could have resized the workload.
pub async fn decides(autoscaler: &Worker) {
    let decisions = async || {
        let (_, text) = autoscaler.get("/metrics").await;
        let counts = text.lines().filter(|line| line.starts_with("harness_autoscaler_decisions_total{"));
        counts.filter_map(|line| line.split(' ').next_back()?.parse::<f64>().ok()).sum::<f64>()
    };
    let before = decisions().await;
    until("it has decided again", async || (decisions().await >= before + 3.0).then_some(())).await;
}
