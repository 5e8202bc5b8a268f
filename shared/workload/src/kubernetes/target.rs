//! One pool's workload in a cluster.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::warn;

use super::CONTROLLER;
use super::api::deadline;
use super::call::{Call, Verb};
use super::cluster::{Cluster, ClusterError};
use super::object::{App, AppKind, Object, Scale};
use super::pods::{List, PodObject};
use super::reference::{Reference, is_subdomain};
use super::report::{self, Regarding};
use crate::{Event, Order, Pod, Target, TargetError, Workload};

/// Holds the time and the reason of the last `touch`.
const TOUCHED: &str = "harness-fleet/undrained-at";

/// Among pods that are equally Ready, a ReplicaSet removes those of the lowest cost first; the usual cost is 0.
const DELETION_COST: (&str, &str) = ("controller.kubernetes.io/pod-deletion-cost", "-1000");

/// How old a list of other autoscalers may be when we only look, and when we write.
const RIVALS_AGE: Duration = Duration::from_secs(30);
const RIVALS_AGE_ON_WRITE: Duration = Duration::from_secs(1);

/// A workload with the subresource `scale`.
pub struct Kubernetes {
    cluster: Arc<Cluster>,
    namespace: String,
    workload: Reference,
    deletion_cost: bool,
    name: String,
    plural: OnceCell<String>,
    /// The object's uid when it was last seen. Events need it.
    uid: Mutex<String>,
    /// The last refusal that was reported, and when.
    refusal: Mutex<Option<(Event, Instant)>>,
    unreported: AtomicU32,
}

impl Kubernetes {
    /// Makes the target of a workload in this cluster. Without a namespace, it is in that of the context or
    /// of our own pod. With `deletion_cost`, pods that are to go are first marked as cheap to delete
    /// (`controller.kubernetes.io/pod-deletion-cost`), which needs the right to patch pods.
    pub fn new(
        cluster: &Arc<Cluster>,
        workload: Reference,
        namespace: Option<&str>,
        deletion_cost: bool,
    ) -> Result<Kubernetes, ClusterError> {
        let (cluster, namespace) = (cluster.clone(), namespace.unwrap_or(&cluster.namespace).to_owned());
        if !is_subdomain(&namespace) || namespace.contains('.') {
            return Err(ClusterError::Namespace(namespace));
        }
        let name = format!("{} {namespace}/{}", workload.kind, workload.name);
        let plural = match AppKind::of(&workload.group, &workload.kind) {
            Some(kind) => OnceCell::new_with(Some(kind.plural().to_owned())),
            None => OnceCell::new(),
        };
        let (uid, refusal, unreported) = Default::default();
        Ok(Kubernetes { cluster, namespace, workload, deletion_cost, name, plural, uid, refusal, unreported })
    }

