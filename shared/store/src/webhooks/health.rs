//! Whether webhooks get what they wait for, for an operator who looks.

use std::time::Duration;

use super::WebhookBacklog;
use crate::database::query;
use crate::{Store, StoreError};

/// What an operator should know about webhooks.
#[derive(Clone, Copy, Debug)]
pub struct WebhookHealth {
    /// Those that are enabled.
    pub enabled: i64,
    /// Those that are disabled because their attempts had failed, or because they are gone.
    pub given_up: i64,
    /// What waits.
    pub backlog: WebhookBacklog,
    /// Whether a process leads that sends.
    pub is_led: bool,
}

impl WebhookHealth {
    /// Whether deliveries have been due for so long although no process sends.
    pub fn is_stuck(&self, due_for: Duration) -> bool {
        !self.is_led && self.backlog.pending > 0 && self.backlog.lag >= due_for
    }
}

const HEALTH: &str = "
    SELECT (SELECT count(*) FROM harness_webhooks WHERE disabled_at IS NULL),
           (SELECT count(*) FROM harness_webhooks WHERE disabled_by IN ('failing', 'gone')),
           EXISTS (SELECT FROM harness_leases WHERE name = $1 AND expires_at > clock_timestamp())";

impl Store {
    /// Reads how webhooks fare, where the process that sends leads under this name.
    pub async fn webhook_health(&self, lease: &str) -> Result<WebhookHealth, StoreError> {
        let backlog = self.webhook_backlog().await?;
        let rows = query(&self.pool, "webhook_health", HEALTH, &[&lease]).await?;
        let row = rows.first().expect("one row");
        Ok(WebhookHealth { enabled: row.get(0), given_up: row.get(1), is_led: row.get(2), backlog })
    }
}
