//! Tickets: keys of one use, for one stream, that live for a minute. A browser that follows a job can send no header.
//!
//! A ticket is a row beside the keys, because any door must be able to take it, and only one of them, once. A signed
//! ticket would need no row, but no door would know what another one has taken. A ticket's id begins with `~`, which no
//! key's id has, and then has the time, so that those that are over are found by the primary key. Its label names the
//! key for which it was made, and the stream.

use std::time::Duration;

use super::keys::live;
use super::scope::{Principal, Scopes};
use crate::database::{millis, query_within};
use crate::{Store, StoreError};

/// A ticket to be made.
#[derive(Clone, Debug)]
pub struct NewTicket {
    /// Its public id, from [`NewTicket::id`].
    pub id: String,
    /// The SHA-256 of its secret.
    pub secret_sha256: [u8; 32],
    /// On whose behalf.
    pub principal: Principal,
    /// What its holder may do with the stream.
    pub scopes: Scopes,
    /// The stream: a path without spaces.
    pub stream: String,
    /// For how long it is valid.
    pub valid_for: Duration,
}

/// Stands for a caller without a key.
const NO_KEY: &str = "-";

const CREATE: &str = "
    WITH gone AS (
        DELETE FROM harness_api_keys WHERE id = ANY(ARRAY(
               SELECT id FROM harness_api_keys WHERE id >= '~' AND id < $1::text AND expires_at < now()
                ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED))
    )
    INSERT INTO harness_api_keys (id, tenant, secret_sha256, scopes, label, expires_at)
    VALUES ($1::text, $2::text, $3::bytea, $4::text[], $5::text, now() + $6::float8 * interval '1 millisecond')";

/// The row is deleted by one caller alone.
const TAKE: &str = concat!(
    "
    WITH taken AS (
        DELETE FROM harness_api_keys
         WHERE id = $1 AND id >= '~' AND secret_sha256 = $2::bytea AND split_part(label, ' ', 2) = $3
           AND expires_at > clock_timestamp()
        RETURNING tenant, scopes, split_part(label, ' ', 1) AS key_id
    )
    SELECT tenant, scopes, nullif(key_id, '-') FROM taken
     WHERE EXISTS (SELECT FROM harness_tenants t WHERE t.name = taken.tenant AND t.closed_at IS NULL)
       AND (key_id = '-' OR EXISTS (SELECT FROM harness_api_keys k WHERE k.id = key_id AND ",
    live!(),
    "))"
);

/// The time limit: a caller waits for it.
const BOUND: Duration = Duration::from_secs(2);

impl NewTicket {
    /// Returns an id with this time, in milliseconds of the Unix epoch, and random characters.
    pub fn id(unix_ms: u64, random: &str) -> String {
        format!("~{unix_ms:012x}{random}")
    }
}

impl Store {
    /// Makes a ticket, and removes some that are over.
    pub async fn create_ticket(&self, ticket: &NewTicket) -> Result<(), StoreError> {
        let NewTicket { id, secret_sha256, principal, scopes, stream, valid_for } = ticket;
        let key = if principal.key_id.is_empty() { NO_KEY } else { &principal.key_id };
        let (label, secret) = (format!("{key} {stream}"), &secret_sha256[..]);
        let (tenant, scopes, valid_ms) = (principal.tenant.as_str(), scopes.names(), millis(*valid_for));
        let params: &crate::database::Params<'_> = &[id, &tenant, &secret, &scopes, &label, &valid_ms];
        query_within(BOUND, &self.pool, "create_ticket", CREATE, params).await?;
        Ok(())
    }

    /// Takes a ticket for this stream: whom it stands for. `None` if there is no such ticket, or no longer, or its key or
    /// its tenant does not count any more. After a lost reply it is gone.
    pub async fn take_ticket(
        &self,
        id: &str,
        secret_sha256: &[u8; 32],
        stream: &str,
    ) -> Result<Option<Principal>, StoreError> {
        let rows = query_within(BOUND, &self.pool, "take_ticket", TAKE, &[&id, &&secret_sha256[..], &stream])
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let Ok(tenant) = row.get::<_, String>(0).try_into() else { return Ok(None) };
        let scopes = Scopes::read(&row.get::<_, Vec<String>>(1));
        Ok(Some(Principal { tenant, scopes, key_id: row.get::<_, Option<String>>(2).unwrap_or_default() }))
    }
}
