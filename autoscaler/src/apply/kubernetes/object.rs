//! What a workload's object says of itself: how many, how to find them, and whether it is at rest.
//!
//! Pure. The three kinds of `apps/v1` are read in their own terms; of any other kind, the subresource `scale` says how
//! many and the rest is read where it stands in the usual places.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use serde::Deserialize;
use serde_json::Value;

use crate::apply::Order;

/// An object as far as it matters here. `S` is its spec, `T` its status.
#[derive(Debug, Deserialize)]
pub(super) struct Object<S = Value, T = Value> {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: S,
    #[serde(default)]
    pub status: T,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: u64,
    pub deletion_timestamp: Option<String>,
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// The spec of a Deployment, StatefulSet or ReplicaSet.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct AppSpec {
    pub replicas: u32,
    selector: LabelSelector,
    pod_management_policy: String,
    update_strategy: UpdateStrategy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct UpdateStrategy {
    #[serde(rename = "type")]
    kind: String,
    rolling_update: Option<RollingUpdate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RollingUpdate {
    /// Pods with an ordinal below are left as they are.
    partition: u32,
}

/// Its status.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct AppStatus {
    observed_generation: u64,
    replicas: u32,
    pub ready_replicas: u32,
    updated_replicas: u32,
    current_revision: String,
    update_revision: String,
}

/// An object of `apps/v1`.
pub(super) type App = Object<AppSpec, AppStatus>;

/// The kinds of `apps/v1` that have a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AppKind {
    Deployment,
    StatefulSet,
    ReplicaSet,
}

impl AppKind {
    pub fn of(group: &str, kind: &str) -> Option<AppKind> {
        match (group, kind) {
            ("apps", "Deployment") => Some(AppKind::Deployment),
            ("apps", "StatefulSet") => Some(AppKind::StatefulSet),
            ("apps", "ReplicaSet") => Some(AppKind::ReplicaSet),
            _ => None,
        }
    }

    /// What it is called in paths.
    pub fn plural(self) -> &'static str {
        match self {
            AppKind::Deployment => "deployments",
            AppKind::StatefulSet => "statefulsets",
            AppKind::ReplicaSet => "replicasets",
        }
    }
}

impl App {
    /// How its pods are found.
    pub fn selector(&self) -> Result<String, String> {
        let selector: Result<Selector, _> = self.spec.selector.clone().try_into();
        match selector {
            Ok(selector) if !selector.selects_all() => Ok(selector.to_string()),
            Ok(_) => Err("its selector selects every pod of the namespace".into()),
            Err(error) => Err(format!("its selector is not understood: {error}")),
        }
    }

    /// Which pods go first.
    pub fn order(&self, kind: AppKind) -> Order {
        match kind {
            AppKind::Deployment | AppKind::ReplicaSet => Order::NotReadyFirst,
            AppKind::StatefulSet if self.spec.pod_management_policy == "Parallel" => {
                Order::HighestOrdinalFirst
            }
            AppKind::StatefulSet => Order::Never(format!(
                "podManagementPolicy is {}: a StatefulSet then stands still while a drained pod is not Ready, expected \
                 Parallel (it cannot be changed: delete the StatefulSet with --cascade=orphan and create it anew)",
                self.spec.pod_management_policy
            )),
        }
    }

    /// Why it is no time to shrink.
    pub fn unsettled(&self, kind: AppKind) -> Option<String> {
        let (wanted, status) = (self.spec.replicas, &self.status);
        if let Some(why) = self.metadata.in_change(Some(status.observed_generation)) {
            return Some(why);
        }
        if let Some(why) = self.rollout(kind) {
            return Some(format!("a rollout is in progress: {why}"));
        }
        let there = status.replicas;
        (there != wanted)
            .then(|| format!("pods are being made or removed: {there} are there, {wanted} are meant to be"))
    }

    /// As `kubectl rollout status` sees it; that drained pods are not available is no rollout.
    fn rollout(&self, kind: AppKind) -> Option<String> {
        let (wanted, status) = (self.spec.replicas, &self.status);
        let updated = status.updated_replicas;
        match kind {
            AppKind::ReplicaSet => None,
            AppKind::Deployment if updated < wanted => {
                Some(format!("{updated} of {wanted} pods are updated"))
            }
            AppKind::Deployment => {
                let old = status.replicas.saturating_sub(updated);
                (old > 0).then(|| format!("{old} pods of an older revision are left"))
            }
            AppKind::StatefulSet => {
                let strategy = &self.spec.update_strategy;
                let partition = strategy.rolling_update.as_ref().map_or(0, |rolling| rolling.partition);
                let meant = wanted.saturating_sub(partition);
                let over = status.current_revision == status.update_revision || strategy.kind == "OnDelete";
                (!over && updated < meant).then(|| format!("{updated} of {meant} pods are updated"))
            }
        }
    }
}

