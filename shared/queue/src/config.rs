//! Settings of a connection, and their defaults. Reads no environment. Reports what is wrong with an address.

use std::fmt;
use std::time::Duration;

use job::Backoff;

use crate::ConfigError;
use crate::address::Address;

/// Where the broker is, and how long to wait for it.
#[derive(Clone)]
pub struct BrokerConfig {
    /// `AMQP_URL`.
    pub url: String,
    /// Authorities to trust in addition to the system's, as PEM. `cacertfile` in the URL names others.
    pub own_authorities: Option<String>,
    /// The connection's name in the management UI.
    pub name: String,
    /// The pools whose queues are declared at every connect. [`crate::Broker::declare_pool`] adds more later.
    pub pools: Vec<job::Name>,
    /// Whether exchanges and queues are declared at every connect. Default true. If false, the user needs no
    /// permission but access to the vhost to look at queues.
    pub declares: bool,
    /// Timeout of one attempt to connect, including DNS and TLS. Default 10 s.
    pub connect_timeout: Duration,
    /// Timeout of every request to the broker (declare, consume, cancel). Default 30 s.
    pub operation_timeout: Duration,
    /// Timeout of one publish, including the wait for a connection. Default 30 s.
    pub confirm_timeout: Duration,
    /// Timeout of an orderly close. Default 5 s.
    pub close_timeout: Duration,
    /// Heartbeat interval in seconds, unless the URL sets one. A silent peer is noticed after twice this time, and its
    /// deliveries go to other consumers: at about the time its lease (10 s) runs out. Default 5 s.
    pub heartbeat_s: u16,
    /// The largest frame, in bytes, unless the URL sets one or the broker proposes less. lapin keeps memory for 64 such
    /// frames per connection. Default 128 KiB, which is RabbitMQ's own.
    pub frame_max: u32,
    /// The number of messages that may be published and not yet confirmed. Default 4096.
    pub max_in_flight: usize,
    /// The size of their bodies together, in bytes. Default 64 MiB.
    pub max_in_flight_bytes: usize,
    /// Upper bound of the first wait between attempts to connect. Default 250 ms.
    pub min_backoff: Duration,
    /// Upper bound of every wait. Default 3 s, so that consuming resumes within 5 s of the broker's return.
    pub max_backoff: Duration,
}

impl BrokerConfig {
    /// Returns the defaults with this address and name.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> BrokerConfig {
        BrokerConfig {
            url: url.into(),
            own_authorities: None,
            name: name.into(),
            pools: Vec::new(),
            declares: true,
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            confirm_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            heartbeat_s: 5,
            frame_max: 128 * 1024,
            max_in_flight: 4096,
            max_in_flight_bytes: 64 * 1024 * 1024,
            min_backoff: Duration::from_millis(250),
            max_backoff: Duration::from_secs(3),
        }
    }

    /// Returns the same configuration with queues to declare.
    pub fn with_pools(mut self, pools: impl IntoIterator<Item = job::Name>) -> BrokerConfig {
        self.pools.extend(pools);
        self
    }

    /// Returns the same configuration with authorities (PEM) to trust in addition to the system's.
    pub fn trusting(self, own_authorities: Option<&str>) -> BrokerConfig {
        BrokerConfig { own_authorities: own_authorities.map(str::to_owned), ..self }
    }

    /// Returns the same configuration for a client that only reads. Its user needs no further permission, and its
    /// frames are small: 1 MiB of memory for all of them.
    pub fn only_looking(self) -> BrokerConfig {
        BrokerConfig { declares: false, frame_max: 16 * 1024, ..self }
    }

    /// Checks the address. The error names `AMQP_URL` and never holds the password.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.address().map(drop)
    }

    /// Returns the vhost that the address names.
    pub fn vhost(&self) -> Result<String, ConfigError> {
        self.address().map(|address| address.uri().vhost)
    }

    pub(crate) fn address(&self) -> Result<Address, ConfigError> {
        Address::parse(&self.url, self.heartbeat_s, self.frame_max, self.own_authorities.as_deref())
    }

    /// Returns the waits between attempts to connect.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff { base: self.min_backoff, max: self.max_backoff }
    }
}

impl fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address();
        let url = address.as_ref().map_or("(not an address)", Address::shown);
        f.debug_struct("BrokerConfig").field("url", &url).field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_prints_without_its_password() {
        let config = BrokerConfig::new("amqp://me:s3cret@rabbit/x", "test");
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
