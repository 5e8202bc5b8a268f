//! Limits that operators set while the fleet runs, and what accounts say.

use std::time::Duration;

use job::Usd;
use tokio_postgres::Row;

use super::account::{
    LOCK_OUT_RESERVATIONS, OPEN, OPEN_JOBS, Period, Scope, bounded, micros, today, unfolded_from,
};
use crate::access::logged;
use crate::database::{Tx, query};
use crate::{Store, StoreError};

/// A limit in the ledger's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What it is about.
    pub scope: Scope,
    /// Its window.
    pub period: Period,
    /// The tenant, the agent, `tenant/user`, the session's key or the job's id; empty for the fleet.
    pub name: String,
    /// The most that may be spent in a window.
    pub limit: Usd,
}

/// An account of a window that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AccountView {
    /// scope:period:window:name.
    pub account: String,
    /// The limit in the ledger's table.
    pub budget_microusd: Option<i64>,
    /// The greatest limit under which a call was granted; none, if one was granted without a limit.
    pub bound_microusd: Option<i64>,
    /// What is spent.
    pub spent_microusd: i64,
    /// What is held.
    pub held_microusd: i64,
    /// What calls have cost beyond their reservations.
    pub overrun_microusd: i64,
    /// Whether no call is granted until it is opened again.
    pub shut: bool,
}

/// Waits for the reservations of the session's or the job's run that are under way.
const STOP_RUN: &str = "
    SELECT count(*) FROM (SELECT FROM harness_jobs
     WHERE job_id = ANY(ARRAY(SELECT job_id FROM harness_jobs WHERE $1 = 'session' AND session_id = $2 AND epoch > 0
                              UNION ALL
                              SELECT job_id FROM harness_jobs WHERE job_id = CASE WHEN $1 = 'job' THEN $2::uuid END))
     ORDER BY job_id FOR UPDATE) locked";

const SET: &str = "
    INSERT INTO harness_budgets (scope, name, period, limit_microusd, set_by) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (scope, period, name) DO UPDATE
       SET limit_microusd = excluded.limit_microusd, set_by = excluded.set_by, set_at = now()";

/// Reservations wait meanwhile: what is in the way of a limit is not waited for longer.
const SOON: &str = "SELECT set_config('lock_timeout', '2s', true)";

const REMOVE: &str = concat!(
    "WITH removed AS (DELETE FROM harness_budgets WHERE scope = $2 AND name = $3 AND period = $4 RETURNING *) ",
    logged!(
        "budget_removed",
        "NULL",
        "jsonb_build_object('scope', scope, 'name', name, 'period', period, 'limit_microusd', limit_microusd)",
        "removed"
    )
);

const LOG: &str = "
    INSERT INTO harness_audit_log (actor, act, detail)
    VALUES ($1, 'budget_set', jsonb_build_object('scope', $2::text, 'name', $3::text, 'period', $4::text,
                                                 'limit_microusd', $5::bigint))";

const REOPEN: &str = concat!(
    "WITH opened AS (
         UPDATE harness_accounts a
            SET reopened_microusd = ",
    bounded!(
        "overrun_microusd + (SELECT coalesce(sum(m.overrun_microusd), 0)
                                                          FROM harness_account_moves m WHERE m.key = a.key)"
    ),
    "
          WHERE key = $2 RETURNING key) ",
    logged!("account_reopened", "NULL", "jsonb_build_object('account', key)", "opened")
);

