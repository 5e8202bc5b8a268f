//! The HTTP client for providers: one attempt is one call.

use std::time::Duration;

use rustls::ClientConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a client that repeats nothing and follows nothing. A request that is repeated beneath its reservation would be
/// billed twice under one hold.
pub(super) fn build(tls: ClientConfig) -> Result<reqwest::Client, String> {
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
