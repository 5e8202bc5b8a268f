//! How limits fare, for gauges that are read every few seconds.
//!
//! It looks up the accounts of the fleet and of agents, and those of tenants and users for which the table holds a limit.
//! A session's or a job's limit is its caller's concern.

use job::Usd;
use tokio_postgres::Row;

use super::account::{Period, Scope, bounded, newest_bound, today, unfolded_from};
use crate::database::{Tx, read_usd};
use crate::{Store, StoreError};

/// What is spent and held in a window that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetGauge {
    /// What it is about: the fleet, an agent, a tenant or a user.
    pub scope: Scope,
    /// Its window.
    pub period: Period,
    /// The agent, the tenant or the user; empty for the fleet.
    pub name: String,
    /// The account, as scope:period:window:name.
    pub account: String,
    /// The limit in the ledger's table, or the one under which a worker was granted the newest call of this window; the lower of
    /// both. None, if there is none or no call was granted yet.
    pub limit: Option<Usd>,
    /// What is spent.
    pub spent: Usd,
    /// What is held.
    pub held: Usd,
    /// What calls have cost beyond their reservations since an operator has opened the account.
    pub overrun: Usd,
}

/// The figures of money.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpendGauges {
    /// Accounts with a limit, and those of the fleet.
    pub budgets: Vec<BudgetGauge>,
    /// Calls whose cost is not known; counting stops at 10000.
    pub unknown_calls: i64,
    /// What these count.
    pub unknown: Usd,
    /// Those of them that were reserved more than an hour ago.
    pub unknown_for_an_hour: i64,
}

impl BudgetGauge {
    /// Returns one of which nothing is spent.
    pub fn unused(scope: Scope, period: Period, account: String, limit: Option<Usd>) -> BudgetGauge {
        let (spent, held, overrun) = (Usd::ZERO, Usd::ZERO, Usd::ZERO);
        BudgetGauge { scope, period, name: String::new(), account, limit, spent, held, overrun }
    }

    /// Returns what may still be spent, if there is a limit.
    pub fn remaining(&self) -> Option<Usd> {
        Some(Usd::from_micros(self.limit?.micros().saturating_sub(self.spent.micros())))
    }
}

/// At most 200 agents of a window, and 1000 limits of the table. The newest bound of an account is the greatest number if that call
/// was granted without a limit. Where nothing was folded since there is a newest one, it is the greatest of the window.
const BUDGETS: &str = concat!(
    "WITH p AS MATERIALIZED (
        SELECT v.period, v.starts FROM (SELECT ",
    today!(),
    " AS today OFFSET 0) d
         CROSS JOIN LATERAL (VALUES ('day', to_char(d.today, 'YYYY-MM-DD')),
                                    ('month', to_char(d.today, 'YYYY-MM'))) v(period, starts)
    ), wanted AS MATERIALIZED (
        SELECT 'fleet' AS scope, period, '' AS name, starts FROM p
        UNION
        SELECT 'agent', p.period, a.name, p.starts FROM p CROSS JOIN LATERAL (
               SELECT substr(key, length(p.period) + length(p.starts) + 9) AS name FROM harness_accounts
                WHERE key >= 'agent:' || p.period || ':' || p.starts || ':'
                  AND key < 'agent:' || p.period || ':' || p.starts || ';'
                ORDER BY key LIMIT 200) a
        UNION
        SELECT b.scope, b.period, b.name, p.starts
          FROM (SELECT * FROM harness_budgets WHERE scope IN ('agent', 'tenant', 'user')
                 ORDER BY scope, period, name LIMIT 1000) b JOIN p ON p.period = b.period
    )
    SELECT w.scope, w.period, w.name, w.key, least(b.limit_microusd, n.bound) AS most, ",
    bounded!("coalesce(a.spent_microusd, 0) + m.spent"),
    ", ",
    bounded!("coalesce(a.held_microusd, 0) + m.held"),
    ", ",
    bounded!(
        "greatest(coalesce(a.overrun_microusd, 0) + m.overrun - coalesce(a.reopened_microusd, 0), 0)"
    ),
    "
      FROM (SELECT *, scope || ':' || period || ':' || starts || ':' || name AS key FROM wanted) w
      LEFT JOIN LATERAL (SELECT *, ",
    unfolded_from!(),
    " AS unfolded_from FROM harness_accounts h WHERE h.key = w.key OFFSET 0) a ON true
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(spent_microusd), 0) AS spent, coalesce(sum(held_microusd), 0) AS held,
                  coalesce(sum(overrun_microusd), 0) AS overrun, ",
    newest_bound!(),
    " AS newest_bound
             FROM harness_account_moves m WHERE m.key = a.key AND m.tx >= a.unfolded_from OFFSET 0) m
     CROSS JOIN LATERAL (
           SELECT nullif(nullif(coalesce(m.newest_bound, a.newest_bound_microusd, a.bound_microusd), 0),
                         9223372036854775807) AS bound OFFSET 0) n
      LEFT JOIN LATERAL (SELECT limit_microusd FROM harness_budgets b
                          WHERE b.scope = w.scope AND b.period = w.period AND b.name = w.name OFFSET 0) b ON true
     WHERE w.scope = 'fleet' AND a.key IS NOT NULL
        OR b.limit_microusd IS NOT NULL OR n.bound IS NOT NULL"
);

const UNKNOWN: &str = "
    SELECT count(*), coalesce(sum(cost_microusd), 0)::bigint,
           count(*) FILTER (WHERE reserved_at < now() - interval '1 hour')
      FROM (SELECT cost_microusd, reserved_at FROM harness_calls WHERE state = 'unknown' ORDER BY call_id LIMIT 10000) u";

impl Store {
    /// Reads how limits fare, and what is not known.
    pub async fn spend_gauges(&self) -> Result<SpendGauges, StoreError> {
        let tx = Tx::prepare(&self.pool, "spend_gauges", [BUDGETS, UNKNOWN]).await?;
        let [budgets, unknown] = tx.run([&[], &[]]).await?;
        let (unknown_calls, unknown, unknown_for_an_hour) =
            unknown.first().map(|row| (row.get(0), read_usd(row, 1), row.get(2))).unwrap_or_default();
        let budgets = budgets.iter().filter_map(read_budget).collect();
        Ok(SpendGauges { budgets, unknown_calls, unknown, unknown_for_an_hour })
    }
}

fn read_budget(row: &Row) -> Option<BudgetGauge> {
    Some(BudgetGauge {
        scope: Scope::of(row.get(0))?,
        period: Period::of(row.get(1))?,
        name: row.get(2),
        account: row.get(3),
        limit: row.get::<_, Option<i64>>(4).map(|micros| Usd::from_micros(micros.max(0).unsigned_abs())),
        spent: read_usd(row, 5),
        held: read_usd(row, 6),
        overrun: read_usd(row, 7),
    })
}