/// Accounts of windows that have not ended, with those budgets that have no account yet left out.
const ACCOUNTS: &str = concat!(
    "SELECT a.key, b.limit_microusd, nullif(greatest(a.bound_microusd, m.bound), 9223372036854775807),
            ",
    bounded!("a.spent_microusd + m.spent"),
    ", ",
    bounded!("a.held_microusd + m.held"),
    ", ",
    bounded!("a.overrun_microusd + m.overrun"),
    ",
            a.overrun_microusd + m.overrun > a.reopened_microusd
       FROM (SELECT *, ",
    unfolded_from!(),
    " AS unfolded_from, split_part(key, ':', 1) AS scope, split_part(key, ':', 2) AS period,
                    split_part(key, ':', 3) AS starts,
                    substr(key, length(split_part(key, ':', 1)) + length(split_part(key, ':', 2))
                                + length(split_part(key, ':', 3)) + 4) AS name
               FROM harness_accounts OFFSET 0) a
      CROSS JOIN LATERAL (
            SELECT coalesce(sum(spent_microusd), 0) AS spent, coalesce(sum(held_microusd), 0) AS held,
                   coalesce(sum(overrun_microusd), 0) AS overrun, coalesce(max(bound_microusd), 0) AS bound
              FROM harness_account_moves m WHERE m.key = a.key AND m.tx >= a.unfolded_from) m
       LEFT JOIN harness_budgets b ON b.scope = a.scope AND b.period = a.period AND b.name = a.name
      WHERE a.starts IN ('', to_char(",
    today!(),
    ", 'YYYY-MM-DD'), to_char(",
    today!(),
    ", 'YYYY-MM'))
        AND ($1 OR b.limit_microusd IS NOT NULL OR greatest(a.bound_microusd, m.bound) < 9223372036854775807)
      ORDER BY a.key LIMIT 1000"
);

const LIST: &str =
    "SELECT scope, period, name, limit_microusd FROM harness_budgets ORDER BY scope, period, name";

/// The zone stays as it is once anything was counted by it: other windows would begin with nothing spent.
const SET_ZONE: &str = "
    UPDATE harness_spend_zone SET zone = $1
     WHERE zone <> $1 AND now() AT TIME ZONE $1 IS NOT NULL AND NOT EXISTS (SELECT FROM harness_accounts)";

/// In some zones a day begins later than at midnight, or a month with a gap: the zone's own rules say when it turns. Another
/// window than that of now has ended: no call is refused by one that has not begun.
const UNTIL_TURN: &str = "
    SELECT CASE WHEN $2 = to_char(now() AT TIME ZONE zone, CASE $1 WHEN 'day' THEN 'YYYY-MM-DD' ELSE 'YYYY-MM' END)
                THEN extract(epoch FROM (date_trunc($1, now() AT TIME ZONE zone) + ('1 ' || $1)::interval) AT TIME ZONE zone
                                        - now())::float8
                ELSE 0 END
      FROM harness_spend_zone";

const ZONE: &str = "SELECT zone FROM harness_spend_zone";

impl Store {
    /// Sets a limit. It holds for the next reservation; what is held and spent by now counts. It waits for the reservations
    /// that are under way, and new ones wait for it.
    pub async fn set_budget(&self, budget: &Budget, actor: &str) -> Result<(), StoreError> {
        let (scope, period) = (budget.scope.as_str(), budget.period.as_str());
        let (name, limit) = (budget.name.as_str(), micros(budget.limit));
        let accounts = (vec![scope], vec![period], vec![name], vec![false], vec![None::<i64>]);
        let steps = [SOON, LOCK_OUT_RESERVATIONS, STOP_RUN, SET, OPEN, OPEN_JOBS, LOG];
        let tx = Tx::prepare(&self.pool, "set_budget", steps).await?;
        let open: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&accounts.0, &accounts.1, &accounts.2, &accounts.3, &accounts.4];
        tx.run([
            &[],
            &[],
            &[&scope, &name],
            &[&scope, &name, &period, &limit, &actor],
            &open,
            &open,
            &[&actor, &scope, &name, &period, &limit],
        ])
        .await?;
        Ok(())
    }

    /// Removes a limit. Returns whether there was one.
    pub async fn remove_budget(
        &self,
        scope: Scope,
        period: Period,
        name: &str,
        actor: &str,
    ) -> Result<bool, StoreError> {
        let (scope, period) = (scope.as_str(), period.as_str());
        let tx = Tx::prepare(&self.pool, "remove_budget", [REMOVE]).await?;
        let [removed] = tx.run([&[&actor, &scope, &name, &period]]).await?;
        Ok(!removed.is_empty())
    }

    /// Returns the limits in the ledger's table.
    pub async fn budgets(&self) -> Result<Vec<Budget>, StoreError> {
        let rows = query(&self.pool, "budgets", LIST, &[]).await?;
        Ok(rows.iter().filter_map(read_budget).collect())
    }

    /// Returns the accounts of the windows that it is now, the first thousand; without `all`, those with a limit.
    pub async fn accounts(&self, all: bool) -> Result<Vec<AccountView>, StoreError> {
        let rows = query(&self.pool, "accounts", ACCOUNTS, &[&all]).await?;
        let view = |row: &Row| AccountView {
            account: row.get(0),
            budget_microusd: row.get(1),
            bound_microusd: row.get(2),
            spent_microusd: row.get(3),
            held_microusd: row.get(4),
            overrun_microusd: row.get(5),
            shut: row.get(6),
        };
        Ok(rows.iter().map(view).collect())
    }

    /// Opens an account that an overrun has shut. Returns whether there is such an account.
    pub async fn reopen_account(&self, account: &str, actor: &str) -> Result<bool, StoreError> {
        let tx = Tx::prepare(&self.pool, "reopen_account", [REOPEN]).await?;
        let [opened] = tx.run([&[&actor, &account]]).await?;
        Ok(!opened.is_empty())
    }

    /// Returns how long it takes until the window of an account ends, by Postgres's clock: nothing if it has ended, `None` if
    /// it has no end. The account is written as scope:period:window:name.
    pub async fn until_turn(&self, account: &str) -> Result<Option<Duration>, StoreError> {
        let mut parts = account.split(':').skip(1);
        let (period, window) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if period == Period::Life.as_str() {
            return Ok(None);
        }
        let rows = query(&self.pool, "until_turn", UNTIL_TURN, &[&period, &window]).await?;
        let seconds = rows.first().map(|row| row.get::<_, f64>(0));
        Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
    }

    /// Sets the time zone in which days and months turn, while nothing is counted yet. Returns the one that holds.
    pub async fn set_spend_zone(&self, zone: &str) -> Result<String, StoreError> {
        let tx = Tx::prepare(&self.pool, "set_spend_zone", [SET_ZONE, ZONE]).await?;
        let [_, zone] = tx.run([&[&zone], &[]]).await?;
        Ok(zone.first().map_or_else(|| "UTC".to_owned(), |row| row.get(0)))
    }
}

fn read_budget(row: &Row) -> Option<Budget> {
    Some(Budget {
        scope: Scope::of(row.get(0))?,
        period: Period::of(row.get(1))?,
        name: row.get(2),
        limit: Usd::from_micros(row.get::<_, i64>(3).max(0).unsigned_abs()),
    })
}
