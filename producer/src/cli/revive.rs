//! `producer revive`: prepares a restored ledger for work.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use service::{note, out, unless_stopped};
use store::Store;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::operator::operator;

/// The interval between two looks at heartbeats.
const LOOK: Duration = Duration::from_millis(500);

pub async fn run(mut context: Context) -> anyhow::Result<ExitCode> {
    let ledger = context.checked_ledger().await?;
    wait_for_expired_leases(&ledger.store, &context.stop).await?;
    let revived = ledger.store.revive(&operator()).await.context("reviving the ledger")?;
    out!(
        "{} jobs are due again, {} workers of the backup are marked as gone; workers may start",
        revived.jobs,
        revived.workers
    );
    if let Some(last_call) = &revived.last_call {
        out!(
            "{} model calls were under way and count in full now; what was spent after {last_call} is missing: compare the \
             providers' records, and lower the limits by it (`producer budget set`)",
            revived.calls
        );
    }
    let keys = ledger.store.keys(None, false).await.context("reading keys")?;
    if !keys.is_empty() {
        out!(
            "{} keys are valid; one that was revoked after the backup was taken is valid again, and needs `producer keys revoke`:",
            keys.len()
        );
        keys.iter().for_each(|key| out!("{} of tenant {}, created {}", key.id, key.tenant, key.created_at));
    }
    let webhooks = ledger.store.webhooks(None).await.context("reading webhooks")?;
    let enabled = webhooks.iter().filter(|webhook| webhook.disabled_at.is_none()).count();
    if enabled > 0 {
        out!(
            "{enabled} webhooks are enabled; what was sent after the backup was taken may be sent again. If this is a copy of a \
             ledger, disable them before a relay or an API starts: `producer webhooks disable`"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the leases in the backup have expired. Fails as soon as one is renewed.
async fn wait_for_expired_leases(store: &Store, stop: &CancellationToken) -> anyhow::Result<()> {
    let mut beats = HashMap::new();
    loop {
        let fresh = unless_stopped(stop, store.fresh_leases()).await.context("looking for workers")?;
        if fresh.is_empty() {
            return Ok(());
        }
        if beats.is_empty() {
            note!("waiting until the leases of {} workers in the backup have expired", fresh.len());
        }
        for lease in fresh {
            let before = beats.insert(lease.worker, lease.beat_at_us);
            if before.is_some_and(|beat_at_us| beat_at_us != lease.beat_at_us) {
                bail!(
                    "worker {} on {} is alive: stop every worker first, then revive the ledger",
                    lease.worker,
                    lease.host
                );
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => bail!("stopped before the leases had expired; nothing was changed"),
        }
    }
}
