//! What a workload's object says about itself: how many pods it has, how to find them, and whether it is at
//! rest.
//!
//! Pure. The three kinds of `apps/v1` are read in their own terms. For any other kind, the subresource
//! `scale` says how many, and the rest is read if it is in the usual places.

use std::cmp::Ordering;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use serde::Deserialize;
use serde_json::Value;

use crate::{Order, Unsettled};

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
    paused: bool,
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
    /// Pods with an ordinal below this are left as they are.
    partition: u32,
}

/// The status of such an object.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct AppStatus {
    observed_generation: u64,
    replicas: u32,
    pub ready_replicas: u32,
    updated_replicas: u32,
    current_revision: String,
    update_revision: String,
    conditions: Vec<Condition>,
}

/// One of the conditions in a status.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: Option<String>,
    pub message: Option<String>,
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

    /// Returns what it is called in paths.
    pub fn plural(self) -> &'static str {
        match self {
            AppKind::Deployment => "deployments",
            AppKind::StatefulSet => "statefulsets",
            AppKind::ReplicaSet => "replicasets",
        }
    }
}

impl App {
    /// Returns how its pods are found.
    pub fn selector(&self) -> Result<String, String> {
        let selector: Result<Selector, _> = self.spec.selector.clone().try_into();
        match selector {
            Ok(selector) if !selector.selects_all() => Ok(selector.to_string()),
            Ok(_) => Err("its selector selects every pod of the namespace".into()),
            Err(error) => Err(format!("its selector is not understood: {error}")),
        }
    }

    /// Returns which pods go first.
    pub fn order(&self, kind: AppKind) -> Order {
        match kind {
            AppKind::Deployment | AppKind::ReplicaSet => Order::NotReadyFirst,
            AppKind::StatefulSet if self.spec.pod_management_policy == "Parallel" => {
                Order::HighestOrdinalFirst
            }
            AppKind::StatefulSet => Order::Never(format!(
                "podManagementPolicy is {}: a StatefulSet then changes nothing while a drained pod is not Ready, expected \
                 Parallel (it cannot be changed: delete the StatefulSet with --cascade=orphan and create it anew)",
                self.spec.pod_management_policy
            )),
        }
    }

    /// Returns why it is not at rest.
    pub fn unsettled(&self, kind: AppKind) -> Option<Unsettled> {
        let (wanted, there) = (self.spec.replicas, self.status.replicas);
        if let Some(why) = self.metadata.in_change(Some(self.status.observed_generation)) {
            return Some(why);
        }
        match (self.rollout(kind), self.status.refusal()) {
            (Some(why), Some(refusal)) => Some(Unsettled::Rollout(format!("{why}, and {refusal}"))),
            (Some(why), None) => Some(Unsettled::Rollout(why)),
            (None, Some(refusal)) if there < wanted => Some(refusal),
            (None, _) => miscounted(there, wanted),
        }
    }

