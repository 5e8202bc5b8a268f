//! A cluster: where it is, and who we are there. All pools share one.

use std::sync::Arc;

use kube::Config;
use kube::config::KubeConfigOptions;

use super::api::Api;
use super::rivals::Rivals;

/// A cluster's API server and our credentials for it.
pub struct Cluster {
    pub(super) api: Api,
    /// That of the context, or of our own pod.
    pub(super) namespace: String,
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
    pub fn with(config: Config) -> Result<Arc<Cluster>, ClusterError> {
        let namespace = config.default_namespace.clone();
        let api = Api::new(config).map_err(ClusterError::Unusable)?;
        // In a pod the host's name is the pod's.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = format!("{}-{}", host.trim(), std::process::id());
        Ok(Arc::new(Cluster { api, namespace, rivals: Rivals::default(), instance }))
    }
}
