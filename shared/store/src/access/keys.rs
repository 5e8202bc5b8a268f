//! Keys: made, looked up, revoked, and how often they were used.

use std::time::Duration;

use job::Tenant;
use serde::Serialize;
use serde_json::json;

use super::log::logged;
use super::scope::Scopes;
use crate::database::{Params, millis, query, query_within, read_millis, rfc3339};
use crate::{Store, StoreError};

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its public id.
    pub id: String,
    /// The SHA-256 of its secret.
    pub secret_sha256: [u8; 32],
    /// Whose it is.
    pub tenant: Tenant,
    /// What it allows; at least one scope.
    pub scopes: Scopes,
    /// What it is for.
    pub label: String,
    /// For how long it is valid; `None` is until it is revoked.
    pub valid_for: Option<Duration>,
}

/// A key, as people look at it.
#[derive(Clone, Debug, Serialize)]
pub struct KeyView {
    /// Its public id.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// What it allows.
    pub scopes: Scopes,
    /// What it is for.
    pub label: String,
    /// Whether it is valid now: neither revoked nor expired, and its tenant is open.
    pub live: bool,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub expires_at: Option<String>,
    /// RFC 3339, UTC.
    pub revoked_at: Option<String>,
    /// The minute of its last use; RFC 3339, UTC.
    pub last_used_at: Option<String>,
}

/// What there is to know about a key that a caller has shown.
#[derive(Clone, Debug)]
pub struct FoundKey {
    /// The SHA-256 of its secret.
    pub secret_sha256: [u8; 32],
    /// Whose it is.
    pub tenant: Tenant,
    /// What it allows.
    pub scopes: Scopes,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Whether its tenant is closed, or not there.
    pub closed: bool,
    /// For how much longer it is valid, by Postgres's clock; zero is no longer, `None` is without end.
    pub valid_for: Option<Duration>,
}

/// The answer to a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokedKey {
    /// It is revoked now.
    Now,
    /// It was revoked before.
    Before,
    /// There is no such key.
    Unknown,
}

/// How often a key was used since the last time that this was noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub key_id: String,
    /// How many requests.
    pub uses: u64,
}

/// The tenant's row is locked, so that it is not closed in between.
const CREATE: &str = concat!(
    "WITH tenant AS (
         SELECT name FROM harness_tenants WHERE name = $2 AND closed_at IS NULL FOR SHARE
     ), made AS (
         INSERT INTO harness_api_keys (id, tenant, secret_sha256, scopes, label, expires_at)
         SELECT $3::text, name, $4::bytea, $5::text[], $6::text, now() + $7::float8 * interval '1 millisecond' FROM tenant
         RETURNING tenant)",
    logged!("key_created", "tenant", "$8::jsonb", "made")
);

const REVOKE: &str = concat!(
    "WITH made AS (
         UPDATE harness_api_keys SET revoked_at = now() WHERE id = $2 AND revoked_at IS NULL RETURNING tenant, id)",
    logged!("key_revoked", "tenant", "jsonb_build_object('key', id)", "made")
);

const FIND: &str = "
    SELECT k.secret_sha256, k.tenant, k.scopes, k.revoked_at IS NOT NULL,
           t.name IS NULL OR t.closed_at IS NOT NULL,
           (extract(epoch FROM k.expires_at - clock_timestamp()) * 1000)::bigint
      FROM harness_api_keys k LEFT JOIN harness_tenants t ON t.name = k.tenant
     WHERE k.id = $1";

/// Whether `k` is a key that is valid now.
macro_rules! live {
    () => {
        "(k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
          AND EXISTS (SELECT FROM harness_tenants t WHERE t.name = k.tenant AND t.closed_at IS NULL))"
    };
}

pub(super) use live;

/// Tickets are no keys that people look at.
const LIST: &str = concat!(
    "SELECT id, tenant, scopes, label, ",
    live!(),
    ", ",
    rfc3339!("created_at"),
    ", ",
    rfc3339!("expires_at"),
    ", ",
    rfc3339!("revoked_at"),
    ", ",
    rfc3339!("last_used_at"),
    " FROM harness_api_keys k WHERE ($1::text IS NULL OR tenant = $1) AND ($2 OR ",
    live!(),
    ") AND id < '~' ORDER BY tenant, created_at, id"
);

const AMONG: &str = concat!("SELECT k.id FROM harness_api_keys k WHERE k.id = ANY($1::text[]) AND ", live!());

