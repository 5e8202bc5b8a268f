//! The keys of providers: which are shut, and what answers say of their limits.
//!
//! Each is a statement of its own, beside the settlement of the call that has learnt it: it must lock no row that a
//! reservation locks while it waits for a call's row.

use std::time::Duration;

use crate::database::{millis, query};
use crate::{Store, StoreError};

/// Why a provider takes no call with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutFor {
    /// A rate limit is reached.
    RateLimit,
    /// The provider has too much to do.
    Overloaded,
    /// The account has no credit left.
    Quota,
}

impl ShutFor {
    /// Returns its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            ShutFor::RateLimit => "rate_limit",
            ShutFor::Overloaded => "overloaded",
            ShutFor::Quota => "quota",
        }
    }
}

/// A key that is shut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutKey {
    /// provider:hash.
    pub key: String,
    /// Why: rate_limit, overloaded or quota.
    pub why: String,
    /// For how long it stays shut.
    pub remaining: Duration,
}

/// The last end counts: calls that were sent together may be refused with different ones.
const SHUT: &str = "
    INSERT INTO harness_provider_keys AS k (key, shut_until, shut_for)
    VALUES ($1, now() + $2 * interval '1 millisecond', $3)
    ON CONFLICT (key) DO UPDATE
       SET shut_until = excluded.shut_until, shut_for = excluded.shut_for,
           shut_at = CASE WHEN k.shut_until > now() THEN k.shut_at ELSE now() END
     WHERE excluded.shut_until > k.shut_until";

/// A limit that has not changed is written once an hour, so that upkeep knows that it is still reported.
const LEARN: &str = "
    INSERT INTO harness_provider_rates AS r (account, learnt, learnt_at)
    SELECT account, learnt, now() FROM unnest($1::text[], $2::bigint[]) AS t(account, learnt)
     ORDER BY account COLLATE \"C\"
    ON CONFLICT (account) DO UPDATE SET learnt = excluded.learnt, learnt_at = now()
     WHERE r.learnt IS DISTINCT FROM excluded.learnt OR r.learnt_at < now() - interval '1 hour'";

const SHUT_KEYS: &str = "
    SELECT key, shut_for, extract(epoch FROM shut_until - now())::float8 FROM harness_provider_keys
     WHERE shut_until > now() ORDER BY key LIMIT 1000";

/// Limits that were not reported for a day, accounts that were not folded for as long (they are opened again when they are
/// needed, and find their moves), and what no longer counts.
const FORGET_RATES: [&str; 3] = [
    "DELETE FROM harness_provider_moves WHERE counts_until < now() - interval '1 minute'",
    "DELETE FROM harness_provider_rates WHERE greatest(changed_at, learnt_at) < now() - interval '1 day'",
    "DELETE FROM harness_provider_keys WHERE shut_until < now() - interval '1 day'",
];

impl Store {
    /// Grants no call with this key for this long.
    pub async fn shut_key(&self, key: &str, duration: Duration, why: ShutFor) -> Result<(), StoreError> {
        query(&self.pool, "shut_key", SHUT, &[&key, &millis(duration), &why.as_str()]).await?;
        Ok(())
    }

    /// Records the limits that an answer has reported, by their accounts.
    pub async fn learn_rates(&self, limits: &[(String, u64)]) -> Result<(), StoreError> {
        let accounts: Vec<&str> = limits.iter().map(|(account, _)| account.as_str()).collect();
        let learnt: Vec<i64> =
            limits.iter().map(|(_, limit)| i64::try_from(*limit).unwrap_or(i64::MAX)).collect();
        query(&self.pool, "learn_rates", LEARN, &[&accounts, &learnt]).await?;
        Ok(())
    }

    /// Returns the keys that are shut now.
    pub async fn shut_keys(&self) -> Result<Vec<ShutKey>, StoreError> {
        let rows = query(&self.pool, "shut_keys", SHUT_KEYS, &[]).await?;
        let shut = |row: &tokio_postgres::Row| ShutKey {
            key: row.get(0),
            why: row.get(1),
            remaining: Duration::from_secs_f64(row.get::<_, f64>(2).max(0.0)),
        };
        Ok(rows.iter().map(shut).collect())
    }

    /// Deletes what no longer counts.
    pub async fn forget_rates(&self) -> Result<(), StoreError> {
        for (name, sql) in ["forget_rate_moves", "forget_rates", "forget_keys"].into_iter().zip(FORGET_RATES)
        {
            query(&self.pool, name, sql, &[]).await?;
        }
        Ok(())
    }
}
