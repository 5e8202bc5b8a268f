//! Reserve: holds the most that a call can cost, before it is sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use job::{Change, Usage, Usd};
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tracing::warn;
use uuid::Uuid;

use super::account::{
    Accounts, FOLD, LOCK, LOCK_OUT_LIMITS, OPEN, OPEN_JOBS, accounts, bounded, unfolded_from,
};
use super::answers::{GivenAnswer, answers, is_progress};
use super::cache::{CacheHealth, cached};
use super::call::{CacheLookup, Columns, Lookup, NewCall, call_columns, call_values};
use super::rates::{FOLD_RATES, LOCK_RATES, Takes, rate_ctes, rate_moves};
use crate::database::{Batched, Tx, read_usd};
use crate::{Store, StoreError};

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
    /// Its answer was paid before. Nothing is held.
    Answered(GivenAnswer),
    /// The run may not call any more, or this call was settled before.
    Lost,
}

/// Keeps these jobs with their runs, until the calls are inserted: a newer run must find them.
const KEEP_RUNS: &str = "
    SELECT count(*) FROM (SELECT FROM harness_jobs
     WHERE job_id = ANY($1) AND state = 'running' ORDER BY job_id FOR SHARE) kept";

/// Decides about the calls of a batch, in their order. A call whose answer was paid before holds nothing. A call that would not even fit alone counts for nothing; of
/// the others each counts for those after it, even if another account refuses it. So a batch may grant less than its
/// calls would get one after the other, never more, and such a call is busy.
///
/// A call that is there already was reserved by an earlier try whose reply was lost, or was settled before. Where an
/// account that counts is not open, no call is held.
macro_rules! reserve {
    (given: $cached:expr, $given:expr, ctes: $ctes:expr, refused: $refused:expr, columns: $columns:expr, values: $values:expr, moves: $moves:expr,
     answers: $answers:expr) => { concat!(
    "WITH ",
    accounts!(),
    ", came AS MATERIALIZED (
        SELECT t.*, c.state AS found, c.epoch = t.epoch AS found_same,
               EXISTS (SELECT FROM harness_jobs j
                        WHERE j.job_id = t.job_id AND j.epoch = t.epoch AND j.session_id || '' = t.session_id
                          AND j.worker_id IS NOT DISTINCT FROM t.worker_id) AS alive
          FROM unnest($6::uuid[], $7::uuid[], $8::bigint[], $9::uuid[], $10::text[], $11::text[], $12::text[],
                      $13::text[], $14::text[], $15::bigint[], $16::bytea[], $17::int[], $21::int[], $22::bytea[],
                      $23::bigint[], $24::bool[])
               WITH ORDINALITY AS t(call_id, job_id, epoch, worker_id, session_id, agent_id, user_id, provider, model,
                                    reserved, request_hash, request_nth, after_checkpoints, cache_key, cache_age_s,
                                    only_look, turn)
          LEFT JOIN LATERAL (SELECT state, epoch FROM harness_calls c WHERE c.call_id = t.call_id OFFSET 0) c ON true
    ), ",
    answers!(),
    $cached,
    ", given AS MATERIALIZED (SELECT * FROM answers",
    $given,
    "), used AS MATERIALIZED (
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
    ), unopened AS MATERIALIZED (
        SELECT FROM accounts
         WHERE (always OR named IS NOT NULL OR budget IS NOT NULL) AND n NOT IN (SELECT n FROM used)
    ), asked AS MATERIALIZED (
        SELECT t.*, t.alive AND NOT t.only_look AND t.turn NOT IN (SELECT turn FROM given)
                    AND NOT EXISTS (SELECT FROM unopened) AS runs
          FROM came t
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
        SELECT c.key, ",
    bounded!("sum(a.reserved)"),
    ", max(coalesce(c.max, 9223372036854775807))
          FROM inserted i JOIN asked a ON a.call_id = i.call_id JOIN counted c ON c.turn = a.turn
         GROUP BY c.key
    )",
    $moves,
    "
    SELECT a.call_id, (found IS NOT DISTINCT FROM 'held' AND found_same) OR i.call_id IS NOT NULL,
           found IS NULL AND runs, b.key, b.max, b.exhausted, b.shut, ",
    $answers,
    ",
           (SELECT min(CASE WHEN c.shut THEN 0 ELSE greatest(c.max - c.spent, 0) END)::bigint FROM checked c WHERE c.turn = a.turn),
           g.content_type, g.body, g.cached, g.cost, g.input, g.output, EXISTS (SELECT FROM unopened)
      FROM asked a
      LEFT JOIN given g ON g.turn = a.turn
      LEFT JOIN inserted i ON i.call_id = a.call_id
      LEFT JOIN LATERAL (
           SELECT * FROM checked b
            WHERE b.turn = a.turn AND (NOT b.fits OR a.turn IN (SELECT turn FROM crowded))
            ORDER BY b.exhausted DESC, b.fits, b.max - b.spent - b.held LIMIT 1) b ON true"
    ) };
}

