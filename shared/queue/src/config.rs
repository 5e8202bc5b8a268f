//! Settings of a connection, and their defaults. Reads no environment; says what is wrong with an address.

use std::fmt;
use std::time::Duration;

use job::Backoff;

use crate::ConfigError;
use crate::address::Address;

/// Where the broker is, and how patient we are with it.
#[derive(Clone)]
pub struct BrokerConfig {
    /// `AMQP_URL`.
    pub url: String,
    /// Authorities to trust beside the system's, as PEM; `cacertfile` in the URL names others.
    pub own_authorities: Option<String>,
    /// The connection's name in the management UI.
    pub name: String,
    /// The pools whose queues are declared at every connect; more can follow by [`crate::Broker::declare_pool`].
    pub pools: Vec<job::Name>,
    /// Whether exchanges and queues are declared at every connect. Default true. Without it nothing but access to the
    /// vhost is needed to look at queues.
    pub declares: bool,
    /// Bound of one attempt to connect, DNS and TLS included. Default 10 s.
    pub connect_timeout: Duration,
    /// Bound of every question to the broker (declare, consume, cancel). Default 30 s.
    pub operation_timeout: Duration,
    /// Bound of one publish, waiting for a connection included. Default 30 s.
    pub confirm_timeout: Duration,
    /// Bound of an orderly close. Default 5 s.
    pub close_timeout: Duration,
    /// Unless the URL says otherwise. A silent peer is noticed after twice this, and what it was sent goes to others:
    /// about as soon as its lease (10 s) has run out. Default 5 s.
    pub heartbeat_s: u16,
    /// The largest frame, in bytes, unless the URL says otherwise or the broker proposes less. lapin keeps 64 such
    /// frames of memory for a connection. Default 128 KiB, which is RabbitMQ's own.
    pub frame_max: u32,
    /// Messages published and not yet confirmed. Default 4096.
    pub max_in_flight: usize,
    /// Their bodies together, in bytes. Default 64 MiB.
    pub max_in_flight_bytes: usize,
    /// Ceiling of the first wait between attempts to connect. Default 250 ms.
    pub min_backoff: Duration,
    /// Ceiling of every wait. Default 3 s, so that consuming goes on within 5 s of the broker's return.
    pub max_backoff: Duration,
}

impl BrokerConfig {
    /// Defaults for all but the address and the name.
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

    /// The same with queues to declare.
    pub fn with_pools(mut self, pools: impl IntoIterator<Item = job::Name>) -> BrokerConfig {
        self.pools.extend(pools);
        self
    }

    /// The same with authorities (PEM) to trust beside the system's.
    pub fn trusting(self, own_authorities: Option<&str>) -> BrokerConfig {
        BrokerConfig { own_authorities: own_authorities.map(str::to_owned), ..self }
    }

    /// The same for somebody who only looks: with a user who may do no more, and with small frames, 1 MiB for all.
    pub fn only_looking(self) -> BrokerConfig {
        BrokerConfig { declares: false, frame_max: 16 * 1024, ..self }
    }

    /// Checks the address; the error names `AMQP_URL` and never holds the password.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.address().map(drop)
    }

    /// The vhost that the address names.
    pub fn vhost(&self) -> Result<String, ConfigError> {
        self.address().map(|address| address.uri().vhost)
    }

    pub(crate) fn address(&self) -> Result<Address, ConfigError> {
        Address::parse(&self.url, self.heartbeat_s, self.frame_max, self.own_authorities.as_deref())
    }

    /// The waits between attempts to connect.
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
