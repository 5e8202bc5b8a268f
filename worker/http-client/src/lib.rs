//! The HTTP client that calls a provider, a service or a server of tools: one attempt is one request, to the address
//! that was named. This crate does not know what is asked, or who answers.

use std::error::Error;
use std::time::Duration;

use reqwest::Client;
use rustls::ClientConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a client that repeats nothing, follows nothing and asks no proxy. A request that is repeated beneath its
/// reservation would be billed twice under one hold.
pub fn build(tls: ClientConfig) -> Result<Client, String> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .build()
        .map_err(|error| error.to_string())
}

/// Returns what lies beneath an error, without the address, which may hold a secret.
pub fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let said = cause.to_string();
    match error.url() {
        Some(url) => said.replace(url.as_str(), "its address"),
        None => said,
    }
}