    /// Returns, in words, how far the replacement of older pods has come, or `None` if no pod is to be
    /// replaced. Drained pods that are not available are no rollout, and neither are missing pods.
    fn rollout(&self, kind: AppKind) -> Option<String> {
        let (wanted, status) = (self.spec.replicas, &self.status);
        let updated = status.updated_replicas;
        match kind {
            AppKind::ReplicaSet => None,
            AppKind::Deployment => {
                let old = status.replicas.saturating_sub(updated);
                let paused = if self.spec.paused { "it is paused, " } else { "" };
                (old > 0)
                    .then(|| format!("{paused}{old} of {} pods are of an older revision", status.replicas))
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

impl AppStatus {
    /// Returns why the API server makes no more of its pods (a StatefulSet's status does not say).
    fn refusal(&self) -> Option<Unsettled> {
        let refused = |it: &&Condition| it.kind == "ReplicaFailure" && it.status == "True";
        let condition = self.conditions.iter().find(refused)?;
        let why = condition.message.clone().or_else(|| condition.reason.clone()).unwrap_or_default();
        // The words of the admission plugin ResourceQuota: "exceeded quota", "failed quota".
        Some(Unsettled::Refused { quota: why.contains(" quota: "), why })
    }
}

/// Returns what is wrong with the number of pods.
fn miscounted(there: u32, wanted: u32) -> Option<Unsettled> {
    match there.cmp(&wanted) {
        Ordering::Less => Some(Unsettled::Missing(format!("{there} pods are there, expected {wanted}"))),
        Ordering::Equal => None,
        Ordering::Greater => {
            Some(Unsettled::Changing(format!("pods are being removed: {there} are there, expected {wanted}")))
        }
    }
}

impl Meta {
    /// Returns why the object is still changing.
    fn in_change(&self, observed_generation: Option<u64>) -> Option<Unsettled> {
        if self.deletion_timestamp.is_some() {
            return Some(Unsettled::Changing("it is being deleted".into()));
        }
        let behind = observed_generation.is_some_and(|observed| observed < self.generation);
        behind.then(|| Unsettled::Changing("its controller has not acted on its latest change yet".into()))
    }
}

impl Object {
    /// Returns why it is not at rest, for a kind of which we know only what is usual.
    pub fn unsettled(&self, scale: &Scale) -> Option<Unsettled> {
        let observed = self.status.get("observedGeneration").and_then(Value::as_u64);
        self.metadata.in_change(observed).or_else(|| miscounted(scale.status.replicas, scale.spec.replicas))
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
        let text = |status| app(json!({ "replicas": 3 }), status).unsettled(AppKind::Deployment);
        let at_rest =
            json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 1 });
        assert_eq!(text(at_rest), None);
        for (status, kind, part) in [
            (
                json!({ "observedGeneration": 1, "replicas": 3, "updatedReplicas": 3 }),
                "changing",
                "latest change",
            ),
            (
                json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 1 }),
                "rollout",
                "2 of 3 pods are of an older",
            ),
            (json!({ "observedGeneration": 2, "replicas": 3 }), "rollout", "3 of 3"),
            (json!({ "observedGeneration": 2, "replicas": 4, "updatedReplicas": 3 }), "rollout", "1 of 4"),
            (
                json!({ "observedGeneration": 2, "replicas": 4, "updatedReplicas": 4 }),
                "changing",
                "being removed",
            ),
            (
                json!({ "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2 }),
                "missing",
                "2 pods are there",
            ),
            (json!({ "observedGeneration": 2 }), "missing", "0 pods are there"),
        ] {
            let why = text(status).unwrap();
            assert!(why.kind() == kind && why.to_string().contains(part), "{why}");
        }
        let mut deleted = app(json!({}), json!({}));
        deleted.metadata.deletion_timestamp = Some("now".into());
        assert_eq!(deleted.unsettled(AppKind::Deployment).unwrap().to_string(), "it is being deleted");
    }

    #[test]
    fn a_quota_is_called_a_quota_and_a_paused_rollout_paused() {
        let failure = |message: &str| json!([{ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message }]);
        let unsettled = |updated, conditions| {
            let spec = json!({ "replicas": 6, "paused": true });
            let status = json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": updated, "conditions": conditions });
            app(spec, status).unsettled(AppKind::Deployment).unwrap()
        };
        let quota = failure(
            "pods \"w-1\" is forbidden: exceeded quota: few, requested: pods=1, used: pods=3, limited: pods=3",
        );
        let why = unsettled(3, quota.clone());
        assert_eq!(why.kind(), "quota");
        assert!(
            why.to_string().starts_with("a quota allows no more pods: pods \"w-1\" is forbidden"),
            "{why}"
        );
        let refused = unsettled(3, failure("admission webhook \"x\" denied the request"));
        assert_eq!(refused.kind(), "refused");
        let both = unsettled(0, quota);
        assert_eq!(both.kind(), "rollout");
        let begin = "a rollout is in progress: it is paused, 3 of 3 pods are of an older revision, and a quota allows";
        assert!(both.to_string().starts_with(begin), "{both}");
    }

    #[test]
    fn a_stateful_set_is_at_rest_when_all_pods_beyond_its_partition_are_updated() {
        let status = json!({ "observedGeneration": 2, "replicas": 4, "updatedReplicas": 1,
                             "currentRevision": "a", "updateRevision": "b" });
        let text = |strategy: Value| {
            app(json!({ "replicas": 4, "updateStrategy": strategy }), status.clone())
                .unsettled(AppKind::StatefulSet)
        };
        assert!(text(json!({ "type": "RollingUpdate" })).unwrap().to_string().contains("1 of 4"));
        assert_eq!(text(json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 3 } })), None);
        assert_eq!(text(json!({ "type": "OnDelete" })), None);
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
