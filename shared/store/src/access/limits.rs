//! What a tenant may submit: its limits, and its rate over all doors.
//!
//! The rate limit is GCRA: a theoretical arrival time, which each granted job moves on by one interval, and which may
//! lie ahead of the present by the burst. It is by Postgres's clock, so doors need not agree about the time.

use std::collections::HashMap;
use std::time::Duration;

use job::Tenant;
use tokio_postgres::Row;

use crate::database::query;
use crate::{Store, StoreError};

/// What a tenant may submit. `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantLimits {
    /// How many of its jobs may wait.
    pub max_waiting: Option<u32>,
    /// How fast it may submit.
    pub rate: Option<Rate>,
}

/// A rate of jobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Jobs per second in the long run.
    pub per_s: f64,
    /// Jobs at once; at least one.
    pub burst: u32,
}

impl Rate {
    /// The slowest and the fastest rate.
    pub const PER_S: std::ops::RangeInclusive<f64> = 0.001..=1e6;
    /// The whole burst comes again within so many days, at most. In nanoseconds it is then far below what a `bigint` holds.
    pub const WHOLE_WITHIN_DAYS: u32 = 365;

    /// The largest burst beside a rate.
    pub fn most_burst(per_s: f64) -> u32 {
        let most = per_s * f64::from(Rate::WHOLE_WITHIN_DAYS) * 86_400.0;
        (most as u32).clamp(1, i32::MAX as u32)
    }

    /// A rate as it is in the ledger, within these bounds. Without a burst, what comes in a second may come at once.
    fn bounded(per_s: f64, burst: Option<u32>) -> Rate {
        let per_s = per_s.clamp(*Rate::PER_S.start(), *Rate::PER_S.end());
        let burst = burst.unwrap_or(per_s.ceil() as u32);
        Rate { per_s, burst: burst.clamp(1, Rate::most_burst(per_s)) }
    }
}

/// What a tenant is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateRequest {
    /// Jobs, at most. Fewer may be granted.
    pub wanted: u32,
    /// Jobs that were granted before and not submitted.
    pub returned: u32,
    /// The time between two jobs, in nanoseconds.
    pub interval_ns: i64,
    /// How many jobs may come at once.
    pub burst: u32,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateAnswer {
    /// Jobs that may be submitted.
    pub granted: u32,
    /// How many more would be granted now.
    pub left: u32,
    /// The time until one more is granted; zero while some are left.
    pub next_in: Duration,
    /// The time until the whole burst is granted again.
    pub whole_in: Duration,
}

const LIMITS: &str = "
    SELECT max_waiting::bigint, rate_per_s, burst::bigint FROM harness_tenants WHERE name = $1";

const MAX_WAITING: &str = "
    SELECT name, max_waiting::bigint FROM harness_tenants WHERE name = ANY($1) AND max_waiting IS NOT NULL";

/// The clock is read under the row's lock. An arrival time further ahead than the burst was written before a clock was
/// set back or a limit was changed, and counts as an empty burst.
const TAKE: &str = "
    INSERT INTO harness_rates AS r (tenant, tat_ns, granted)
    SELECT $1, n + least($2::int, $5::int) * $4::bigint, least($2::int, $5::int)
      FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint AS n) clock
    ON CONFLICT (tenant) DO UPDATE SET (tat_ns, granted) = (
        SELECT base + g * $4, g
          FROM (SELECT base, greatest(least($2::int, (n + $5 * $4 - base) / $4), 0)::int AS g
                  FROM (SELECT n, greatest(n, least(r.tat_ns - $3::int * $4, n + $5 * $4)) AS base
                          FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint AS n) clock) b) g)
    RETURNING granted, greatest(tat_ns - (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint, 0)";

impl Store {
    /// Returns a tenant's limits, or `None` if there is no such tenant.
    pub async fn tenant_limits(&self, tenant: &Tenant) -> Result<Option<TenantLimits>, StoreError> {
        let rows = query(&self.pool, "tenant_limits", LIMITS, &[&tenant.as_str()]).await?;
        Ok(rows.first().map(|row| {
            let count = |column| row.get::<_, Option<i64>>(column).map(|count| count as u32);
            let rate = row.get::<_, Option<f64>>(1);
            TenantLimits { max_waiting: count(0), rate: rate.map(|per_s| Rate::bounded(per_s, count(2))) }
        }))
    }

    /// Returns how many jobs of these tenants may wait, of those that have a bound.
    pub async fn max_waiting(&self, tenants: &[Tenant]) -> Result<HashMap<Tenant, u32>, StoreError> {
        let names: Vec<&str> = tenants.iter().map(Tenant::as_str).collect();
        let rows = query(&self.pool, "max_waiting", MAX_WAITING, &[&names]).await?;
        let bound = |row: &Row| Some((row.get::<_, &str>(0).parse().ok()?, row.get::<_, i64>(1) as u32));
        Ok(rows.iter().filter_map(bound).collect())
    }

    /// Takes jobs out of a tenant's rate, over all doors.
    pub async fn take_rate(&self, tenant: &Tenant, ask: RateRequest) -> Result<RateAnswer, StoreError> {
        let (wanted, returned, burst) = (ask.wanted as i32, ask.returned as i32, ask.burst as i32);
        let rows = query(
            &self.pool,
            "take_rate",
            TAKE,
            &[&tenant.as_str(), &wanted, &returned, &ask.interval_ns, &burst],
        )
        .await?;
        let row = rows.first().expect("an upsert returns its row");
        let (granted, ahead_ns): (i32, i64) = (row.get(0), row.get(1));
        Ok(RateAnswer::of(granted as u32, ahead_ns, ask))
    }
}

impl RateAnswer {
    /// What was granted, where the arrival time is so far ahead of the present afterwards.
    pub fn of(granted: u32, ahead_ns: i64, ask: RateRequest) -> RateAnswer {
        let room_ns = i64::from(ask.burst) * ask.interval_ns - ahead_ns;
        let left = u32::try_from(room_ns / ask.interval_ns).unwrap_or(0);
        let next_ns = if left > 0 { 0 } else { ask.interval_ns - room_ns };
        RateAnswer {
            granted,
            left,
            next_in: Duration::from_nanos(next_ns.unsigned_abs()),
            whole_in: Duration::from_nanos(ahead_ns.unsigned_abs()),
        }
    }
}
