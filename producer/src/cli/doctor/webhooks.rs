//! The check of `producer doctor` on webhooks.

use std::time::Duration;

use store::{Store, WebhookHealth};

use super::{Checklist, chain};
use crate::webhooks::LEASE_NAME;

/// Another process that sends takes over within 10 s.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// A delivery is late when it has been due for so long.
const LATE_AFTER: Duration = Duration::from_secs(15 * 60);

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    match store.webhook_health(LEASE_NAME).await {
        Ok(health) if health.enabled + health.given_up == 0 => {}
        Ok(health) => _ = list.report("webhooks", fare(&health)),
        Err(error) => _ = list.report("webhooks", Err(chain(error))),
    }
}

/// A webhook that does not answer is its tenant's concern, so it is shown, and nothing is missing. Without a process that
/// sends, no webhook gets anything.
fn fare(health: &WebhookHealth) -> Result<String, String> {
    let (waiting, lag_s) = (health.backlog.pending, health.backlog.lag.as_secs());
    if health.is_stuck(STUCK_AFTER) {
        return Err(format!(
            "{waiting} ends wait for webhooks, for up to {lag_s} s, and no process sends: start `producer serve` or \
             `producer relay`"
        ));
    }
    let mut said = format!("{} enabled, {waiting} ends wait", health.enabled);
    if health.backlog.lag >= LATE_AFTER {
        said += &format!(", the oldest for {lag_s} s: `producer webhooks list` shows which fail");
    }
    if health.given_up > 0 {
        let given_up = health.given_up;
        said += &format!(
            "; {given_up} disabled because all attempts failed: `producer webhooks list` shows them"
        );
    }
    Ok(said)
}
