//! A private RabbitMQ that can be stopped and started again.

use crate::authority::ServerCertificate;
use crate::keeper::Keeper;

/// The broker; it is stopped when this is dropped.
pub struct OwnBroker {
    /// Its address.
    pub url: String,
    keeper: Keeper,
}

impl OwnBroker {
    /// Starts a broker, which takes some seconds.
    pub async fn start() -> OwnBroker {
        OwnBroker::configured("").await
    }

    /// Starts a broker that also listens with TLS, with this certificate. Returns the TLS port too.
    pub async fn with_tls(certificate: &ServerCertificate) -> (OwnBroker, u16) {
        // Another process may take the port meanwhile; then the broker does not start.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|taken| taken.local_addr());
        let port = port.expect("a free port").port();
        let ServerCertificate { authority, chain, key } = certificate;
        let (authority, chain, key) = (authority.display(), chain.display(), key.display());
        let more = format!(
            "listeners.ssl.local = 127.0.0.1:{port}\nssl_options.cacertfile = {authority}\n\
             ssl_options.certfile = {chain}\nssl_options.keyfile = {key}\nssl_options.verify = verify_none"
        );
        (OwnBroker::configured(&more).await, port)
    }

    async fn configured(more: &str) -> OwnBroker {
        let more = [("HARNESS_DEV_BROKER_CONF", more.to_owned())];
        let keeper = Keeper::start(&["AMQP_URL", "RABBITMQ_MANAGEMENT_URL"], &more).await;
        OwnBroker { url: keeper.url.clone(), keeper }
    }

    /// Stops it in good order. After a SIGKILL, RabbitMQ 3.10 sometimes loses the messages of a quorum queue that was
    /// declared in the last second.
    pub async fn stop(&self) {
        self.keeper.run(&["stop-broker"]).await;
    }

    /// Starts it again, at the same address and with its data.
    pub async fn start_again(&self) {
        self.keeper.run(&["start-broker"]).await;
    }

    /// Sets whether its disk is too full; if so, it blocks publishers.
    pub async fn lacks_disk(&self, lacks: bool) {
        let limit = if lacks { "1000000GB" } else { "1MB" };
        self.keeper.run(&["rabbitmqctl", "set_disk_free_limit", limit]).await;
    }
}
