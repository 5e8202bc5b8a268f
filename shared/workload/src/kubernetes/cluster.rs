//! A cluster: where it is, and who we are there. All pools share one.

use std::sync::Arc;

use kube::Config;
use kube::config::KubeConfigOptions;

use super::api::Api;
use super::rivals::Rivals;

/// A cluster's API server and our credentials for it.
pub struct Cluster {
    pub(super) api: Api,
    /// The namespace of the context, or of our own pod.
    pub(super) namespace: String,
    pub(super) rivals: Rivals,
    /// Names this autoscaler among several in events.
    pub(super) instance: String,
}

/// Why a cluster cannot be used: a matter of settings. Nothing has been asked of the cluster yet.
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
    /// There is neither a kubeconfig nor a service account.
    #[error("found no kubeconfig (KUBECONFIG, ~/.kube/config) and no service account of a pod")]
    Nowhere(#[source] kube::config::InferConfigError),
    /// What was found there cannot be used, for instance because a certificate cannot be read.
    #[error("the kubeconfig or service account cannot be used")]
    Unusable(#[source] kube::Error),
    /// The name of the namespace is not valid.
    #[error("got \"{0}\": not a namespace, expected lower case letters, digits and -")]
    Namespace(String),
}

impl Cluster {
    /// Finds the credentials. With a name, they are those of that context of the kubeconfig. Without one,
    /// they are those of the kubeconfig's current context (`KUBECONFIG`, `~/.kube/config`), or of the service
    /// account of the pod that this runs in. The client connects when there is something to ask.
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

    /// Makes a cluster from a configuration that was made elsewhere.
    pub fn with(config: Config) -> Result<Arc<Cluster>, ClusterError> {
        let namespace = config.default_namespace.clone();
        let api = Api::new(config).map_err(ClusterError::Unusable)?;
        // In a pod the host's name is the pod's.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = format!("{}-{}", host.trim(), std::process::id());
        Ok(Arc::new(Cluster { api, namespace, rivals: Rivals::default(), instance }))
    }
}
