//! What was spent, for people.

use std::time::{SystemTime, UNIX_EPOCH};

use job::Tenant;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::database::{Tx, query, rfc3339};
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

/// Sums of a part of the calls, and where the others begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpendPage {
    /// One for each value of what they are taken by, among these calls.
    pub rows: Vec<SpendRow>,
    /// Nothing where there is no more.
    pub next: Option<SpendPlace>,
}

/// Where a look at a tenant's calls goes on: they are looked at newest first, and behind them the daily sums, by day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SpendPlace {
    /// Before this call.
    Call(Uuid),
    /// Behind this daily sum: its day, counted from 1970, agent, user and model.
    Sum(u32, String, String, String),
}

/// Days from 1970 on of a place before all daily sums: some day in the year 4707.
const FIRST_DAY: u32 = 1_000_000;

impl SpendPlace {
    /// Whether it can be a place, wherever it comes from.
    pub fn is_valid(&self) -> bool {
        match self {
            SpendPlace::Call(_) => true,
            SpendPlace::Sum(day, agent, user, model) => {
                *day <= FIRST_DAY && ![agent, user, model].iter().any(|text| text.contains('\0'))
            }
        }
    }
}

/// What is summed up.
const SUMMED: [&str; 8] =
    ["calls", "cost", "unknown", "held", "input", "cache_read", "cache_write", "output"];

/// The columns of a call that are summed up, and what they are taken by.
const OF_CALLS: &str =
    "day, tenant, agent_id, coalesce(user_id, '') AS user_id, model, job_id::text AS job_id,
                        1::bigint AS calls, cost_microusd AS cost,
                        CASE WHEN state = 'unknown' THEN cost_microusd ELSE 0 END AS unknown,
                        CASE WHEN state = 'held' THEN reserved_microusd ELSE 0 END AS held,
                        input_tokens AS input, cache_read_tokens AS cache_read,
                        cache_write_tokens AS cache_write, output_tokens AS output";

/// The same of a daily sum.
const OF_SUMS: &str = "day, tenant, agent_id, user_id, model, '' AS job_id, calls, cost_microusd AS cost,
                       unknown_microusd AS unknown, 0::bigint AS held, input_tokens AS input,
                       cache_read_tokens AS cache_read, cache_write_tokens AS cache_write, output_tokens AS output";

/// For the plan of the next statement, in its transaction. Postgres underestimates how many rows a pair lets through: it would
/// read all of the tenant's and sort them, where the index has them in order. The sorts that remain count as very dear
/// then, so that it would also compile the statement.
const BY_INDEX: &str = "SELECT set_config('enable_sort', 'off', true), set_config('jit', 'off', true)";

const TODAY: &str = "(SELECT (now() AT TIME ZONE zone)::date FROM harness_spend_zone)";

/// Selects the sums of `from`, which has [`OF_CALLS`].
fn summed(by: &[SpendBy], from: &str) -> String {
    let columns: Vec<&str> = by.iter().map(|by| by.column()).collect();
    let (of, group) = match columns.as_slice() {
        [] => ("ARRAY[]::text[]".to_owned(), String::new()),
        columns => (format!("ARRAY[{}]", columns.join(", ")), format!("GROUP BY {}", columns.join(", "))),
    };
    let sums =
        SUMMED.map(|sum| format!("least(coalesce(sum({sum}), 0), 9223372036854775807)::bigint AS {sum}"));
    format!(
        "SELECT {of} AS taken_by, {} FROM ({from}) s WHERE day > {TODAY} - $1::int {group}",
        sums.join(", ")
    )
}

