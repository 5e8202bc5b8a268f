//! Other autoscalers of the same namespace: HorizontalPodAutoscalers, and the ScaledObjects of KEDA.
//!
//! Without the right to list them, scaling is refused as well, instead of assuming that there are none: two
//! autoscalers on one workload undo each other's work, and ours could then no longer promise that no busy
//! worker is removed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::api::Api;
use super::call::{Call, Verb};
use super::pods::List;
use super::reference::Reference;
use crate::TargetError;

/// What was found per namespace, and when. One list serves all pools of a namespace.
#[derive(Default)]
pub(super) struct Rivals(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Option<Found>>>>>);

struct Found {
    at: Instant,
    rivals: Arc<Vec<Rival>>,
}

/// Another autoscaler and what it scales.
struct Rival {
    /// Its kind and name, such as `HorizontalPodAutoscaler fleet/workers`.
    by: String,
    scaled: Scaled,
}

/// A `scaleTargetRef`. KEDA leaves out what is usual.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Scaled {
    api_version: Option<String>,
    kind: Option<String>,
    name: String,
}

impl Scaled {
    fn is(&self, workload: &Reference) -> bool {
        let kind = self.kind.as_deref().unwrap_or("Deployment");
        let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
        let group = match &self.api_version {
            Some(version) => group(version),
            None if self.kind.is_none() => "apps".into(),
            None => workload.group.clone(),
        };
        // Deployments were served in this group too, and are the same objects.
        let group = if group == "extensions" { "apps".into() } else { group };
        self.name == workload.name && kind == workload.kind && group == workload.group
    }
}

#[derive(Deserialize)]
struct Scaler {
    metadata: super::object::Meta,
    #[serde(default)]
    spec: ScalerSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ScalerSpec {
    scale_target_ref: Scaled,
}

impl Rivals {
    /// Returns what else scales this workload, by a list that is no older than `max_age`.
    pub(super) async fn of(
        &self,
        api: &Api,
        target: &str,
        namespace: &str,
        workload: &Reference,
        max_age: Duration,
        deadline: Instant,
    ) -> Result<Option<String>, TargetError> {
        let place = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            places.entry(namespace.to_owned()).or_default().clone()
        };
        let mut found = place.lock().await;
        let rivals = match &*found {
            Some(Found { at, rivals }) if at.elapsed() <= max_age => rivals.clone(),
            _ => {
                let at = Instant::now();
                let rivals = Arc::new(list(api, target, namespace, deadline).await?);
                *found = Some(Found { at, rivals: rivals.clone() });
                rivals
            }
        };
        Ok(rivals.iter().find(|rival| rival.scaled.is(workload)).map(|rival| rival.by.clone()))
    }
}

/// Lists the other autoscalers of a namespace. ScaledObjects come first, because the HorizontalPodAutoscaler
/// that KEDA makes of each is not the one to remove.
async fn list(
    api: &Api,
    target: &str,
    namespace: &str,
    deadline: Instant,
) -> Result<Vec<Rival>, TargetError> {
    let mut rivals = Vec::new();
    for (kind, group, versions, plural) in [
        ("ScaledObject", "keda.sh", &["v1alpha1"][..], "scaledobjects"),
        ("HorizontalPodAutoscaler", "autoscaling", &["v1", "v2"][..], "horizontalpodautoscalers"),
    ] {
        for version in versions {
            let call = Call {
                server: &api.server,
                target,
                verb: Verb::List,
                group,
                version,
                namespace,
                plural,
                name: None,
                subresource: None,
                query: Vec::new(),
                body: None,
            };
            let list: List<Scaler> = match api.ask(&call, deadline).await {
                // Not served: there is no such thing in this cluster, or not in this version.
                Err(TargetError::NotFound { .. }) => continue,
                answer => answer?,
            };
            rivals.extend(list.items.into_iter().map(|scaler| Rival {
                by: format!("{kind} {namespace}/{}", scaler.metadata.name),
                scaled: scaler.spec.scale_target_ref,
            }));
            break;
        }
    }
    Ok(rivals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_scales_the_same_kind_name_and_group_in_whatever_version() {
        let workload: Reference = "apps/v1/Deployment/workers".parse().unwrap();
        let scales = |version: Option<&str>, kind: Option<&str>, name: &str| {
            let [api_version, kind] = [version, kind].map(|text| text.map(str::to_owned));
            Scaled { api_version, kind, name: name.to_owned() }.is(&workload)
        };
        assert!(scales(Some("apps/v1"), Some("Deployment"), "workers"));
        assert!(scales(Some("apps/v1beta2"), Some("Deployment"), "workers"));
        assert!(scales(Some("extensions/v1beta1"), Some("Deployment"), "workers"));
        assert!(scales(None, None, "workers"));
        assert!(scales(None, Some("Deployment"), "workers"));
        assert!(!scales(Some("apps/v1"), Some("StatefulSet"), "workers"));
        assert!(!scales(Some("apps/v1"), Some("Deployment"), "others"));
        assert!(!scales(Some("example.com/v1"), Some("Deployment"), "workers"));
        assert!(!scales(Some("v1"), Some("Deployment"), "workers"));
    }
}
