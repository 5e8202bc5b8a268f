//! What `producer doctor` asks about keys and about the operators' log.

use std::time::Duration;

use super::keys::live;
use super::log::log_hash;
use crate::database::{Params, millis, query, read_millis};
use crate::{Store, StoreError};

/// Keys and the log, as an operator would want to know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessHealth {
    /// Keys that were ever made.
    pub keys: i64,
    /// Those that are valid now.
    pub live: i64,
    /// The tenants that have them.
    pub tenants: i64,
    /// Those of them with the scope `admin`.
    pub admins: i64,
    /// Keys that are valid and soon are no longer, the first of them.
    pub ending: Vec<EndingKey>,
    /// Rows of the log that were looked at, the newest.
    pub rows: i64,
    /// The first of these rows that does not fit: it was changed, or the one before it was taken out.
    pub broken_row: Option<i64>,
    /// Guards of the log that are not there or disabled.
    pub missing_guards: Vec<String>,
}

/// A key that ends soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndingKey {
    /// Its public id.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// For how much longer it is valid.
    pub ends_in: Duration,
}

/// How many ending keys are named, and how many rows of the log are looked at. `producer audit` looks at all rows.
const NAMED: i64 = 3;
const ROWS: i64 = 1_000;

/// Tickets are no keys that people look at.
const COUNT: &str = concat!(
    "SELECT count(*), count(*) FILTER (WHERE live), count(DISTINCT tenant) FILTER (WHERE live),
            count(*) FILTER (WHERE live AND 'admin' = ANY(scopes))
       FROM (SELECT tenant, scopes, ",
    live!(),
    " AS live FROM harness_api_keys k WHERE id < '~') keys"
);

const ENDING: &str = concat!(
    "SELECT id, tenant, (extract(epoch FROM expires_at - now()) * 1000)::bigint FROM harness_api_keys k
      WHERE id < '~' AND expires_at < now() + $1::float8 * interval '1 millisecond' AND ",
    live!(),
    " ORDER BY expires_at, id LIMIT $2"
);

const CHAIN: &str = concat!(
    "SELECT count(*), min(id) FILTER (WHERE hash IS DISTINCT FROM own
                                 OR (before_id IS NOT NULL AND (id <> before_id + 1 OR prev_hash IS DISTINCT FROM before_hash)))
       FROM (SELECT id, hash, prev_hash, lag(id) OVER chain AS before_id, lag(hash) OVER chain AS before_hash, ",
    log_hash!(),
    " AS own
               FROM (SELECT * FROM harness_audit_log ORDER BY id DESC LIMIT $1) newest
             WINDOW chain AS (ORDER BY id)) l"
);

const GUARDS: &str = "
    SELECT wanted.name FROM (VALUES ('harness_audit_log_append'), ('harness_audit_log_keep')) wanted(name)
     WHERE NOT EXISTS (SELECT FROM pg_trigger t
                        WHERE t.tgrelid = to_regclass('harness_audit_log') AND t.tgname = wanted.name
                          AND t.tgenabled IN ('O', 'A'))";

impl Store {
    /// Returns what there is to know about keys, those among them that end within this time, and the log.
    pub async fn access_health(&self, soon: Duration) -> Result<AccessHealth, StoreError> {
        let ask = async |name, sql, params: &Params<'_>| query(&self.pool, name, sql, params).await;
        let keys = ask("count_keys", COUNT, &[]).await?;
        let ending = ask("ending_keys", ENDING, &[&millis(soon), &NAMED]).await?;
        let chain = ask("newest_of_log", CHAIN, &[&ROWS]).await?;
        let guards = ask("log_guards", GUARDS, &[]).await?;
        let (keys, chain) = (keys.first().expect("one row"), chain.first().expect("one row"));
        let ends = |row: &tokio_postgres::Row| EndingKey {
            id: row.get(0),
            tenant: row.get(1),
            ends_in: read_millis(row, 2).unwrap_or_default(),
        };
        Ok(AccessHealth {
            keys: keys.get(0),
            live: keys.get(1),
            tenants: keys.get(2),
            admins: keys.get(3),
            ending: ending.iter().map(ends).collect(),
            rows: chain.get(0),
            broken_row: chain.get(1),
            missing_guards: guards.iter().map(|row| row.get(0)).collect(),
        })
    }
}