/// Sums up at most `most` calls of a tenant and, behind the last of them, as many daily sums, less the calls. The number is in
/// the text, so that no plan is made for any number.
///
/// Calls are compared and ordered as pairs, because the index on (tenant, call_id) alone serves that. A pair bounds a scan at
/// its beginning alone, so what is too old is left out behind the limit. Daily sums are looked up day by day, because
/// their index begins with the day.
fn paged(by: &[SpendBy], most: u32) -> String {
    let sums = summed(by, "SELECT * FROM calls UNION ALL SELECT * FROM daily");
    let columns = SUMMED.map(|sum| format!("s.{sum}")).join(", ");
    format!(
        "WITH looked AS MATERIALIZED (
             SELECT call_id, {OF_CALLS} FROM (
                    SELECT * FROM harness_calls WHERE (tenant, call_id) < ($2, $3) AND tenant >= $2
                     ORDER BY tenant DESC, call_id DESC LIMIT {most}) c
         ), cut AS MATERIALIZED (
             SELECT call_id FROM (SELECT call_id FROM looked ORDER BY call_id DESC OFFSET {most} - 1) last
              WHERE call_id >= $4
         ), calls AS MATERIALIZED (
             SELECT day, tenant, agent_id, user_id, model, job_id, {calls} FROM looked WHERE call_id >= $4
         ), daily AS MATERIALIZED (
             SELECT d.* FROM (SELECT day, day = {first} AS is_first
                                FROM (SELECT {TODAY} - n AS day FROM generate_series(0, $1::int - 1) n) days
                               WHERE day <= {first}) days
              CROSS JOIN LATERAL (
                    SELECT {OF_SUMS} FROM harness_spend s
                     WHERE s.day = days.day AND s.tenant = $2
                       AND (s.agent_id, s.user_id, s.model) > (CASE WHEN is_first THEN $6 ELSE '' END,
                                                               CASE WHEN is_first THEN $7 ELSE '' END,
                                                               CASE WHEN is_first THEN $8 ELSE '' END)
                     ORDER BY s.agent_id, s.user_id, s.model) d
              LIMIT CASE WHEN EXISTS (SELECT FROM cut) THEN 0 ELSE {most} - (SELECT count(*) FROM calls) END
         )
         SELECT s.taken_by, {columns}, cut.call_id, last.day, last.agent_id, last.user_id, last.model
           FROM (SELECT 1) one LEFT JOIN ({sums}) s ON true LEFT JOIN cut ON true
           LEFT JOIN (SELECT day - date '1970-01-01' AS day, agent_id, user_id, model FROM daily
                       WHERE (SELECT count(*) FROM daily) + (SELECT count(*) FROM calls) >= {most}
                       ORDER BY daily.day, agent_id DESC, user_id DESC, model DESC LIMIT 1) last ON true
          ORDER BY 1",
        calls = SUMMED.join(", "),
        first = "date '1970-01-01' + $5::int",
    )
}

impl Store {
    /// Sums up the calls of the last days, today's among them: those in the ledger, and the daily sums of those that
    /// retention has removed. It looks at all of them, so it is for operators alone.
    pub async fn spend(&self, by: &[SpendBy], days: u32) -> Result<Vec<SpendRow>, StoreError> {
        let all = format!(
            "SELECT {OF_CALLS} FROM harness_calls WHERE call_id >= $2 UNION ALL SELECT {OF_SUMS} FROM harness_spend"
        );
        let sql = format!("{} ORDER BY 1", summed(by, &all));
        let rows = query(&self.pool, "spend", &sql, &[&int(days), &oldest_call(days)]).await?;
        Ok(rows.iter().map(read_sum).collect())
    }

    /// As [`Store::spend`], of one tenant, in parts: each looks at no more than `rows` calls and as many daily sums, from a
    /// place on. The sums of all parts together are those of the tenant.
    pub async fn spend_of(
        &self,
        tenant: &Tenant,
        by: &[SpendBy],
        days: u32,
        from: Option<&SpendPlace>,
        rows: u32,
    ) -> Result<SpendPage, StoreError> {
        let (before, [agent, user, model], day) = match from {
            None => (Uuid::max(), [""; 3], FIRST_DAY),
            Some(SpendPlace::Call(call)) => (*call, [""; 3], FIRST_DAY),
            Some(SpendPlace::Sum(day, agent, user, model)) => {
                (Uuid::nil(), [agent, user, model].map(String::as_str), *day)
            }
        };
        let (tenant, since) = (tenant.as_str(), oldest_call(days));
        let params: [&(dyn ToSql + Sync); 8] =
            [&int(days), &tenant, &before, &since, &int(day), &agent, &user, &model];
        let tx = Tx::prepare(&self.pool, "spend_of", [BY_INDEX, &paged(by, rows)]).await?;
        let [_, rows] = tx.run([&[], &params]).await?;
        let next = rows.first().and_then(|row| {
            let behind =
                |day: i32| SpendPlace::Sum(day.unsigned_abs(), row.get(11), row.get(12), row.get(13));
            row.get::<_, Option<Uuid>>(9).map(SpendPlace::Call).or(row.get::<_, Option<i32>>(10).map(behind))
        });
        // A row without a sum says only where the next part begins.
        let sums = rows.iter().filter(|row| row.get::<_, Option<Vec<String>>>(0).is_some());
        Ok(SpendPage { rows: sums.map(read_sum).collect(), next })
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

fn read_sum(row: &Row) -> SpendRow {
    SpendRow {
        of: row.get(0),
        calls: row.get(1),
        cost_microusd: row.get(2),
        unknown_microusd: row.get(3),
        held_microusd: row.get(4),
        input_tokens: row.get(5),
        cache_read_tokens: row.get(6),
        cache_write_tokens: row.get(7),
        output_tokens: row.get(8),
    }
}

fn int(days: u32) -> i32 {
    i32::try_from(days).unwrap_or(i32::MAX)
}

/// Returns an id before all calls of the last days, so that older partitions are not looked at. The id's time is that of
/// the worker's clock and the day is that of Postgres in some time zone, so two days are added.
fn oldest_call(days: u32) -> Uuid {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Uuid::from_u128(now.saturating_sub((u128::from(days) + 2) * 86_400_000) << 80)
}
