//! The operators' log. A trigger numbers and chains its rows; see the migration.

use serde::Serialize;
use serde_json::Value;

use crate::database::{query, rfc3339};
use crate::{Store, StoreError};

/// Appends a row for each row of `$from`, as the last step of a statement that has just made the change. The actor is
/// the statement's `$1`.
macro_rules! logged {
    ($act:literal, $tenant:literal, $detail:literal, $from:literal) => {
        concat!(
            "INSERT INTO harness_audit_log (actor, act, tenant, detail) SELECT $1::text, '",
            $act,
            "', ",
            $tenant,
            ", ",
            $detail,
            " FROM ",
            $from,
            " RETURNING tenant"
        )
    };
}
pub(crate) use logged;

/// A row of the log.
#[derive(Clone, Debug, Serialize)]
pub struct LogRow {
    /// Its number, without gaps.
    pub id: i64,
    /// RFC 3339, UTC.
    pub at: String,
    /// The operator; of a use, the key.
    pub actor: String,
    /// What was done, such as `key_revoked`.
    pub act: String,
    /// The tenant that it concerns.
    pub tenant: Option<String>,
    /// What there is to say about it.
    pub detail: Value,
    /// The hash of this row and of all before it, in hexadecimal digits.
    pub hash: String,
}

const NEWEST: &str = concat!(
    "SELECT id, ",
    rfc3339!("at"),
    ", actor, act, tenant, detail, encode(hash, 'hex')
       FROM harness_audit_log WHERE $2::text IS NULL OR tenant = $2 ORDER BY id DESC LIMIT $1"
);

impl Store {
    /// Returns the newest rows of the operators' log, newest first; only those about a tenant, if one is named.
    pub async fn operators_log(
        &self,
        limit: i64,
        tenant: Option<&job::Tenant>,
    ) -> Result<Vec<LogRow>, StoreError> {
        let tenant = tenant.map(job::Tenant::as_str);
        let rows = query(&self.pool, "operators_log", NEWEST, &[&limit, &tenant]).await?;
        let read = |row: &tokio_postgres::Row| LogRow {
            id: row.get(0),
            at: row.get(1),
            actor: row.get(2),
            act: row.get(3),
            tenant: row.get(4),
            detail: row.get(5),
            hash: row.get(6),
        };
        Ok(rows.iter().map(read).collect())
    }
}
