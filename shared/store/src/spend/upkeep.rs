//! What is folded, summed up and forgotten.

use std::time::Duration;

use super::account::{FOLD_SOME, bounded};
use super::unsettled::LEAVE_LEFT;
use crate::database::{millis, query};
use crate::{Store, StoreError};

/// Calls that are needed, in milliseconds of their ids' time: those of this month, of which an audit compares the
/// accounts, and those that are held.
pub(crate) const OLDEST_CALLS: &str = "
    SELECT (extract(epoch FROM least(
               (SELECT date_trunc('month', now() AT TIME ZONE zone) AT TIME ZONE zone FROM harness_spend_zone)
                   - interval '1 day',
               (SELECT min(reserved_at) - interval '1 day' FROM harness_calls WHERE state = 'held'))) * 1000)::bigint";

/// Adds to a cost of a daily sum what comes to it.
macro_rules! added {
    ($column:literal) => {
        concat!(", ", $column, " = ", bounded!(concat!("s.", $column, "::numeric + excluded.", $column)))
    };
}

/// Adds the calls of a partition to the daily sums, in the transaction that drops it. To be followed by the
/// partition's name and [`SUM_UP`]'s second part.
pub(crate) const SUM_UP: [&str; 2] = [
    concat!(
        "SET LOCAL statement_timeout = '600s';
     INSERT INTO harness_spend AS s
     SELECT day, tenant, agent_id, coalesce(user_id, ''), model, count(*), ",
        bounded!("sum(cost_microusd)"),
        ", ",
        bounded!("coalesce(sum(cost_microusd) FILTER (WHERE state = 'unknown'), 0)"),
        ", sum(input_tokens), sum(cache_read_tokens), sum(cache_write_tokens), sum(output_tokens) FROM "
    ),
    concat!(
        " GROUP BY 1, 2, 3, 4, 5
     ON CONFLICT (day, tenant, agent_id, user_id, model) DO UPDATE
        SET calls = s.calls + excluded.calls",
        added!("cost_microusd"),
        added!("unknown_microusd"),
        ", input_tokens = s.input_tokens + excluded.input_tokens,
           cache_read_tokens = s.cache_read_tokens + excluded.cache_read_tokens,
           cache_write_tokens = s.cache_write_tokens + excluded.cache_write_tokens,
           output_tokens = s.output_tokens + excluded.output_tokens;"
    ),
];

/// The answers of jobs that have ended. They are no longer asked for.
const FORGET_ANSWERS: &str = "
    DELETE FROM harness_call_answers
     WHERE job_id = ANY(ARRAY(
           SELECT DISTINCT a.job_id FROM harness_call_answers a
            WHERE NOT EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = a.job_id) LIMIT 500))";

/// Windows that have ended, and jobs that have, for as long as results are kept. A limit of all calls of a job or a session holds
/// for as long as there may be another call: while the job is alive, while the table names it, and for sessions always, because
/// they have no end. An operator has named each session that has an account, and its row in `harness_sessions` stays, too.
const FORGET_ACCOUNTS: &str = "
    DELETE FROM harness_accounts a
     WHERE changed_at < now() - greatest($1 * interval '1 millisecond', interval '62 days')
       AND key NOT IN (SELECT key FROM harness_account_moves) AND held_microusd = 0
       AND NOT starts_with(key, 'session:life:')
       AND NOT EXISTS (SELECT FROM harness_jobs j
                        WHERE j.job_id = CASE WHEN starts_with(a.key, 'job:life::') THEN substr(a.key, 11)::uuid END OFFSET 0)
       AND NOT EXISTS (SELECT FROM harness_budgets b
                        WHERE b.scope = 'job' AND b.period = 'life'
                          AND b.name = CASE WHEN starts_with(a.key, 'job:life::') THEN substr(a.key, 11) END OFFSET 0)";

impl Store {
    /// Folds the moves of some accounts. Returns how many accounts there were.
    pub async fn fold_accounts(&self) -> Result<usize, StoreError> {
        Ok(query(&self.pool, "fold_accounts", FOLD_SOME, &[]).await?.len())
    }

    /// Counts in full what is held for workers that are gone and for runs that are over, where a process of an older
    /// release has ended them. Returns how many calls there were.
    pub async fn leave_lost_calls(&self) -> Result<usize, StoreError> {
        Ok(query(&self.pool, "leave_lost_calls", LEAVE_LEFT, &[]).await?.len())
    }

    /// Deletes the answers of jobs that have ended, and old accounts.
    pub async fn forget_spend(&self, retention: Duration) -> Result<(), StoreError> {
        let answers = query(&self.pool, "forget_answers", FORGET_ANSWERS, &[]).await;
        let accounts = query(&self.pool, "forget_accounts", FORGET_ACCOUNTS, &[&millis(retention)]).await;
        answers.and(accounts).map(drop)
    }
}
