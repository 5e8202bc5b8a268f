//! What was spent, for people.

use std::time::{SystemTime, UNIX_EPOCH};

use job::Tenant;
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::database::{query, rfc3339};
use crate::{Store, StoreError};

/// What a sum is taken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpendBy {
    /// The day of the reservation.
    Day,
    /// The agent.
    Agent,
    /// The user.
    User,
    /// The tenant.
    Tenant,
    /// The model that the request named.
    Model,
    /// The job; empty for calls that retention has removed.
    Job,
}

impl SpendBy {
    fn column(self) -> &'static str {
        match self {
            SpendBy::Day => "to_char(day, 'YYYY-MM-DD')",
            SpendBy::Agent => "agent_id",
            SpendBy::User => "user_id",
            SpendBy::Tenant => "tenant",
            SpendBy::Model => "model",
            SpendBy::Job => "job_id",
        }
    }
}

/// A sum of calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpendRow {
    /// What it was taken by, in the order that was asked for.
    pub of: Vec<String>,
    /// Calls that were reserved.
    pub calls: i64,
    /// What they cost; what is not known counts in full.
    pub cost_microusd: i64,
    /// The part of the cost that is not known.
    pub unknown_microusd: i64,
    /// What is held for calls under way.
    pub held_microusd: i64,
    /// Input that no cache had.
    pub input_tokens: i64,
    /// Input from a cache.
    pub cache_read_tokens: i64,
    /// Input that was written into a cache.
    pub cache_write_tokens: i64,
    /// Output.
    pub output_tokens: i64,
}

/// A call that counts in full, because its cost is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnknownCall {
    /// Its id.
    pub call_id: Uuid,
    /// Its job.
    pub job_id: Uuid,
    /// The job's agent.
    pub agent_id: String,
    /// Who bills it.
    pub provider: String,
    /// The model that the request named.
    pub model: String,
    /// The id by which the provider finds it, if it came.
    pub provider_request_id: Option<String>,
    /// What counts.
    pub cost_microusd: i64,
    /// When it was reserved: RFC 3339, UTC.
    pub reserved_at: String,
    /// Why its cost is not known.
    pub reason: Option<String>,
}

const UNKNOWN: &str = concat!(
    "SELECT call_id, job_id, agent_id, provider, model, provider_request_id, cost_microusd, ",
    rfc3339!("reserved_at"),
    ", reason FROM harness_calls WHERE state = 'unknown' ORDER BY call_id LIMIT $1"
);

impl Store {
    /// Sums up the calls of the last days, today's among them: those in the ledger, and the daily sums of those that
    /// retention has removed.
    pub async fn spend(&self, by: &[SpendBy], days: u32) -> Result<Vec<SpendRow>, StoreError> {
        self.sum_up(by, days, None, i64::MAX).await
    }

    /// As [`Store::spend`], of one tenant's calls alone, and at most so many sums.
    pub async fn spend_of(
        &self,
        tenant: &Tenant,
        by: &[SpendBy],
        days: u32,
        most: u32,
    ) -> Result<Vec<SpendRow>, StoreError> {
        self.sum_up(by, days, Some(tenant.as_str()), i64::from(most)).await
    }

    async fn sum_up(
        &self,
        by: &[SpendBy],
        days: u32,
        tenant: Option<&str>,
        most: i64,
    ) -> Result<Vec<SpendRow>, StoreError> {
        let columns: Vec<&str> = by.iter().map(|by| by.column()).collect();
        let (of, group) = match columns.as_slice() {
            [] => ("ARRAY[]::text[]".to_owned(), String::new()),
            columns => (format!("ARRAY[{}]", columns.join(", ")), format!("GROUP BY {}", columns.join(", "))),
        };
        // Only the tenant's own are looked at. They are compared as pairs, because the index on (tenant, call_id) alone
        // serves that.
        let (calls, of_tenant) = match tenant {
            Some(_) => ("(tenant, call_id) >= ($4, $2) AND tenant <= $4", "AND tenant = $4"),
            None => ("call_id >= $2", ""),
        };
        let sums = ["calls", "cost", "unknown", "held", "input", "cache_read", "cache_write", "output"];
        let sums =
            sums.map(|sum| format!("least(coalesce(sum({sum}), 0), 9223372036854775807)::bigint")).join(", ");
        let sql = format!(
            "SELECT {of}, {sums}
               FROM (SELECT day, tenant, agent_id, coalesce(user_id, '') AS user_id, model, job_id::text AS job_id,
                            1 AS calls, cost_microusd AS cost,
                            CASE WHEN state = 'unknown' THEN cost_microusd ELSE 0 END AS unknown,
                            CASE WHEN state = 'held' THEN reserved_microusd ELSE 0 END AS held,
                            input_tokens AS input, cache_read_tokens AS cache_read,
                            cache_write_tokens AS cache_write, output_tokens AS output
                       FROM harness_calls WHERE {calls}
                     UNION ALL
                     SELECT day, tenant, agent_id, user_id, model, '', calls, cost_microusd, unknown_microusd, 0,
                            input_tokens, cache_read_tokens, cache_write_tokens, output_tokens
                       FROM harness_spend WHERE true {of_tenant}) s
              WHERE day > (SELECT (now() AT TIME ZONE zone)::date FROM harness_spend_zone) - $1::int
              {group} ORDER BY 1 LIMIT $3"
        );
        let (since, days) = (oldest_call(days), i32::try_from(days).unwrap_or(i32::MAX));
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&days, &since, &most];
        if let Some(tenant) = &tenant {
            params.push(tenant);
        }
        let rows = query(&self.pool, "spend", &sql, &params).await?;
        let read = |row: &Row| SpendRow {
            of: row.get(0),
            calls: row.get(1),
            cost_microusd: row.get(2),
            unknown_microusd: row.get(3),
            held_microusd: row.get(4),
            input_tokens: row.get(5),
            cache_read_tokens: row.get(6),
            cache_write_tokens: row.get(7),
            output_tokens: row.get(8),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Returns calls whose cost is not known, oldest first.
    pub async fn unknown_calls(&self, limit: u32) -> Result<Vec<UnknownCall>, StoreError> {
        let rows = query(&self.pool, "unknown_calls", UNKNOWN, &[&i64::from(limit)]).await?;
        let read = |row: &Row| UnknownCall {
            call_id: row.get(0),
            job_id: row.get(1),
            agent_id: row.get(2),
            provider: row.get(3),
            model: row.get(4),
            provider_request_id: row.get(5),
            cost_microusd: row.get(6),
            reserved_at: row.get(7),
            reason: row.get(8),
        };
        Ok(rows.iter().map(read).collect())
    }
}

/// Returns an id before all calls of the last days, so that older partitions are not looked at. The id's time is that of
/// the worker's clock and the day is that of Postgres in some time zone, so two days are added.
fn oldest_call(days: u32) -> Uuid {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Uuid::from_u128(now.saturating_sub((u128::from(days) + 2) * 86_400_000) << 80)
}
