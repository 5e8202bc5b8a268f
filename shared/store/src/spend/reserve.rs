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

use super::account::{Accounts, FOLD, LOCK_OUT_LIMITS, OPEN, OPEN_JOBS};
use super::answers::GivenAnswer;
use super::cache::CacheHealth;
use super::call::{CacheLookup, Columns, Lookup, NewCall, check_cost};
use super::deciding::{FOUND, Form, Given, WAITS};
use super::rates::{FOLD_RATES, OPEN_RATES, Takes};
use crate::database::{Batched, Tx, queries, read_usd};
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

/// Keeps these jobs with their runs before anything of them is locked that a newer run takes as well.
const KEEP_RUNS: &str = "
    SELECT count(*) FROM (SELECT FROM harness_jobs
     WHERE job_id = ANY($1) AND state = 'running' ORDER BY job_id FOR SHARE) kept";

/// A lock of the table of the cache is not waited for longer.
const CACHE_WITHIN: &str = "SELECT set_config('lock_timeout', '250ms', true)";
/// As [`CACHE_WITHIN`], of all that may be in the way.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Of so many batches one folds. They append one move to an account, and that is many more than are read quickly.
const FOLD_ONE_OF: u32 = 8;
/// So often a batch is decided whose accounts were not open. The second time opens them; midnight may come after it.
const TRIES: usize = 3;
/// When a call asks again whose limit has had room since it was decided.
const ASK_SOON: Duration = Duration::from_millis(50);

