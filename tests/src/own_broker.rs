//! A RabbitMQ of one's own, to be stopped and started again.

use crate::keeper::Keeper;

/// The broker; it goes with this.
pub struct OwnBroker {
    /// Its address.
    pub url: String,
    keeper: Keeper,
}

impl OwnBroker {
    /// Starts one, which takes some seconds.
    pub async fn start() -> OwnBroker {
        let keeper = Keeper::start(&["AMQP_URL", "RABBITMQ_MANAGEMENT_URL"], &[]).await;
        OwnBroker { url: keeper.url.clone(), keeper }
    }

    /// Stops it in good order: RabbitMQ 3.10 does not always find the messages of a quorum queue again that was declared in
    /// the second before a SIGKILL.
    pub async fn stop(&self) {
        self.keeper.run(&["stop-broker"]).await;
    }

    /// Starts it again, at the same address and with its data.
    pub async fn start_again(&self) {
        self.keeper.run(&["start-broker"]).await;
    }

    /// Whether it has too little disk: it then holds back whoever publishes.
    pub async fn lacks_disk(&self, lacks: bool) {
        let limit = if lacks { "1000000GB" } else { "1MB" };
        self.keeper.run(&["rabbitmqctl", "set_disk_free_limit", limit]).await;
    }
}
