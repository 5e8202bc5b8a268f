//! RabbitMQ's management API as a second opinion on the queues' depths.
//!
//! Its numbers are collected every 5 s (`collect_statistics_interval`), so they are older than those of a passive
//! declare. But they come another way: if a quorum queue's leader does not answer, a passive declare says that the
//! queue is empty, while the management API still has its number.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use service::{Authorities, HttpUrl, explain_http};
use ureq::Agent;
use ureq::http::HeaderValue;
use ureq::http::header::AUTHORIZATION;

/// The time for one answer, however many queues there are.
const BOUND: Duration = Duration::from_secs(4);
/// The largest answer: more than a hundred thousand queues need.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
const EXPECTED: &str = "expected http://user:password@host:15672 or https://…";

/// The management API of the broker, for one vhost.
#[derive(Clone)]
pub struct Management {
    agent: Agent,
    url: String,
    authorization: HeaderValue,
    /// The address for messages, without the password.
    shown: String,
}

#[derive(Deserialize)]
struct Queue {
    name: String,
    messages_ready: Option<u64>,
}

impl Management {
    /// Reads the API's address, such as `http://user:password@host:15672`. The user needs the tag `monitoring` (or
    /// `management`) and a permission on the vhost. The error says what is wrong, and never shows the password.
    pub fn new(address: &str, vhost: &str, authorities: &Authorities) -> Result<Management, String> {
        let address = HttpUrl::parse(address).map_err(|problem| format!("{problem}, {EXPECTED}"))?;
        if address.has_query() {
            return Err(format!("has a query, {EXPECTED}"));
        }
        let authorization = address.authorization().filter(|_| address.has_password());
        let authorization = authorization.ok_or(format!("names no user with a password, {EXPECTED}"))?;
        // Only the queues' own counts, not the sums and rates that the plugin computes from them.
        let vhost: String = vhost.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let question = "columns=name,messages_ready&disable_stats=true&enable_queue_totals=true";
        let config = Agent::config_builder()
            .timeout_global(Some(BOUND))
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(authorities.tls())
            // The broker is reached directly, whatever `http_proxy` says.
            .proxy(None);
        Ok(Management {
            agent: config.build().into(),
            url: format!("{}/api/queues/{vhost}?{question}", address.base()),
            authorization,
            shown: address.origin(),
        })
    }

    /// Reads the messages ready in each queue of the vhost for which the API has a number.
    pub async fn ready(self) -> Result<HashMap<String, u64>, String> {
        let asking = tokio::task::spawn_blocking(move || {
            self.ask().map_err(|problem| format!("the management API at {}: {problem}", self.shown))
        });
        asking.await.map_err(|panic| panic.to_string())?
    }

    fn ask(&self) -> Result<HashMap<String, u64>, String> {
        let question = self.agent.get(&self.url).header(AUTHORIZATION, &self.authorization);
        let mut answer = question.call().map_err(|error| explain_http(&error))?;
        if !answer.status().is_success() {
            let hint = match answer.status().as_u16() {
                401 => {
                    ", expected a user with the tag `monitoring` and a permission on the vhost, and its password"
                }
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

    fn read(address: &str) -> Result<Management, String> {
        Management::new(address, "/", &Authorities::default())
    }

    #[test]
    fn an_address_is_read_and_never_shown_with_its_password() {
        let management = read("https://me:s3cret@rabbit:15671/").unwrap();
        assert_eq!(management.shown, "https://rabbit:15671");
        assert!(management.url.starts_with("https://rabbit:15671/api/queues/%2F?"));
        assert!(!format!("{management:?}").contains("s3cret"));
        for wrong in [
            "rabbit:15672",
            "amqp://me:s3cret@rabbit",
            "http://rabbit:15672",
            "http://me:s3cret@rabbit/?a=b",
            "",
        ] {
            let Err(problem) = read(wrong) else { panic!("{wrong} is taken") };
            assert!(problem.contains("expected http://user:password@host:15672"), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }
}