type Param<'a> = &'a (dyn ToSql + Sync);

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
    fn of(batch: &[&'a Reservation]) -> Lookups<'a> {
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
            Err(elapsed) => elapsed.into(),
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

/// What a transaction has decided about a call.
enum Decided {
    Answer(Reserved),
    /// A limit of its key has no room for it.
    Hindered,
    /// Nothing could be held.
    Not {
        /// An account in which it counts is not open.
        is_closed: bool,
        /// There may be an answer.
        is_stored: bool,
    },
}

/// Decides in one transaction where it can: among accounts that are open, about calls of which no answer is noted. What
/// only the others need is three more statements, and half of a plan.
async fn decide(pool: &Pool, batch: &[Reservation], in_cache: bool) -> Result<Vec<Reserved>, StoreError> {
    let mut given = if in_cache { Given::Cached } else { Given::Noted };
    let mut opens = false;
    let mut decided: Vec<Decided> = Vec::new();
    let mut open: Vec<usize> = (0..batch.len()).collect();
    for _ in 0..TRIES {
        let these: Vec<&Reservation> = open.iter().map(|at| &batch[*at]).collect();
        let now = transact(pool, &these, given, opens).await?;
        if decided.is_empty() {
            decided = now;
        } else {
            open.iter().zip(now).for_each(|(at, now)| decided[*at] = now);
        }
        open.retain(|at| match decided[*at] {
            Decided::Not { is_closed, is_stored } => {
                opens |= is_closed;
                if is_stored && given == Given::Noted {
                    given = Given::Answers;
                }
                true
            }
            Decided::Answer(_) | Decided::Hindered => false,
        });
        if open.is_empty() {
            return explain(pool, batch, decided).await;
        }
    }
    Err(StoreError::unavailable("accounts of a reservation do not stay open"))
}

/// Completes answers that grant nothing, after the transaction: such a call can wait. One that is there, even if an answer to it
/// is as well, was reserved by an earlier try whose reply was lost, or was settled before; of one that a limit of its key hinders, it is asked for how long.
async fn explain(
    pool: &Pool,
    batch: &[Reservation],
    decided: Vec<Decided>,
) -> Result<Vec<Reserved>, StoreError> {
    let is_refused = |(it, decided): &(&Reservation, &Decided)| {
        !it.only_look && !matches!(decided, Decided::Answer(Reserved::Granted))
    };
    let refused: Vec<Uuid> =
        batch.iter().zip(&decided).filter(is_refused).map(|(it, _)| it.call.call_id).collect();
    let hindered = batch.iter().zip(&decided).filter(|(_, decided)| matches!(decided, Decided::Hindered));
    let hindered: Vec<&NewCall> = hindered.map(|(it, _)| &it.call).collect();
    let takes = Takes::of(&hindered).unwrap_or_default();
    let (mut found, mut waits) = (HashMap::new(), HashMap::new());
    if !refused.is_empty() {
        let (calls, of_takes): ([Param<'_>; 1], _) = ([&refused], takes.params());
        let steps: [(&str, &[Param<'_>]); 2] = [(FOUND, &calls), (WAITS, &of_takes)];
        let asked = if hindered.is_empty() { &steps[..1] } else { &steps[..] };
        let mut answers = queries(pool, "explain_reservation", asked).await?.into_iter();
        let rows = answers.next().unwrap_or_default();
        found.extend(
            rows.iter().map(|row| (row.get::<_, Uuid>(0), (row.get::<_, String>(1), row.get::<_, i64>(2)))),
        );
        for row in answers.next().unwrap_or_default() {
            let wait = Duration::from_secs_f64(row.get::<_, f64>(2).max(0.0));
            waits.insert(hindered[row.get::<_, i32>(0) as usize - 1].call_id, (row.get(1), wait));
        }
    }
    let answer = |(it, decided): (&Reservation, Decided)| match found.get(&it.call.call_id) {
        Some((state, epoch)) if state == "held" && *epoch == it.call.claim.epoch() => Reserved::Granted,
        Some(_) => Reserved::Lost,
        None => match decided {
            Decided::Answer(answer) => answer,
            Decided::Hindered => {
                let takes = it.call.rate_use.iter().flat_map(|used| &used.takes);
                let gone = || (takes.map(|take| take.account.clone()).next().unwrap_or_default(), ASK_SOON);
                let (limit, retry_after) = waits.remove(&it.call.call_id).unwrap_or_else(gone);
                Reserved::Later { limit, retry_after }
            }
            Decided::Not { .. } => Reserved::Lost,
        },
    };
    Ok(batch.iter().zip(decided).map(answer).collect())
}

/// Runs the transaction of these calls.
async fn transact(
    pool: &Pool,
    batch: &[&Reservation],
    given: Given,
    opens: bool,
) -> Result<Vec<Decided>, StoreError> {
    let batched: Vec<&NewCall> = batch.iter().map(|it| &it.call).collect();
    let (accounts, columns) = (Accounts::of(batched.iter().copied()), Columns::of(batched.iter().copied()));
    let (lookups, takes) = (Lookups::of(batch), Takes::of(&batched));
    let form = Form { given, rates: takes.is_some(), several: batch.len() > 1 };
    let Accounts { scopes, periods, names, always, named, calls, limits, ends } = &accounts;
    let of_accounts: [Param<'_>; 5] = [scopes, periods, names, always, named];
    let of_rates: Option<[Param<'_>; 2]> =
        takes.as_ref().map(|takes| [&takes.accounts as Param<'_>, &takes.limits]);
    let jobs: [Param<'_>; 1] = [&columns.jobs];
    let mut of_locks = of_accounts.to_vec();
    of_locks.push(&columns.jobs);
    of_locks.extend(of_rates.iter().map(|[accounts, _]| *accounts));
    let mut params = of_accounts.to_vec();
    params.extend(columns.params());
    params.extend([calls as Param<'_>, ends, limits]);
    let Lookups { after_checkpoints, keys, max_ages_s, only } = &lookups;
    params.extend([after_checkpoints as Param<'_>, keys, max_ages_s, only]);
    params.extend(takes.iter().flat_map(Takes::params));

    let mut steps: Vec<(&str, &[Param<'_>])> = vec![(LOCK_OUT_LIMITS, &[])];
    if opens {
        let of_accounts = of_accounts.as_slice();
        steps.extend([(KEEP_RUNS, jobs.as_slice()), (OPEN, of_accounts), (OPEN_JOBS, of_accounts)]);
    }
    if takes.as_ref().is_some_and(Takes::names_limits) {
        steps.extend(of_rates.as_ref().map(|of_rates| (OPEN_RATES, of_rates.as_slice())));
    }
    steps.push((form.lock(), &of_locks));
    if given == Given::Cached {
        steps.push((CACHE_WITHIN, &[]));
    }
    let decides = steps.len();
    steps.push((form.decide(), &params));
    if fastrand::u32(..FOLD_ONE_OF) == 0 {
        steps.push((FOLD, &of_accounts));
        steps.extend(of_rates.as_ref().map(|of_rates| (FOLD_RATES, &of_rates[..1])));
    }
    let mut answers = Tx::run_steps(pool, "reserve", &steps).await?;
    let mut rows: HashMap<Uuid, Vec<Row>> = HashMap::new();
    for row in answers.swap_remove(decides) {
        rows.entry(row.get(0)).or_default().push(row);
    }
    let decided = |it: &&Reservation| {
        rows.get(&it.call.call_id).map_or(Decided::Answer(Reserved::Lost), |rows| read(rows, it.only_look))
    };
    Ok(batch.iter().map(decided).collect())
}

impl Store {
    /// Holds the most that a call can cost, together with those that are asked for meanwhile, or returns the answer that was
    /// paid before. Safe to repeat after a lost reply.
    pub async fn reserve(&self, call: NewCall) -> Result<Reserved, StoreError> {
        check_cost(call.reserved)?;
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

/// Reads the rows of a call, one for each account in which it counts under a limit. Their order is in [`Form::decide`].
fn read(rows: &[Row], only_look: bool) -> Decided {
    let row = &rows[0];
    let is = |at: usize| row.get::<_, bool>(at);
    if is(1) {
        return Decided::Answer(Reserved::Granted);
    }
    if let Some(content_type) = row.get(14) {
        let count = |at| row.get::<_, i64>(at).unsigned_abs();
        let paid = Usage { cost: read_usd(row, 17), input_tokens: count(18), output_tokens: count(19) };
        let (body, cached) = (row.get(15), is(16));
        return Decided::Answer(Reserved::Answered(GivenAnswer { content_type, body, cached, paid }));
    }
    let (alive, is_stored, is_closed, is_crowded, is_hindered) = (is(2), is(3), is(4), is(5), is(6));
    match full(rows, is_crowded) {
        _ if only_look && !is_stored => Decided::Answer(Reserved::Lost),
        // The accounts of a call that is lost are opened, too: its maker settles it.
        _ if is_stored || is_closed => Decided::Not { is_closed: is_closed && !only_look, is_stored },
        _ if !alive => Decided::Answer(Reserved::Lost),
        Some(refusal) => Decided::Answer(refusal),
        None if is_hindered => Decided::Hindered,
        // It is there already.
        None => Decided::Answer(Reserved::Lost),
    }
}

/// Returns why accounts leave no room for a call: one that is spent before one in which others hold it, and of these the one
/// with the least left.
fn full(rows: &[Row], is_crowded: bool) -> Option<Reserved> {
    let accounts = || rows.iter().filter(|row| row.get::<_, Option<&str>>(7).is_some());
    let is = |row: &Row, at: usize| row.get::<_, bool>(at);
    let in_the_way = accounts().filter(|row| is(row, 9) || is_crowded);
    let row = in_the_way.min_by_key(|row| (!is(row, 10), !is(row, 9), row.get::<_, i64>(13)))?;
    let account = row.get(7);
    if !is(row, 10) {
        return Some(Reserved::Busy { account });
    }
    let left = accounts().map(|row| if is(row, 11) { Usd::ZERO } else { read_usd(row, 12) });
    let room = left.min().unwrap_or_default();
    Some(Reserved::Spent { account, limit: read_usd(row, 8), room, shut: is(row, 11) })
}