/// One row of the log for each key. Rows of keys are locked in order, because another process may note the same ones.
const NOTE_USES: &str = concat!(
    "WITH used AS (
         SELECT k.id, k.tenant, u.uses
           FROM harness_api_keys k JOIN unnest($2::text[], $3::bigint[]) AS u(id, uses) ON u.id = k.id
          ORDER BY k.id FOR NO KEY UPDATE OF k
     ), noted AS (
         UPDATE harness_api_keys k SET last_used_at = date_trunc('minute', now())
           FROM used u WHERE k.id = u.id
         RETURNING k.id, k.tenant, u.uses)",
    logged!("key_used", "tenant", "jsonb_build_object('key', id, 'uses', uses)", "noted")
);

/// The time limit for looking up a key: a caller waits for it.
const FIND_BOUND: Duration = Duration::from_secs(2);

impl Store {
    /// Makes a key; false if its tenant is not there or closed.
    pub async fn create_key(&self, actor: &str, key: &NewKey) -> Result<bool, StoreError> {
        let valid_ms = key.valid_for.map(millis);
        let scopes = key.scopes.names();
        let detail = json!({
            "key": key.id,
            "scopes": key.scopes,
            "label": key.label,
            "valid_for_s": key.valid_for.map(|valid| valid.as_secs()),
        });
        let secret = &key.secret_sha256[..];
        let tenant = key.tenant.as_str();
        let params: &Params<'_> =
            &[&actor, &tenant, &key.id, &secret, &scopes, &key.label, &valid_ms, &detail];
        Ok(self.act("create_key", CREATE, params).await? > 0)
    }

    /// Revokes a key. A process that has looked it up a moment before may accept it for a little longer.
    pub async fn revoke_key(&self, actor: &str, id: &str) -> Result<RevokedKey, StoreError> {
        if self.act("revoke_key", REVOKE, &[&actor, &id]).await? > 0 {
            return Ok(RevokedKey::Now);
        }
        let there = query(&self.pool, "find_key", FIND, &[&id]).await?;
        Ok(if there.is_empty() { RevokedKey::Unknown } else { RevokedKey::Before })
    }

    /// Looks a key up by its public id.
    pub async fn find_key(&self, id: &str) -> Result<Option<FoundKey>, StoreError> {
        let rows = query_within(FIND_BOUND, &self.pool, "find_key", FIND, &[&id]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let secret: &[u8] = row.get(0);
        // The name is checked where a tenant is made. An edited one that is no name has no keys.
        let Ok(tenant) = row.get::<_, String>(1).try_into() else { return Ok(None) };
        Ok(Some(FoundKey {
            secret_sha256: secret.try_into().expect("the table checks its length"),
            tenant,
            scopes: Scopes::read(&row.get::<_, Vec<String>>(2)),
            revoked: row.get(3),
            closed: row.get(4),
            valid_for: read_millis(row, 5),
        }))
    }

    /// Returns those of these keys that are valid now.
    pub async fn live_keys(&self, ids: &[String]) -> Result<Vec<String>, StoreError> {
        let rows = query_within(FIND_BOUND, &self.pool, "live_keys", AMONG, &[&ids]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Returns keys by tenant and age: those that are valid now, or all of them.
    pub async fn keys(&self, tenant: Option<&Tenant>, all: bool) -> Result<Vec<KeyView>, StoreError> {
        let tenant = tenant.map(Tenant::as_str);
        let rows = query(&self.pool, "keys", LIST, &[&tenant, &all]).await?;
        let read = |row: &tokio_postgres::Row| KeyView {
            id: row.get(0),
            tenant: row.get(1),
            scopes: Scopes::read(&row.get::<_, Vec<String>>(2)),
            label: row.get(3),
            live: row.get(4),
            created_at: row.get(5),
            expires_at: row.get(6),
            revoked_at: row.get(7),
            last_used_at: row.get(8),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Writes into the operators' log how often keys were used, one row per key. `actor` is the process that saw it.
    /// Not safe to repeat after a lost reply: the uses would be counted twice.
    pub async fn note_key_uses(&self, actor: &str, uses: &[KeyUse]) -> Result<(), StoreError> {
        let ids: Vec<&str> = uses.iter().map(|used| used.key_id.as_str()).collect();
        let counts: Vec<i64> = uses.iter().map(|used| i64::try_from(used.uses).unwrap_or(i64::MAX)).collect();
        self.act("note_key_uses", NOTE_USES, &[&actor, &ids, &counts]).await?;
        Ok(())
    }
}
