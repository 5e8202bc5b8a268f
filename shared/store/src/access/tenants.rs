//! Tenants: their limits, and whether their keys count.

use job::Tenant;
use serde::Serialize;

use super::log::logged;
use crate::database::{Params, Tx, query, rfc3339};
use crate::{Store, StoreError};

/// What to change about a tenant; `None` leaves a field as it is, and `Some(None)` takes a limit away.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TenantChange {
    /// Its share of the places, beside those of the other tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// How many of its jobs may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<Option<u32>>,
    /// How many of its jobs may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting: Option<Option<u32>>,
    /// How many jobs it may submit per second in the long run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_s: Option<Option<f64>>,
    /// How many jobs it may submit at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Option<u32>>,
}

/// A tenant.
#[derive(Clone, Debug, Serialize)]
pub struct TenantView {
    /// Its name.
    pub tenant: String,
    /// Its share of the places.
    pub weight: i64,
    /// How many of its jobs may run at once.
    pub max_running: Option<i64>,
    /// How many of its jobs may wait.
    pub max_waiting: Option<i64>,
    /// How many jobs it may submit per second in the long run.
    pub rate_per_s: Option<f64>,
    /// How many jobs it may submit at once.
    pub burst: Option<i64>,
    /// Its keys that are valid now, were it not closed.
    pub live_keys: i64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Since when its keys count for nothing; RFC 3339, UTC.
    pub closed_at: Option<String>,
}

/// The answer to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedTenant {
    /// It is changed, and the log says so.
    Done,
    /// It was like this before; nothing was changed.
    Before,
    /// There is no such tenant.
    Unknown,
}

const CREATE: &str = concat!(
    "WITH made AS (
         INSERT INTO harness_tenants (name, weight, max_running, max_waiting, rate_per_s, burst)
         VALUES ($2, coalesce(($3::jsonb ->> 'weight')::bigint, 1), ($3 ->> 'max_running')::bigint,
                 ($3 ->> 'max_waiting')::bigint, ($3 ->> 'rate_per_s')::float8, ($3 ->> 'burst')::bigint)
         ON CONFLICT DO NOTHING
         RETURNING name)",
    logged!("tenant_created", "name", "$3::jsonb", "made")
);

/// `?` asks whether the change has the field, so that a null takes a limit away.
const CHANGE: &str = concat!(
    "WITH made AS (
         UPDATE harness_tenants
            SET weight = CASE WHEN $3::jsonb ? 'weight' THEN ($3 ->> 'weight')::bigint ELSE weight END,
                max_running = CASE WHEN $3 ? 'max_running' THEN ($3 ->> 'max_running')::bigint ELSE max_running END,
                max_waiting = CASE WHEN $3 ? 'max_waiting' THEN ($3 ->> 'max_waiting')::bigint ELSE max_waiting END,
                rate_per_s = CASE WHEN $3 ? 'rate_per_s' THEN ($3 ->> 'rate_per_s')::float8 ELSE rate_per_s END,
                burst = CASE WHEN $3 ? 'burst' THEN ($3 ->> 'burst')::bigint ELSE burst END
          WHERE name = $2
         RETURNING name)",
    logged!("tenant_changed", "name", "$3::jsonb", "made")
);

const CLOSE: &str = concat!(
    "WITH made AS (UPDATE harness_tenants SET closed_at = now() WHERE name = $2 AND closed_at IS NULL RETURNING name)",
    logged!("tenant_closed", "name", "'{}'", "made")
);

const REOPEN: &str = concat!(
    "WITH made AS (UPDATE harness_tenants SET closed_at = NULL WHERE name = $2 AND closed_at IS NOT NULL RETURNING name)",
    logged!("tenant_reopened", "name", "'{}'", "made")
);

const EXISTS: &str = "SELECT FROM harness_tenants WHERE name = $1";

const LIST: &str = concat!(
    "SELECT name, weight::bigint, max_running::bigint, max_waiting::bigint, rate_per_s::float8, burst::bigint,
            (SELECT count(*) FROM harness_api_keys k WHERE k.tenant = t.name AND k.id < '~' AND k.revoked_at IS NULL
                AND (k.expires_at IS NULL OR k.expires_at > now())), ",
    rfc3339!("created_at"),
    ", ",
    rfc3339!("closed_at"),
    " FROM harness_tenants t ORDER BY name"
);

impl Store {
    /// Makes a tenant; false if there is one of that name.
    pub async fn create_tenant(
        &self,
        actor: &str,
        tenant: &Tenant,
        limits: &TenantChange,
    ) -> Result<bool, StoreError> {
        let made = self.act("create_tenant", CREATE, &[&actor, &tenant.as_str(), &json(limits)]).await?;
        Ok(made > 0)
    }

    /// Changes a tenant's limits; false if there is none of that name.
    pub async fn change_tenant(
        &self,
        actor: &str,
        tenant: &Tenant,
        change: &TenantChange,
    ) -> Result<bool, StoreError> {
        let made = self.act("change_tenant", CHANGE, &[&actor, &tenant.as_str(), &json(change)]).await?;
        Ok(made > 0)
    }

    /// Closes a tenant: its keys count for nothing until it is reopened. Its jobs go on.
    pub async fn close_tenant(&self, actor: &str, tenant: &Tenant) -> Result<ChangedTenant, StoreError> {
        let closed = self.act("close_tenant", CLOSE, &[&actor, &tenant.as_str()]).await?;
        self.changed(closed, tenant).await
    }

    /// Lets a closed tenant's keys count again.
    pub async fn reopen_tenant(&self, actor: &str, tenant: &Tenant) -> Result<ChangedTenant, StoreError> {
        let opened = self.act("reopen_tenant", REOPEN, &[&actor, &tenant.as_str()]).await?;
        self.changed(opened, tenant).await
    }

    async fn changed(&self, changed: usize, tenant: &Tenant) -> Result<ChangedTenant, StoreError> {
        if changed > 0 {
            return Ok(ChangedTenant::Done);
        }
        let there = !query(&self.pool, "tenant", EXISTS, &[&tenant.as_str()]).await?.is_empty();
        Ok(if there { ChangedTenant::Before } else { ChangedTenant::Unknown })
    }

    /// Returns all tenants, by name.
    pub async fn tenants(&self) -> Result<Vec<TenantView>, StoreError> {
        let rows = query(&self.pool, "tenants", LIST, &[]).await?;
        let read = |row: &tokio_postgres::Row| TenantView {
            tenant: row.get(0),
            weight: row.get(1),
            max_running: row.get(2),
            max_waiting: row.get(3),
            rate_per_s: row.get(4),
            burst: row.get(5),
            live_keys: row.get(6),
            created_at: row.get(7),
            closed_at: row.get(8),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Runs a statement that makes a change and logs it; returns how many rows it has logged.
    pub(crate) async fn act(
        &self,
        name: &'static str,
        sql: &str,
        params: &Params<'_>,
    ) -> Result<usize, StoreError> {
        let [logged] = Tx::prepare(&self.pool, name, [sql]).await?.run([params]).await?;
        Ok(logged.len())
    }
}

fn json(change: &TenantChange) -> serde_json::Value {
    serde_json::to_value(change).expect("numbers and nulls")
}
