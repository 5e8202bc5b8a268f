//! The way to the API server, shared by all pools.

use std::sync::Arc;
use std::time::Duration;

use kube::config::KubeConfigOptions;
use kube::core::GroupVersionKind;
use kube::core::discovery::Scope;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::call::Call;
use super::reference::is_subdomain;
use super::rivals::Rivals;
use super::{Kubernetes, Reference};
use crate::apply::TargetError;

/// How long a call may take in all.
const BOUND: Duration = Duration::from_secs(5);

/// Requests under way at once, and so connections to the API server (HTTP/1.1, kept alive). Further ones wait within
/// their bound.
const CONNECTIONS: usize = 8;

/// A cluster's API server and our credentials for it.
pub struct Cluster {
    client: Client,
    /// The API server, for errors.
    pub(super) server: String,
    namespace: String,
    slots: Semaphore,
    pub(super) rivals: Rivals,
    /// Which of several autoscalers writes an event.
    pub(super) instance: String,
}

/// Why there is no way to a cluster: a matter of settings. Nothing has been asked of the cluster yet.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig has no such context, or cannot be used.
    #[error("the context \"{context}\" cannot be used")]
    Context {
        /// Its name.
        context: String,
        /// What is wrong.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Neither a kubeconfig nor a service account is at hand.
    #[error("found no kubeconfig (KUBECONFIG, ~/.kube/config) and no service account of a pod")]
    Nowhere(#[source] kube::config::InferConfigError),
    /// What was found there makes no client, such as a certificate that cannot be read.
    #[error("the kubeconfig or service account cannot be used")]
    Unusable(#[source] kube::Error),
    /// A namespace that cannot be.
    #[error("got \"{0}\": not a namespace, expected lower case letters, digits and -")]
    Namespace(String),
}

impl Cluster {
    /// Finds the credentials: the named context of the kubeconfig; or, without a name, the kubeconfig's current context
    /// (`KUBECONFIG`, `~/.kube/config`), or the service account of the pod that this runs in. Connects later, when there
    /// is something to ask.
    pub async fn find(context: Option<&str>) -> Result<Arc<Cluster>, ClusterError> {
        let config = match context {
            None => Config::infer().await.map_err(ClusterError::Nowhere)?,
            Some(context) => {
                let options =
                    KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
                let failed = |source| ClusterError::Context { context: context.to_owned(), source };
                Config::from_kubeconfig(&options).await.map_err(failed)?
            }
        };
        Cluster::with(config)
    }

    /// With a configuration that was made elsewhere.
    pub fn with(mut config: Config) -> Result<Arc<Cluster>, ClusterError> {
        let namespace = config.default_namespace.clone();
        // Never with credentials, which a kubeconfig keeps elsewhere.
        let authority = config.cluster_url.authority().map_or("", |authority| authority.as_str());
        let server = format!(
            "{}://{}",
            config.cluster_url.scheme_str().unwrap_or("https"),
            authority.rsplit('@').next().unwrap_or(authority)
        );
        // Bounds and retries are ours, see `ask` and whoever calls a target.
        config.default_retry = false;
        config.connect_timeout = Some(BOUND);
        let client = Client::try_from(config).map_err(ClusterError::Unusable)?;
        // In a pod the host's name is the pod's.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = format!("{}-{}", host.trim(), std::process::id());
        let slots = Semaphore::new(CONNECTIONS);
        Ok(Arc::new(Cluster { client, server, namespace, slots, rivals: Rivals::default(), instance }))
    }

    /// A workload in this cluster; without a namespace, in that of the context or of our own pod. With `deletion_cost`,
    /// pods that are to go are marked as cheap to delete before they go (`controller.kubernetes.io/pod-deletion-cost`),
    /// which takes the right to patch pods.
    pub fn target(
        self: &Arc<Self>,
        workload: Reference,
        namespace: Option<&str>,
        deletion_cost: bool,
    ) -> Result<Kubernetes, ClusterError> {
        let namespace = namespace.unwrap_or(&self.namespace).to_owned();
        if !is_subdomain(&namespace) || namespace.contains('.') {
            return Err(ClusterError::Namespace(namespace));
        }
        Ok(Kubernetes::new(self.clone(), namespace, workload, deletion_cost))
    }

    /// Asks the API server, and waits no longer than until the deadline.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<T, TargetError> {
        let asking = async {
            let _slot = self.slots.acquire().await;
            let left = deadline.saturating_duration_since(Instant::now());
            let request = call.request(left)?;
            self.client.request(request).await.map_err(|error| call.failed(error))
        };
        timeout_at(deadline, asking).await.unwrap_or_else(|_| Err(call.timed_out(BOUND)))
    }

    /// What a kind is called in paths, if it is there and can be scaled.
    pub(super) async fn plural_of(
        &self,
        call: &Call<'_>,
        group: &str,
        version: &str,
        kind: &str,
        deadline: Instant,
    ) -> Result<String, TargetError> {
        let asked = GroupVersionKind::gvk(group, version, kind);
        let asking = async {
            let _slot = self.slots.acquire().await;
            kube::discovery::pinned_kind(&self.client, &asked).await
        };
        let target = call.target.to_owned();
        let found = match timeout_at(deadline, asking).await {
            Err(_) => return Err(call.timed_out(BOUND)),
            Ok(Err(error)) if is_unknown(&error) => {
                let message = format!("the API server has no kind {kind} in {}", asked.api_version());
                return Err(TargetError::NotFound { target, message });
            }
            Ok(found) => found,
        };
        let (resource, able) = found.map_err(|error| call.failed(error))?;
        if able.scope != Scope::Namespaced {
            return Err(TargetError::Refused { target, message: format!("a {kind} is in no namespace") });
        }
        if !able.subresources.iter().any(|(subresource, _)| subresource.plural == "scale") {
            let message = format!("a {kind} cannot be scaled: it has no subresource scale");
            return Err(TargetError::Refused { target, message });
        }
        Ok(resource.plural)
    }
}

/// Whether a kind, or its whole group, is not served.
fn is_unknown(error: &kube::Error) -> bool {
    match error {
        kube::Error::Discovery(_) => true,
        kube::Error::Api(status) => status.code == 404,
        _ => false,
    }
}

/// The deadline of a call that begins now.
pub(super) fn deadline() -> Instant {
    Instant::now() + BOUND
}
