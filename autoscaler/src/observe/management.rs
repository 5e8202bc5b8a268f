//! RabbitMQ's management API as a second opinion on the queues' depths.
//!
//! Its numbers are collected every 5 s (`collect_statistics_interval`) and so are older than those of a passive declare; but they
//! come another way: a quorum queue whose leader does not answer declares itself to be empty, and has a number here still.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};

/// For one answer, however many queues there are.
const BOUND: Duration = Duration::from_secs(4);
/// Larger than that of a hundred thousand queues.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
const EXPECTED: &str = "expected http://user:password@host:15672 or https://…";

/// The management API of the broker, for one vhost.
#[derive(Clone)]
pub struct Management {
    agent: Agent,
    url: String,
    /// Without the password.
    shown: String,
}

#[derive(Deserialize)]
struct Queue {
    name: String,
    messages_ready: Option<u64>,
}

impl Management {
    /// Reads the API's address, such as `http://user:password@host:15672`. The user needs the tag `monitoring` (or
    /// `management` and permissions on the vhost). The error says what is wrong, and never shows the password.
    pub fn new(address: &str, vhost: &str) -> Result<Management, String> {
        let uri: Uri = address.parse().map_err(|error| format!("{error}, {EXPECTED}"))?;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(EXPECTED.to_owned());
        };
        if uri.query().is_some() {
            return Err(format!("has a query, {EXPECTED}"));
        }
        let user = uri.authority().and_then(|all| all.as_str().rsplit_once('@')).map(|(user, _)| user);
        if user.is_none_or(|user| !user.contains(':')) {
            return Err(format!("names no user with a password, {EXPECTED}"));
        }
        let port = uri.port().map_or(String::new(), |port| format!(":{port}"));
        // Only what the queues themselves count, not the sums and rates that the plugin makes of it.
        let vhost: String = vhost.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let question = "columns=name,messages_ready&disable_stats=true&enable_queue_totals=true";
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .timeout_global(Some(BOUND))
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls)
            // The broker is a neighbour, whatever `http_proxy` says.
            .proxy(None);
        Ok(Management {
            agent: config.build().into(),
            url: format!("{}/api/queues/{vhost}?{question}", address.trim_end_matches('/')),
            shown: format!("{scheme}://{host}{port}"),
        })
    }

    /// The messages ready in each queue of the vhost that it knows a number of.
    pub(super) async fn ready(self) -> Result<HashMap<String, u64>, String> {
        let asking = tokio::task::spawn_blocking(move || {
            self.ask().map_err(|problem| format!("the management API at {}: {problem}", self.shown))
        });
        asking.await.map_err(|panic| panic.to_string())?
    }

    fn ask(&self) -> Result<HashMap<String, u64>, String> {
        let mut answer = self.agent.get(&self.url).call().map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            let hint = match answer.status().as_u16() {
                401 => ", expected a user with the tag `monitoring`, and its password",
                404 => ", expected the address of RabbitMQ's management plugin, and a vhost that it has",
                _ => "",
            };
            return Err(format!("got {}{hint}", answer.status()));
        }
        let text = answer.body_mut().with_config().limit(MAX_BYTES).read_to_string();
        let text = text.map_err(|error| error.to_string())?;
        let queues: Vec<Queue> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        Ok(queues.into_iter().filter_map(|queue| Some((queue.name, queue.messages_ready?))).collect())
    }
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("at", &self.shown).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_never_shown_with_its_password() {
        let management = Management::new("https://me:s3cret@rabbit:15671/", "/").unwrap();
        assert_eq!(management.shown, "https://rabbit:15671");
        assert!(management.url.starts_with("https://me:s3cret@rabbit:15671/api/queues/%2F?"));
        for wrong in [
            "rabbit:15672",
            "amqp://me:s3cret@rabbit",
            "http://rabbit:15672",
            "http://me:s3cret@rabbit/?a=b",
            "",
        ] {
            let Err(problem) = Management::new(wrong, "/") else { panic!("{wrong} is taken") };
            assert!(problem.contains("expected http://user:password@host:15672"), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }
}