/// As [`reserve`] takes what limits of keys change, and where the cache of answers is asked.
macro_rules! not_hindered {
    () => {
        " EXCEPT SELECT turn FROM hindered"
    };
}
macro_rules! taken_from {
    () => {
        ", (SELECT array_agg(r.account) FROM rated r WHERE r.turn = a.turn)"
    };
}
macro_rules! hindered {
    () => {
        "(SELECT h.by FROM hindered h WHERE h.turn = a.turn ORDER BY h.wait DESC, h.by LIMIT 1),
           (SELECT max(h.wait) FROM hindered h WHERE h.turn = a.turn)"
    };
}
macro_rules! from_cache {
    () => {
        " UNION ALL SELECT * FROM cached"
    };
}

/// The statements, by whether calls name keys of providers, whose limits are decided as well, and by whether the cache of
/// answers is asked.
const RESERVE: [[&str; 2]; 2] = [
    [
        reserve!(given: "", "", ctes: "", refused: "", columns: "", values: "", moves: "",
                 answers: "NULL::text, NULL::float8"),
        reserve!(given: cached!(), from_cache!(), ctes: "", refused: "", columns: "", values: "", moves: "",
                 answers: "NULL::text, NULL::float8"),
    ],
    [
        reserve!(given: "", "", ctes: rate_ctes!(), refused: not_hindered!(), columns: ", rate_accounts", values: taken_from!(),
                 moves: rate_moves!(), answers: hindered!()),
        reserve!(given: cached!(), from_cache!(), ctes: rate_ctes!(), refused: not_hindered!(), columns: ", rate_accounts",
                 values: taken_from!(), moves: rate_moves!(), answers: hindered!()),
    ],
];

/// A lock of the table of the cache is not waited for longer.
const CACHE_WITHIN: &str = "SELECT set_config('lock_timeout', '250ms', true)";
/// As [`CACHE_WITHIN`], of all that may be in the way.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Of so many batches one folds. They append one move to an account, and that is many more than are read quickly.
const FOLD_ONE_OF: u32 = 8;

/// A call that asks for its reservation, or for its answer alone.
#[derive(Debug)]
pub(crate) struct Reservation {
    call: NewCall,
    only_look: bool,
    cache: Arc<CacheHealth>,
}

impl Reservation {
    fn cache(&self) -> Option<CacheLookup> {
        self.call.lookup.as_ref()?.cache.filter(|_| self.cache.is_up())
    }
}

/// How answers are looked up, as columns of a statement.
struct Lookups<'a> {
    after_checkpoints: Vec<Option<i32>>,
    keys: Vec<Option<&'a [u8]>>,
    max_ages_s: Vec<Option<i64>>,
    only: Vec<bool>,
}

impl<'a> Lookups<'a> {
    fn of(batch: &'a [Reservation]) -> Lookups<'a> {
        let lookups = || batch.iter().map(|it| it.call.lookup.as_ref());
        let cache = || lookups().map(|lookup| lookup?.cache.as_ref());
        let after = |lookup: &Lookup| i32::try_from(lookup.after_checkpoints).unwrap_or(i32::MAX);
        let age = |entry: &CacheLookup| i64::try_from(entry.max_age.as_secs()).unwrap_or(i64::MAX);
        Lookups {
            after_checkpoints: lookups().map(|lookup| lookup.map(after)).collect(),
            keys: cache().map(|entry| entry.map(|entry| entry.key.as_slice())).collect(),
            max_ages_s: cache().map(|entry| entry.map(age)).collect(),
            only: batch.iter().map(|it| it.only_look).collect(),
        }
    }
}

impl Batched for Reservation {
    type Answer = Reserved;
    const MAX_ROWS: usize = 64;

    fn bytes(&self) -> usize {
        500
    }

