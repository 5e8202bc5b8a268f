//! The HTTP client for services.

use std::time::Duration;

use rustls::ClientConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a client that repeats nothing and follows nothing: each attempt is one request.
pub(crate) fn build(tls: ClientConfig) -> Result<reqwest::Client, String> {
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
