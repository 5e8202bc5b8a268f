//! What a fleet of mixed releases must not begin yet.

use anyhow::{Context, bail};
use store::{OlderWorker, Store};

/// The first schema whose workers know tenants, and say so.
const KNOWS_TENANTS: i64 = 11;
/// The first schema whose workers write deliveries with the ends of jobs.
const KNOWS_WEBHOOKS: i64 = 14;
/// The first schema whose workers fire schedules when they lead.
const KNOWS_SCHEDULES: i64 = 30;
/// The first schema whose workers know lines, and admit when they lead.
const KNOWS_LINES: i64 = 31;

/// Refuses work of tenants while a worker may run that knows none: it would fail their jobs.
pub async fn refuse_beside_older_workers(store: &Store) -> anyhow::Result<()> {
    match older_than(store, KNOWS_TENANTS).await? {
        Some(older) => bail!(said(&older, "would fail the jobs of a tenant")),
        None => Ok(()),
    }
}

/// Returns a worker that ends jobs without deliveries, if there is one: a webhook beside it would miss ends.
pub async fn without_deliveries(store: &Store) -> anyhow::Result<Option<OlderWorker>> {
    older_than(store, KNOWS_WEBHOOKS).await
}

/// Returns a worker that fires no schedules when it leads, if there is one.
pub async fn without_schedules(store: &Store) -> anyhow::Result<Option<OlderWorker>> {
    older_than(store, KNOWS_SCHEDULES).await
}

/// Returns a worker that knows no lines, if there is one: an autoscaler of its release would see no demand in one.
pub async fn without_lines(store: &Store) -> anyhow::Result<Option<OlderWorker>> {
    older_than(store, KNOWS_LINES).await
}

/// Says for operators which worker has to be upgraded, and why.
pub fn said(older: &OlderWorker, does: &str) -> String {
    format!(
        "a worker on {}, pool {}, is of an older release, which {does}: upgrade all workers first (one that is gone \
         counts until a worker or a relay has declared it dead)",
        older.host, older.pool
    )
}

async fn older_than(store: &Store, schema: i64) -> anyhow::Result<Option<OlderWorker>> {
    store.older_worker(schema).await.context("looking for workers of older releases")
}
