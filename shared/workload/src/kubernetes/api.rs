//! The API server: one client for all pools, and the bounds of a request.

use std::time::Duration;

use kube::core::GroupVersionKind;
use kube::core::discovery::Scope;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::call::Call;
use crate::TargetError;

/// How long a call may take in all.
const BOUND: Duration = Duration::from_secs(5);

/// How many requests are under way at once, and so how many connections to the API server there are
/// (HTTP/1.1, kept alive). Further requests wait within their time limit.
const CONNECTIONS: usize = 8;

/// The API server of a cluster, and our credentials for it.
pub(super) struct Api {
    client: Client,
    /// Its address, for errors.
    pub server: String,
    slots: Semaphore,
}

impl Api {
    /// Makes the client, which connects when there is something to ask.
    pub fn new(mut config: Config) -> Result<Api, kube::Error> {
        // The address is shown without credentials, which a kubeconfig keeps elsewhere.
        let authority = config.cluster_url.authority().map_or("", |authority| authority.as_str());
        let server = format!(
            "{}://{}",
            config.cluster_url.scheme_str().unwrap_or("https"),
            authority.rsplit('@').next().unwrap_or(authority)
        );
        // Time limits and retries are ours: see `ask`, and the callers of a target.
        config.default_retry = false;
        config.connect_timeout = Some(BOUND);
        Ok(Api { client: Client::try_from(config)?, server, slots: Semaphore::new(CONNECTIONS) })
    }

    /// Asks the API server, and waits until the deadline at most.
    pub async fn ask<T: DeserializeOwned>(
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

    /// Returns what a kind is called in paths, if it exists and can be scaled.
    pub async fn plural_of(
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

/// Returns whether a kind, or its whole group, is not served.
fn is_unknown(error: &kube::Error) -> bool {
    match error {
        kube::Error::Discovery(_) => true,
        kube::Error::Api(status) => status.code == 404,
        _ => false,
    }
}

/// Returns the deadline of a call that begins now.
pub(super) fn deadline() -> Instant {
    Instant::now() + BOUND
}