impl Meta {
    /// Whether the object is on its way to something else.
    fn in_change(&self, observed_generation: Option<u64>) -> Option<String> {
        if self.deletion_timestamp.is_some() {
            return Some("it is being deleted".into());
        }
        let behind = observed_generation.is_some_and(|observed| observed < self.generation);
        behind.then(|| "its controller has not acted on its latest change yet".into())
    }
}

impl Object {
    /// Why it is no time to shrink, for a kind of which we know no more than what is usual.
    pub fn unsettled(&self, scale: &Scale) -> Option<String> {
        let observed = self.status.get("observedGeneration").and_then(Value::as_u64);
        if let Some(why) = self.metadata.in_change(observed) {
            return Some(why);
        }
        let (there, wanted) = (scale.status.replicas, scale.spec.replicas);
        (there != wanted)
            .then(|| format!("pods are being made or removed: {there} are there, {wanted} are meant to be"))
    }
}

/// `autoscaling/v1` Scale.
#[derive(Debug, Deserialize)]
pub(super) struct Scale {
    #[serde(default)]
    pub spec: ScaleSpec,
    #[serde(default)]
    pub status: ScaleStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ScaleSpec {
    pub replicas: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ScaleStatus {
    pub replicas: u32,
    pub selector: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn app(spec: Value, status: Value) -> App {
        serde_json::from_value(json!({ "metadata": { "generation": 2 }, "spec": spec, "status": status }))
            .unwrap()
    }

    #[test]
    fn a_deployment_is_at_rest_when_all_pods_are_of_the_newest_revision() {
        let told = |status| app(json!({ "replicas": 3 }), status).unsettled(AppKind::Deployment);
        let at_rest =
            json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 1 });
        assert_eq!(told(at_rest), None);
        for (status, part) in [
            (json!({ "observedGeneration": 1, "replicas": 3, "updatedReplicas": 3 }), "latest change"),
            (json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 1 }), "1 of 3"),
            (json!({ "observedGeneration": 2, "replicas": 3 }), "0 of 3"),
            (json!({ "observedGeneration": 2, "replicas": 4, "updatedReplicas": 3 }), "1 pods of an older"),
            (json!({ "observedGeneration": 2, "replicas": 4, "updatedReplicas": 4 }), "made or removed"),
        ] {
            let why = told(status).unwrap();
            assert!(why.contains(part), "{why}");
        }
        let mut deleted = app(json!({}), json!({}));
        deleted.metadata.deletion_timestamp = Some("now".into());
        assert_eq!(deleted.unsettled(AppKind::Deployment).unwrap(), "it is being deleted");
    }

    #[test]
    fn a_stateful_set_is_at_rest_when_all_pods_beyond_its_partition_are_updated() {
        let status = json!({ "observedGeneration": 2, "replicas": 4, "updatedReplicas": 1,
                             "currentRevision": "a", "updateRevision": "b" });
        let told = |strategy: Value| {
            app(json!({ "replicas": 4, "updateStrategy": strategy }), status.clone())
                .unsettled(AppKind::StatefulSet)
        };
        assert!(told(json!({ "type": "RollingUpdate" })).unwrap().contains("1 of 4"));
        assert_eq!(told(json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 3 } })), None);
        assert_eq!(told(json!({ "type": "OnDelete" })), None);
    }

    #[test]
    fn an_ordered_stateful_set_is_never_shrunk() {
        let order = |policy: &str| {
            app(json!({ "podManagementPolicy": policy }), json!({})).order(AppKind::StatefulSet)
        };
        assert_eq!(order("Parallel"), Order::HighestOrdinalFirst);
        assert!(matches!(order("OrderedReady"), Order::Never(why) if why.contains("expected Parallel")));
    }

    #[test]
    fn a_selector_is_written_as_a_query() {
        let selector = json!({ "matchLabels": { "app": "w" },
                               "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["a", "b"] }] });
        let written = app(json!({ "selector": selector }), json!({})).selector().unwrap();
        assert_eq!(written, "app=w,tier in (a,b)");
        assert!(app(json!({}), json!({})).selector().is_err());
    }
}
