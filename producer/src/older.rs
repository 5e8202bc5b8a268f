//! What a fleet of mixed releases must not begin yet.

use anyhow::{Context, bail};
use store::Store;

/// Refuses work of tenants while a worker may run that knows none: it would fail their jobs.
pub async fn refuse_beside_older_workers(store: &Store) -> anyhow::Result<()> {
    let Some(older) = store.older_worker().await.context("looking for workers of older releases")? else {
        return Ok(());
    };
    bail!(
        "a worker on {}, pool {}, is of an older release, which would fail the jobs of a tenant: upgrade all workers \
         first (one that is gone counts until a worker or a relay has declared it dead)",
        older.host,
        older.pool
    )
}
