//! Limits: how many jobs with a key may be at work in a pool at a time.

use job::{Name, Tenant};
use serde::Serialize;

use crate::access::logged;
use crate::database::{query, rfc3339};
use crate::{Store, StoreError};

/// A limit.
#[derive(Clone, Debug, Serialize)]
pub struct LimitView {
    /// Whose jobs it is about.
    pub tenant: String,
    /// Their key.
    pub key: String,
    /// How many may be at work in each pool.
    pub max: i64,
    /// Since when; RFC 3339, UTC.
    pub changed_at: String,
}

/// The answer to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedLimit {
    /// It is changed, and the log says so.
    Done,
    /// It was like this before; nothing was changed.
    Before,
    /// There are as many limits as a tenant may have.
    Full,
}

/// Limits of one tenant, at most: all of them are read together.
pub const MOST_LIMITS: i64 = 10_000;
/// The highest limit, which the table checks.
pub const HIGHEST_LIMIT: u32 = 1_000_000;

const SET: &str = concat!(
    "WITH made AS (
         INSERT INTO harness_limits (tenant, key, most)
         SELECT $2, $3, $4
          WHERE (SELECT l.key FROM harness_limits l WHERE l.tenant = $2 AND l.key = $3) IS NOT NULL
             OR (SELECT count(*) FROM harness_limits l WHERE l.tenant = $2) < $5
         ON CONFLICT (tenant, key) DO UPDATE SET most = excluded.most, changed_at = now()
          WHERE harness_limits.most <> excluded.most
         RETURNING tenant, key, most)",
    logged!("limit_set", "tenant", "jsonb_build_object('key', key, 'max', most)", "made")
);

const REMOVE: &str = concat!(
    "WITH made AS (DELETE FROM harness_limits WHERE tenant = $2 AND key = $3 RETURNING tenant, key)",
    logged!("limit_removed", "tenant", "jsonb_build_object('key', key)", "made")
);

const EXISTS: &str = "SELECT FROM harness_limits WHERE tenant = $1 AND key = $2";

const LIST: &str = concat!(
    "SELECT tenant, key, most, ",
    rfc3339!("changed_at"),
    " FROM harness_limits WHERE ($1::text IS NULL OR tenant = $1) ORDER BY tenant, key"
);

impl Store {
    /// Sets how many jobs of a tenant with this key may be at work in each pool. Those that are at work already go on. The
    /// operators' log names the actor.
    pub async fn set_limit(
        &self,
        actor: &str,
        tenant: &Tenant,
        key: &Name,
        most: u32,
    ) -> Result<ChangedLimit, StoreError> {
        let (tenant, key) = (tenant.as_str(), key.as_str());
        let made =
            self.act("set_limit", SET, &[&actor, &tenant, &key, &i64::from(most), &MOST_LIMITS]).await?;
        if made > 0 {
            return Ok(ChangedLimit::Done);
        }
        let there = !query(&self.pool, "limit", EXISTS, &[&tenant, &key]).await?.is_empty();
        Ok(if there { ChangedLimit::Before } else { ChangedLimit::Full })
    }

    /// Takes a limit away; false if there was none. The operators' log names the actor.
    pub async fn remove_limit(&self, actor: &str, tenant: &Tenant, key: &Name) -> Result<bool, StoreError> {
        let made = self.act("remove_limit", REMOVE, &[&actor, &tenant.as_str(), &key.as_str()]).await?;
        Ok(made > 0)
    }

    /// Returns the limits of a tenant, or of all, by tenant and key.
    pub async fn limits(&self, tenant: Option<&Tenant>) -> Result<Vec<LimitView>, StoreError> {
        let rows = query(&self.pool, "limits", LIST, &[&tenant.map(Tenant::as_str)]).await?;
        let read = |row: &tokio_postgres::Row| LimitView {
            tenant: row.get(0),
            key: row.get(1),
            max: row.get(2),
            changed_at: row.get(3),
        };
        Ok(rows.iter().map(read).collect())
    }
}
