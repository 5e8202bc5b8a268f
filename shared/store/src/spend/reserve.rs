//! Reserve: holds the most that a call can cost, before it is sent.

use std::collections::HashMap;
use std::time::Duration;

use deadpool_postgres::Pool;
use job::{Change, Usd};
use tokio_postgres::Row;
use uuid::Uuid;

use super::account::{Accounts, FOLD, LOCK, OPEN, OPEN_JOBS, accounts, unfolded_from};
use super::call::{Columns, NewCall, call_columns, call_values};
use super::rates::{FOLD_RATES, LOCK_RATES, Takes, rate_ctes, rate_moves};
use crate::StoreError;
use crate::database::{Batched, Tx};

/// The answer to a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// The amount is held: the call may be sent, and must be settled.
    Granted,
    /// It would fit if what others hold were settled for less.
    Busy {
        /// The account, as scope:period:window:name.
        account: String,
    },
    /// It would fit into every budget, and a rate limit of its key is reached, or the key is shut.
    Later {
        /// The account of the limit, or the key.
        limit: String,
        /// When it fits, if no other call takes what becomes free until then.
        retry_after: Duration,
    },
    /// What is spent leaves no room for it.
    Spent {
        /// The account, as scope:period:window:name.
        account: String,
        /// Its limit.
        limit: Usd,
        /// The most that a call may cost which all its limits leave room for, once others have settled for nothing.
        room: Usd,
        /// Whether a call has cost more than was held for it, so that no further call is granted.
        shut: bool,
    },
    /// The run may not call any more, or this call was settled before.
    Lost,
}

/// Keeps these jobs with their runs, until the calls are inserted: a newer run must find them.
const KEEP_RUNS: &str = "
    SELECT count(*) FROM (SELECT FROM harness_jobs
     WHERE job_id = ANY($1) AND state = 'running' ORDER BY job_id FOR SHARE) kept";