    /// Makes a request about the workload itself.
    fn call<'a>(&'a self, verb: Verb, plural: &'a str, subresource: Option<&'a str>) -> Call<'a> {
        Call {
            server: &self.cluster.api.server,
            target: &self.name,
            verb,
            group: &self.workload.group,
            version: &self.workload.version,
            namespace: &self.namespace,
            plural,
            name: Some(&self.workload.name),
            subresource,
            query: Vec::new(),
            body: None,
        }
    }

    fn patch<'a>(&'a self, plural: &'a str, subresource: Option<&'a str>, body: Value) -> Call<'a> {
        let query = vec![("fieldManager", CONTROLLER)];
        Call { query, body: Some(body), ..self.call(Verb::Patch, plural, subresource) }
    }

    /// Returns what its kind is called in paths: known, or asked for once.
    async fn plural(&self, deadline: Instant) -> Result<&str, TargetError> {
        let Reference { group, version, kind, .. } = &self.workload;
        let plural = self.plural.get_or_try_init(|| async {
            let call = self.call(Verb::Get, "", None);
            self.cluster.api.plural_of(&call, group, version, kind, deadline).await
        });
        plural.await.map(String::as_str)
    }

    async fn check_uncontested(&self, max_age: Duration, deadline: Instant) -> Result<(), TargetError> {
        let rival = self.cluster.rivals.of(
            &self.cluster.api,
            &self.name,
            &self.namespace,
            &self.workload,
            max_age,
            deadline,
        );
        match rival.await? {
            Some(by) => Err(TargetError::Contested { target: self.name.clone(), by }),
            None => Ok(()),
        }
    }

    async fn look_at_app(&self, kind: AppKind, deadline: Instant) -> Result<Workload, TargetError> {
        let app: App = self.cluster.api.ask(&self.call(Verb::Get, kind.plural(), None), deadline).await?;
        self.remember(&app.metadata.uid);
        let refused = |message| TargetError::Refused { target: self.name.clone(), message };
        Ok(Workload {
            replicas: app.spec.replicas,
            ready: app.status.ready_replicas,
            unsettled: app.unsettled(kind),
            order: app.order(kind),
            selector: app.selector().map_err(refused)?,
            version: app.metadata.resource_version,
        })
    }

    /// Looks at the scale and the pods, because nothing else is known of this kind.
    async fn look_at_other(&self, deadline: Instant) -> Result<Workload, TargetError> {
        let plural = self.plural(deadline).await?;
        let object: Object = self.cluster.api.ask(&self.call(Verb::Get, plural, None), deadline).await?;
        let scale: Scale =
            self.cluster.api.ask(&self.call(Verb::Get, plural, Some("scale")), deadline).await?;
        self.remember(&object.metadata.uid);
        let selector = scale.status.selector.clone();
        // The older of the two versions: if the object has changed in between, a resize by this one
        // conflicts.
        let version = object.metadata.resource_version.clone();
        let unsettled = object.unsettled(&scale);
        let (ready, order) = if selector.is_empty() {
            let why = "its scale has no selector, so its pods are not known (see labelSelectorPath of its definition)";
            (scale.status.replicas, Ok(Order::Never(why.into())))
        } else {
            let pods: List<PodObject> = self.cluster.api.ask(&self.list_pods(&selector), deadline).await?;
            (pods.seen(&self.workload).iter().filter(|pod| pod.ready).count() as u32, pods.order())
        };
        let (order, unsettled) = match order {
            Ok(order) => (order, unsettled),
            Err(why) => (Order::NotReadyFirst, Some(why)),
        };
        Ok(Workload { replicas: scale.spec.replicas, ready, version, unsettled, order, selector })
    }

    fn remember(&self, uid: &str) {
        let mut known = self.uid.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != uid {
            uid.clone_into(&mut known);
        }
    }

    fn list_pods<'a>(&'a self, selector: &'a str) -> Call<'a> {
        Call { query: vec![("labelSelector", selector)], name: None, ..self.of_core(Verb::List, "pods", "") }
    }

    fn of_core<'a>(&'a self, verb: Verb, plural: &'a str, name: &'a str) -> Call<'a> {
        Call { group: "", version: "v1", name: Some(name), ..self.call(verb, plural, None) }
    }

    async fn make_cheap(&self, pod: &str, deadline: Instant) -> Result<(), TargetError> {
        let (key, cost) = DELETION_COST;
        let body = json!({ "metadata": { "annotations": { key: cost } } });
        let query = vec![("fieldManager", CONTROLLER)];
        let call = Call { query, body: Some(body), ..self.of_core(Verb::Patch, "pods", pod) };
        match self.cluster.api.ask::<serde::de::IgnoredAny>(&call, deadline).await {
            // The pod has gone already.
            Ok(_) | Err(TargetError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns whether it is a refusal that was reported lately.
    fn is_repeated(&self, event: &Event) -> bool {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let Event::NotResized { .. } = event else {
            *refusal = None;
            return false;
        };
        let repeated =
            matches!(&*refusal, Some((last, at)) if last == event && at.elapsed() < report::REPEAT_AFTER);
        if !repeated {
            *refusal = Some((event.clone(), Instant::now()));
        }
        repeated
    }
}

#[async_trait]
impl Target for Kubernetes {
    fn name(&self) -> &str {
        &self.name
    }

    async fn look(&self) -> Result<Workload, TargetError> {
        let deadline = deadline();
        self.check_uncontested(RIVALS_AGE, deadline).await?;
        match AppKind::of(&self.workload.group, &self.workload.kind) {
            Some(kind) => self.look_at_app(kind, deadline).await,
            None => self.look_at_other(deadline).await,
        }
    }

    async fn pods(&self, seen: &Workload) -> Result<Vec<Pod>, TargetError> {
        if seen.selector.is_empty() {
            return Ok(Vec::new());
        }
        let pods: List<PodObject> = self.cluster.api.ask(&self.list_pods(&seen.selector), deadline()).await?;
        Ok(pods.seen(&self.workload))
    }

    async fn resize(&self, seen: &Workload, to: u32, leaving: &[String]) -> Result<(), TargetError> {
        // One time limit for all of it, because the caller counts on it for how long a drain mark must last.
        let deadline = deadline();
        self.check_uncontested(RIVALS_AGE_ON_WRITE, deadline).await?;
        let plural = self.plural(deadline).await?;
        if self.deletion_cost && to < seen.replicas {
            try_join_all(leaving.iter().map(|pod| self.make_cheap(pod, deadline))).await?;
        }
        let body = json!({ "metadata": { "resourceVersion": seen.version }, "spec": { "replicas": to } });
        let scale: Scale = self.cluster.api.ask(&self.patch(plural, Some("scale"), body), deadline).await?;
        if scale.spec.replicas == to {
            return Ok(());
        }
        let message = format!("asked for {to} replicas, and the API server made it {}", scale.spec.replicas);
        Err(TargetError::Refused { target: self.name.clone(), message })
    }

    async fn touch(&self, why: &str) -> Result<(), TargetError> {
        let deadline = deadline();
        let plural = self.plural(deadline).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mark = format!("{} by {}: {why}", report::timestamp(now), self.cluster.instance);
        let body = json!({ "metadata": { "annotations": { TOUCHED: mark } } });
        // The kinds of apps/v1 take annotations through their status, and the right to do that cannot change
        // an image or a command. Other kinds ignore metadata there.
        let subresource =
            AppKind::of(&self.workload.group, &self.workload.kind).is_some().then_some("status");
        let object: Object = self.cluster.api.ask(&self.patch(plural, subresource, body), deadline).await?;
        if object.metadata.annotations.get(TOUCHED) == Some(&mark) {
            return Ok(());
        }
        let message = format!("the API server did not keep the annotation {TOUCHED}");
        Err(TargetError::Refused { target: self.name.clone(), message })
    }

    async fn report(&self, event: &Event) {
        if self.is_repeated(event) {
            return;
        }
        let uid = self.uid.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let regarding = Regarding {
            namespace: &self.namespace,
            workload: &self.workload,
            uid: &uid,
            instance: &self.cluster.instance,
        };
        let call = Call {
            group: "events.k8s.io",
            version: "v1",
            name: None,
            body: Some(report::manifest(event, &regarding)),
            ..self.call(Verb::Create, "events", None)
        };
        match self.cluster.api.ask::<serde::de::IgnoredAny>(&call, deadline()).await {
            Ok(_) => self.unreported.store(0, Ordering::Relaxed),
            Err(error) => {
                let failures = self.unreported.fetch_add(1, Ordering::Relaxed) + 1;
                if failures.is_power_of_two() {
                    warn!(cause = %error, failures, target_name = self.name, "an event could not be written");
                }
            }
        }
    }
}