    fn key(&self) -> u128 {
        self.call.call_id.as_u128()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Reserved>, StoreError> {
        let Some(asks) = batch.iter().find(|it| it.cache().is_some()) else {
            return decide(pool, batch, false).await;
        };
        // What the cache has is never worth a call that is not made.
        let cause = match timeout(ANSWER_WITHIN, decide(pool, batch, true)).await {
            Ok(Ok(answers)) => return Ok(answers),
            Ok(Err(error)) => error,
            Err(elapsed) => StoreError::Unavailable(Arc::new(elapsed)),
        };
        asks.cache.rest();
        warn!(
            cause = cause.as_dyn(),
            "the cache of answers does not answer; calls are made without it for a while"
        );
        let answers = decide(pool, batch, false).await?;
        // The first try may have gone through while this one waited for it.
        if answers.contains(&Reserved::Lost) { decide(pool, batch, false).await } else { Ok(answers) }
    }

    fn changed(&self, _: &Reserved, _: &mut Vec<Change>) {}
}

/// Decides among open accounts, and opens them only where one is missing: that is two of six statements.
async fn decide(pool: &Pool, batch: &[Reservation], in_cache: bool) -> Result<Vec<Reserved>, StoreError> {
    let is_answered = |answer: &Reserved| matches!(answer, Reserved::Answered(_));
    let (answers, one_was_closed) = decided(pool, batch, in_cache, false).await?;
    if !one_was_closed || answers.iter().all(is_answered) {
        return Ok(answers);
    }
    let (again, _) = decided(pool, batch, in_cache, true).await?;
    // An answer from the cache is the job's own by now.
    Ok(answers
        .into_iter()
        .zip(again)
        .map(|(one, other)| if is_answered(&one) { one } else { other })
        .collect())
}

/// Returns the answers, and whether an account was not open, so that nothing could be held.
async fn decided(
    pool: &Pool,
    batch: &[Reservation],
    in_cache: bool,
    opens: bool,
) -> Result<(Vec<Reserved>, bool), StoreError> {
    type Param<'a> = &'a (dyn ToSql + Sync);
    let batched: Vec<&NewCall> = batch.iter().map(|it| &it.call).collect();
    let (accounts, columns) = (Accounts::of(batched.iter().copied()), Columns::of(batched.iter().copied()));
    let (lookups, takes) = (Lookups::of(batch), Takes::of(&batched));
    let Accounts { scopes, periods, names, always, named, calls, of, limits } = &accounts;
    let of_accounts: [Param<'_>; 5] = [scopes, periods, names, always, named];
    let mut params = of_accounts.to_vec();
    params.extend(columns.params());
    params.extend([calls as Param<'_>, of, limits]);
    let Lookups { after_checkpoints, keys, max_ages_s, only } = &lookups;
    params.extend([after_checkpoints as Param<'_>, keys, max_ages_s, only]);
    let of_rates: Option<[Param<'_>; 2]> =
        takes.as_ref().map(|takes| [&takes.accounts as Param<'_>, &takes.limits]);
    params.extend(takes.iter().flat_map(Takes::params));
    let jobs: [Param<'_>; 1] = [&columns.jobs];

    let mut steps: Vec<(&str, &[Param<'_>])> = vec![(LOCK_OUT_LIMITS, &[]), (KEEP_RUNS, &jobs)];
    if opens {
        steps.extend([(OPEN, of_accounts.as_slice()), (OPEN_JOBS, of_accounts.as_slice())]);
    }
    steps.push((LOCK, &of_accounts));
    steps.extend(of_rates.as_ref().map(|of_rates| (LOCK_RATES, of_rates.as_slice())));
    if in_cache {
        steps.push((CACHE_WITHIN, &[]));
    }
    let decides = steps.len();
    steps.push((RESERVE[usize::from(takes.is_some())][usize::from(in_cache)], &params));
    if fastrand::u32(..FOLD_ONE_OF) == 0 {
        steps.push((FOLD, &of_accounts));
        steps.extend(of_rates.as_ref().map(|of_rates| (FOLD_RATES, &of_rates[..1])));
    }
    let mut answers = Tx::run_steps(pool, "reserve", &steps).await?;
    let decided = answers.swap_remove(decides);
    let one_was_closed = decided.iter().any(|row| row.get(16));
    let decided: HashMap<Uuid, &Row> = decided.iter().map(|row| (row.get(0), row)).collect();
    let answer = |it: &Reservation| decided.get(&it.call.call_id).map_or(Reserved::Lost, |row| read(row));
    Ok((batch.iter().map(answer).collect(), one_was_closed))
}

impl Store {
    /// Holds the most that a call can cost, together with those that are asked for meanwhile, or returns the answer that was
    /// paid before. Safe to repeat after a lost reply.
    pub async fn reserve(&self, call: NewCall) -> Result<Reserved, StoreError> {
        self.reservations.call(self.reservation(call, false)).await
    }

    /// Returns the answer to a call that was paid before, if there is one. What its run has written before must be durable.
    pub async fn look_up(&self, call: NewCall) -> Result<Option<GivenAnswer>, StoreError> {
        match self.reservations.call(self.reservation(call, true)).await? {
            Reserved::Answered(answer) => Ok(Some(answer)),
            _ => Ok(None),
        }
    }

    fn reservation(&self, call: NewCall, only_look: bool) -> Reservation {
        Reservation { call, only_look, cache: self.cache_health() }
    }
}

fn read(row: &Row) -> Reserved {
    let (granted, may_call): (bool, bool) = (row.get(1), row.get(2));
    if granted {
        return Reserved::Granted;
    }
    if let Some(content_type) = row.get(10) {
        let count = |at| row.get::<_, i64>(at).unsigned_abs();
        let paid = Usage { cost: read_usd(row, 13), input_tokens: count(14), output_tokens: count(15) };
        return Reserved::Answered(GivenAnswer {
            content_type,
            body: row.get(11),
            cached: row.get(12),
            paid,
        });
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
