//! HTTP, as much as the admin port and RabbitMQ's management API need.

use std::time::Duration;

use ureq::Agent;

fn agent() -> Agent {
    let config = Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        // All servers are on this machine, so `http_proxy` is ignored.
        .proxy(None);
    config.build().into()
}

/// Returns the status and the body.
pub fn get(url: &str) -> Result<(u16, String), ureq::Error> {
    let mut answer = agent().get(url).call()?;
    Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
}

/// Sends JSON; fails on every answer that is not a success.
pub(crate) fn put(url: &str, json: &str) -> Result<(), String> {
    let answer = agent().put(url).content_type("application/json").send(json);
    succeeded(answer)
}

/// Fails on every answer that is not a success.
pub(crate) fn delete(url: &str) -> Result<(), String> {
    succeeded(agent().delete(url).call())
}

fn succeeded(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(), String> {
    let mut answer = answer.map_err(|error| error.to_string())?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("{}: {}", answer.status(), answer.body_mut().read_to_string().unwrap_or_default()))
}
