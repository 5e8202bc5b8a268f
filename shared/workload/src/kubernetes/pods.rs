//! What a pod says about itself.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Reference;
use super::object::{AppKind, Condition, Meta};
use crate::{Order, Pod, Unsettled};

/// A list of pods, or of anything else.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    #[serde(default = "Vec::new")]
    pub items: Vec<T>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PodObject {
    metadata: PodMeta,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodMeta {
    #[serde(flatten)]
    meta: Meta,
    labels: BTreeMap<String, String>,
    owner_references: Vec<Owner>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Owner {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: String,
    conditions: Vec<Condition>,
    init_container_statuses: Vec<Container>,
    container_statuses: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    state: State,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    waiting: Option<Cause>,
    terminated: Option<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: Option<String>,
}

impl PodObject {
    /// Returns whether its controller still counts it: it is not being deleted and has not ended.
    fn is_active(&self) -> bool {
        self.metadata.meta.deletion_timestamp.is_none()
            && !matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == kind)
    }

    fn controller(&self) -> Option<&Owner> {
        self.metadata.owner_references.iter().find(|owner| owner.controller)
    }

    /// Returns whether this workload has made it. A selector finds more than that: pods made by hand, or by
    /// another workload with the same labels. For a kind that we do not know, every pod that the selector
    /// finds counts.
    fn is_of(&self, workload: &Reference) -> bool {
        let Some(kind) = AppKind::of(&workload.group, &workload.kind) else { return true };
        let Some(owner) = self.controller() else { return false };
        match kind {
            // The Deployment's controller names a ReplicaSet after its Deployment and the template's hash,
            // which is a label of its pods.
            AppKind::Deployment => {
                let hash = self.metadata.labels.get("pod-template-hash").map_or("", String::as_str);
                owner.is_replica_set() && owner.name == format!("{}-{hash}", workload.name)
            }
            AppKind::StatefulSet | AppKind::ReplicaSet => {
                owner.kind == workload.kind && owner.name == workload.name
            }
        }
    }

    fn ordinal(&self) -> Option<u32> {
        let owner = self.controller().filter(|owner| owner.kind == "StatefulSet")?;
        self.metadata.meta.name.strip_prefix(&owner.name)?.strip_prefix('-')?.parse().ok()
    }

    fn trouble(&self) -> Option<String> {
        let status = &self.status;
        let containers = || status.init_container_statuses.iter().chain(&status.container_statuses);
        let states = || containers().map(|container| &container.state);
        let waiting = states().find_map(|state| state.waiting.as_ref());
        // An init container that has ended has done its work.
        let ended =
            status.container_statuses.iter().find_map(|container| container.state.terminated.as_ref());
        if let Some(cause) = waiting.or(ended) {
            return Some(cause.reason.clone().unwrap_or_else(|| "a container does not run".into()));
        }
        let unscheduled = self.condition("PodScheduled").filter(|condition| condition.status == "False");
        match unscheduled.and_then(|condition| condition.reason.clone()) {
            Some(reason) => Some(reason),
            None => (status.phase != "Running").then(|| match status.phase.as_str() {
                "" => "Pending".into(),
                phase => phase.to_owned(),
            }),
        }
    }

    fn seen(&self) -> Pod {
        Pod {
            name: self.metadata.meta.name.clone(),
            ready: self.condition("Ready").is_some_and(|condition| condition.status == "True"),
            ordinal: self.ordinal(),
            trouble: self.trouble(),
        }
    }
}

impl List<PodObject> {
    /// Returns the workload's pods that count, by ordinal and name.
    pub fn seen(&self, workload: &Reference) -> Vec<Pod> {
        let active = self.items.iter().filter(|pod| pod.is_active() && pod.is_of(workload));
        let mut pods: Vec<Pod> = active.map(PodObject::seen).collect();
        pods.sort_unstable_by(|a, b| (a.ordinal, &a.name).cmp(&(b.ordinal, &b.name)));
        pods
    }

    /// Returns which of them go first, by their owners: for a kind of workload that we do not know.
    pub fn order(&self) -> Result<Order, Unsettled> {
        let mut owners: Vec<Option<&Owner>> =
            self.items.iter().filter(|pod| pod.is_active()).map(PodObject::controller).collect();
        owners.sort_unstable();
        owners.dedup();
        match owners[..] {
            [] => Ok(Order::NotReadyFirst),
            [Some(owner)] if owner.is_replica_set() => Ok(Order::NotReadyFirst),
            [Some(Owner { kind, name, .. })] if kind == "StatefulSet" => {
                Ok(Order::Never(format!("its pods belong to StatefulSet {name}: name that as the workload")))
            }
            _ if owners.iter().all(|owner| owner.is_some_and(Owner::is_replica_set)) => {
                Err(Unsettled::Rollout("its pods belong to several ReplicaSets".into()))
            }
            _ => Ok(Order::Never(
                "it is not known which of its pods go first, expected pods of one ReplicaSet".into(),
            )),
        }
    }
}

impl Owner {
    /// Returns whether the owner ranks pods by readiness when it removes some.
    fn is_replica_set(&self) -> bool {
        (self.kind == "ReplicaSet" && self.api_version.starts_with("apps/"))
            || (self.kind == "ReplicationController" && self.api_version == "v1")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, owner: &str, status: Value) -> Value {
        let (kind, owner) = owner.split_once('/').unwrap();
        let owner =
            json!({ "apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": owner, "controller": true });
        let labels = json!({ "pod-template-hash": "5f" });
        json!({ "metadata": { "name": name, "labels": labels, "ownerReferences": [owner] }, "status": status })
    }

    fn workload(name: &str) -> Reference {
        name.parse().unwrap()
    }

    fn list(pods: &[Value]) -> List<PodObject> {
        serde_json::from_value(json!({ "items": pods })).unwrap()
    }

    fn running(ready: &str) -> Value {
        json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] })
    }

    #[test]
    fn a_pod_is_reported_with_what_keeps_it_from_being_ready() {
        let set = workload("StatefulSet/w");
        let troubled = |status| list(&[pod("w-0", "StatefulSet/w", status)]).seen(&set).remove(0);
        assert!(troubled(running("True")).ready);
        let not_ready = troubled(running("False"));
        assert_eq!((not_ready.ready, not_ready.trouble, not_ready.ordinal), (false, None, Some(0)));
        let waiting = |reason| json!({ "phase": "Running", "containerStatuses": [{ "state": { "waiting": { "reason": reason } } }] });
        for (status, trouble) in [
            (json!({}), "Pending"),
            (json!({ "phase": "Unknown" }), "Unknown"),
            (waiting("CrashLoopBackOff"), "CrashLoopBackOff"),
            (
                json!({ "phase": "Pending", "conditions": [
                    { "type": "PodScheduled", "status": "False", "reason": "Unschedulable" },
                ] }),
                "Unschedulable",
            ),
            (
                json!({ "phase": "Pending", "initContainerStatuses": [
                    { "state": { "terminated": { "reason": "Completed" } } },
                    { "state": { "waiting": { "reason": "ImagePullBackOff" } } },
                ] }),
                "ImagePullBackOff",
            ),
        ] {
            assert_eq!(troubled(status).trouble.as_deref(), Some(trouble));
        }
    }

    #[test]
    fn pods_that_are_going_do_not_count_and_ordinals_sort_as_numbers() {
        let mut going = pod("w-1", "StatefulSet/w", running("True"));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let ended = pod("w-2", "StatefulSet/w", json!({ "phase": "Failed" }));
        let ten = pod("w-10", "StatefulSet/w", running("True"));
        let nine = pod("w-9", "StatefulSet/w", running("True"));
        let seen = list(&[ten, going, ended, nine]).seen(&workload("StatefulSet/w"));
        let names: Vec<_> = seen.into_iter().map(|pod| pod.name).collect();
        assert_eq!(names, ["w-9", "w-10"]);
    }

    #[test]
    fn a_foreign_pod_under_the_selector_is_none_of_the_workload() {
        let ready = || running("True");
        let by_hand = json!({ "metadata": { "name": "debug", "labels": { "pod-template-hash": "5f" } }, "status": ready() });
        let pods = list(&[
            pod("w-5f-a", "ReplicaSet/w-5f", ready()),
            pod("w-canary-5f-b", "ReplicaSet/w-canary-5f", ready()),
            pod("w-0", "StatefulSet/w", ready()),
            pod("rs-a", "ReplicaSet/rs", ready()),
            by_hand,
        ]);
        for (name, own) in [("Deployment/w", "w-5f-a"), ("StatefulSet/w", "w-0"), ("ReplicaSet/rs", "rs-a")] {
            let names: Vec<_> = pods.seen(&workload(name)).into_iter().map(|pod| pod.name).collect();
            assert_eq!(names, [own], "{name}");
        }
        assert_eq!(pods.seen(&workload("example.com/v1/Fleet/w")).len(), 5);
    }

    #[test]
    fn owners_say_which_pods_go_first() {
        let of = |owners: &[&str]| {
            let pods: Vec<_> = owners.iter().map(|owner| pod("w-0", owner, running("True"))).collect();
            list(&pods).order()
        };
        assert_eq!(of(&[]), Ok(Order::NotReadyFirst));
        assert_eq!(of(&["ReplicaSet/a", "ReplicaSet/a"]), Ok(Order::NotReadyFirst));
        assert!(of(&["ReplicaSet/a", "ReplicaSet/b"]).is_err());
        assert!(matches!(of(&["StatefulSet/a"]), Ok(Order::Never(_))));
        assert!(matches!(of(&["CloneSet/a"]), Ok(Order::Never(_))));
    }
}
