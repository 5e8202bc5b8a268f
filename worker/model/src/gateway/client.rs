//! The HTTP client for providers: one attempt is one call.

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a client that repeats nothing and follows nothing. A request that is repeated beneath its reservation would be
/// billed twice under one hold.
pub(super) fn build() -> Result<reqwest::Client, String> {
    let mut roots = RootCertStore::empty();
    // One unreadable certificate of the system's must not prevent the use of the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .build()
        .map_err(|error| error.to_string())
}