/// Decides about the calls of a batch, in their order. A call that would not even fit alone counts for nothing; of
/// the others each counts for those after it, even if another account refuses it. So a batch may grant less than its
/// calls would get one after the other, never more, and such a call is busy.
///
/// A call that is there already was reserved by an earlier try whose reply was lost, or was settled before.
macro_rules! reserve {
    (ctes: $ctes:expr, refused: $refused:expr, columns: $columns:expr, values: $values:expr, moves: $moves:expr,
     answers: $answers:expr) => { concat!(
    "WITH ",
    accounts!(),
    ", asked AS MATERIALIZED (
        SELECT t.*, c.state AS found, c.epoch = t.epoch AS found_same,
               EXISTS (SELECT FROM harness_jobs j
                        WHERE j.job_id = t.job_id AND j.epoch = t.epoch AND j.session_id || '' = t.session_id
                          AND j.worker_id IS NOT DISTINCT FROM t.worker_id) AS runs
          FROM unnest($6::uuid[], $7::uuid[], $8::bigint[], $9::uuid[], $10::text[], $11::text[], $12::text[],
                      $13::text[], $14::text[], $15::bigint[], $16::bytea[], $17::int[])
               WITH ORDINALITY AS t(call_id, job_id, epoch, worker_id, session_id, agent_id, user_id, provider, model,
                                    reserved, request_hash, request_nth, turn)
          LEFT JOIN LATERAL (SELECT state, epoch FROM harness_calls c WHERE c.call_id = t.call_id OFFSET 0) c ON true
    ), used AS MATERIALIZED (
        SELECT a.n, a.key, a.scope, a.budget, a.named IS NOT NULL OR a.budget IS NOT NULL AS limited,
               h.spent_microusd + coalesce(m.spent, 0) AS spent, h.held_microusd + coalesce(m.held, 0) AS held,
               h.overrun_microusd + coalesce(m.overrun, 0) > h.reopened_microusd AS shut
          FROM accounts a
         CROSS JOIN LATERAL (SELECT *, ",
    unfolded_from!(),
    " AS unfolded_from FROM harness_accounts h WHERE h.key = a.key OFFSET 0) h
          LEFT JOIN LATERAL (
               SELECT sum(spent_microusd) AS spent, sum(held_microusd) AS held, sum(overrun_microusd) AS overrun
                 FROM harness_account_moves m
                WHERE m.key = h.key AND m.tx >= h.unfolded_from AND (a.named IS NOT NULL OR a.budget IS NOT NULL)
               OFFSET 0) m ON true
    ), counted AS MATERIALIZED (
        SELECT p.turn, u.*, least(p.named, u.budget) AS max
          FROM unnest($18::int[], $19::int[], $20::bigint[]) AS p(turn, n, named) JOIN used u ON u.n = p.n
    ), checked AS MATERIALIZED (
        SELECT c.*, a.reserved, c.shut OR c.spent + a.reserved > c.max AS exhausted,
               c.spent + c.held + a.reserved <= c.max AND NOT c.shut AS fits
          FROM counted c JOIN asked a ON a.turn = c.turn
         WHERE c.limited AND c.max IS NOT NULL AND a.found IS NULL AND a.runs
    ), alone AS MATERIALIZED (
        SELECT turn FROM asked WHERE found IS NULL AND runs
        EXCEPT SELECT turn FROM checked WHERE NOT fits
    ), crowded AS MATERIALIZED (
        SELECT turn FROM (
            SELECT turn, spent + held + sum(reserved) OVER (PARTITION BY n ORDER BY turn) > max AS over
              FROM checked WHERE turn IN (SELECT turn FROM alone)) o
         WHERE over
    )",
    $ctes,
    ", inserted AS (
        INSERT INTO harness_calls (",
    call_columns!(),
    ", on_session, on_job",
    $columns,
    ")
        SELECT ",
    call_values!(),
    ",
               EXISTS (SELECT FROM counted c WHERE c.turn = a.turn AND c.scope = 'session'),
               EXISTS (SELECT FROM counted c WHERE c.turn = a.turn AND c.scope = 'job')",
    $values,
    "
          FROM asked a
         WHERE turn IN (SELECT turn FROM alone EXCEPT SELECT turn FROM crowded",
    $refused,
    ") ORDER BY a.call_id
        ON CONFLICT DO NOTHING RETURNING call_id
    ), moved AS (
        INSERT INTO harness_account_moves (key, held_microusd, bound_microusd)
        SELECT c.key, sum(a.reserved), max(coalesce(c.max, 9223372036854775807))
          FROM inserted i JOIN asked a ON a.call_id = i.call_id JOIN counted c ON c.turn = a.turn
         GROUP BY c.key
    )",
    $moves,
    "
    SELECT a.call_id, (found IS NOT DISTINCT FROM 'held' AND found_same) OR i.call_id IS NOT NULL,
           found IS NULL AND runs, b.key, b.max, b.exhausted, b.shut, ",
    $answers,
    ",
           (SELECT min(CASE WHEN c.shut THEN 0 ELSE c.max - c.spent END)::bigint FROM checked c WHERE c.turn = a.turn)",
    "
      FROM asked a
      LEFT JOIN inserted i ON i.call_id = a.call_id
      LEFT JOIN LATERAL (
           SELECT * FROM checked b
            WHERE b.turn = a.turn AND (NOT b.fits OR a.turn IN (SELECT turn FROM crowded))
            ORDER BY b.exhausted DESC, b.fits, b.max - b.spent - b.held LIMIT 1) b ON true"
    ) };
}

const RESERVE: &str = reserve!(
    ctes: "", refused: "", columns: "", values: "", moves: "", answers: "NULL::text, NULL::float8"
);

/// As [`RESERVE`], for calls with keys of providers, whose limits are decided as well.
const RESERVE_WITH_RATES: &str = reserve!(
    ctes: rate_ctes!(),
    refused: " EXCEPT SELECT turn FROM hindered",
    columns: ", rate_accounts",
    values: ", (SELECT array_agg(r.account) FROM rated r WHERE r.turn = a.turn)",
    moves: rate_moves!(),
    answers: "(SELECT h.by FROM hindered h WHERE h.turn = a.turn ORDER BY h.wait DESC, h.by LIMIT 1),
           (SELECT max(h.wait) FROM hindered h WHERE h.turn = a.turn)"
);

impl Batched for NewCall {
    type Answer = Reserved;
    const MAX_ROWS: usize = 64;

    fn bytes(&self) -> usize {
        500
    }

    fn key(&self) -> u128 {
        self.call_id.as_u128()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Reserved>, StoreError> {
        let (accounts, columns) = (Accounts::of(batch.iter()), Columns::of(batch.iter()));
        let Accounts { scopes, periods, names, always, named, calls, of, limits } = &accounts;
        let of_accounts: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [scopes, periods, names, always, named];
        let mut params = of_accounts.to_vec();
        params.extend(columns.params());
        params.extend([calls as &(dyn tokio_postgres::types::ToSql + Sync), of, limits]);
        let jobs: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&columns.jobs];
        let decided = if let Some(takes) = Takes::of(batch) {
            let sql = [KEEP_RUNS, OPEN, OPEN_JOBS, LOCK, LOCK_RATES, RESERVE_WITH_RATES, FOLD, FOLD_RATES];
            let tx = Tx::prepare(pool, "reserve", sql).await?;
            params.extend(takes.params());
            let locked: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&takes.accounts, &takes.limits];
            let [_, _, _, _, _, decided, _, _] = tx
                .run([
                    &jobs,
                    &of_accounts,
                    &of_accounts,
                    &of_accounts,
                    &locked,
                    &params,
                    &of_accounts,
                    &locked[..1],
                ])
                .await?;
            decided
        } else {
            let tx = Tx::prepare(pool, "reserve", [KEEP_RUNS, OPEN, OPEN_JOBS, LOCK, RESERVE, FOLD]).await?;
            let [_, _, _, _, decided, _] =
                tx.run([&jobs, &of_accounts, &of_accounts, &of_accounts, &params, &of_accounts]).await?;
            decided
        };
        let decided: HashMap<Uuid, &Row> = decided.iter().map(|row| (row.get(0), row)).collect();
        let answer = |call: &NewCall| decided.get(&call.call_id).map_or(Reserved::Lost, |row| read(row));
        Ok(batch.iter().map(answer).collect())
    }

    fn changed(&self, _: &Reserved, _: &mut Vec<Change>) {}
}

fn read(row: &Row) -> Reserved {
    let (granted, may_call): (bool, bool) = (row.get(1), row.get(2));
    if granted {
        return Reserved::Granted;
    }
    match row.get::<_, Option<String>>(3) {
        Some(account) if may_call => {
            if row.get(5) {
                let [limit, room] =
                    [4, 9].map(|at| Usd::from_micros(row.get::<_, i64>(at).max(0).unsigned_abs()));
                Reserved::Spent { account, limit, room, shut: row.get(6) }
            } else {
                Reserved::Busy { account }
            }
        }
        _ => match row.get::<_, Option<String>>(7) {
            Some(limit) if may_call => {
                let wait = Duration::from_secs_f64(row.get::<_, f64>(8).max(0.0));
                Reserved::Later { limit, retry_after: wait }
            }
            // It was settled while this transaction waited for it.
            _ => Reserved::Lost,
        },
    }
}
