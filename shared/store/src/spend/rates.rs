//! Rate limits of providers' keys: accounts that refill.
//!
//! A call takes from an account for each limit of its key (requests, tokens of input, of output, of both), in the
//! transaction that reserves it. What it takes counts for a minute: until the end of the second that is 61 seconds later.
//! So no window of a minute has more than the limit, by whichever rule the provider refills. A call that takes more than
//! the whole limit is granted if nothing counts.
//!
//! * **At the request.** What the provider counts when the request arrives is taken for a minute. What was not used is
//!   given back with the same end, so that it never counts for less than nothing.
//! * **As produced.** Output arrives while the call is under way. It is taken until the call is settled, and what was
//!   produced counts for a minute from then on. A call that is never settled has it for eleven minutes.
//!
//! A limit is named by the worker, or it is the one that the provider's answers report for a model; each has an account of
//! its own, so the lowest holds. An account is locked by each call, and not rewritten: moves are appended, and folded by
//! their ends. What is dated is never written again, so that a fold only adds rows up, and a reader starts behind the moves
//! that are folded, as in `account`.

use std::collections::HashMap;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::account::unfolded_from;
use super::call::NewCall;

/// The key with which a call is made, and what the call takes of the key's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateUse {
    /// provider:hash, never the key itself.
    pub key: String,
    /// What it takes, each account once.
    pub takes: Vec<Take>,
}

/// What a call takes of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// provider:hash:limit, or provider:hash:limit:model.
    pub account: String,
    /// The limit that the worker names. Without one, the account has the one that answers have reported.
    pub limit: Option<u64>,
    /// The most that the call can use; zero if only what it has used counts.
    pub amount: u64,
    /// Whether it counts as it is produced, not when the request arrives.
    pub as_produced: bool,
}

/// The end of the minute in which something counts, with the second that is under way and one more for a transaction
/// that waits.
macro_rules! counts_until {
    ($at:literal) => {
        concat!("date_trunc('second', ", $at, ") + interval '62 seconds'")
    };
}
pub(super) use counts_until;

/// Until when that counts at most which is produced by a call that was reserved at this time. In steps of ten seconds, so
/// that few ends are different.
macro_rules! held_until {
    ($at:literal) => {
        concat!("to_timestamp(ceil(extract(epoch FROM ", $at, ") / 10) * 10 + 660)")
    };
}
pub(super) use held_until;

/// Opens the accounts $1 whose limits $2 are named.
pub(super) const OPEN_RATES: &str = "
    INSERT INTO harness_provider_rates (account)
    SELECT account FROM unnest($1::text[], $2::bigint[]) AS t(account, named)
     WHERE named IS NOT NULL ORDER BY account COLLATE \"C\"
    ON CONFLICT DO NOTHING";

/// The CTE that gives back what the calls in `c` had taken, and takes what they have used. Those that were settled before
/// their reservation arrived have taken nothing, and the end of a run gives nothing back.
macro_rules! give_back {
    () => {
        concat!(
            ", given_back AS (
                INSERT INTO harness_provider_moves (account, counts_until, amount)
                SELECT u.account, v.counts_until, sum(v.amount)
                  FROM c JOIN unnest($12::uuid[], $13::text[], $14::bigint[], $15::bigint[], $16::bool[])
                              AS u(call_id, account, amount, used, as_produced) ON u.call_id = c.call_id
                 CROSS JOIN LATERAL (VALUES
                       (CASE WHEN u.as_produced THEN ",
            $crate::spend::rates::held_until!("c.reserved_at"),
            " ELSE ",
            $crate::spend::rates::counts_until!("c.reserved_at"),
            " END, -u.amount),
                       (CASE WHEN u.as_produced THEN ",
            $crate::spend::rates::counts_until!("now()"),
            " ELSE ",
            $crate::spend::rates::counts_until!("c.reserved_at"),
            " END, u.used)) v(counts_until, amount)
                 WHERE c.before = 'held' AND u.account = ANY(c.rate_accounts) AND v.counts_until > now()
                 GROUP BY 1, 2 HAVING sum(v.amount) <> 0
            )"
        )
    };
}
pub(super) use give_back;

/// Folds those of the accounts $1 that have many moves: adds up what counts until the same moment.
pub(super) const FOLD_RATES: &str = concat!(
    "WITH many AS MATERIALIZED (
        SELECT h.account, h.unfolded_from FROM unnest($1::text[]) AS of(account)
         CROSS JOIN LATERAL (SELECT account, ",
    unfolded_from!(),
    " AS unfolded_from FROM harness_provider_rates a WHERE a.account = of.account OFFSET 0) h
         WHERE (SELECT count(*) FROM (SELECT FROM harness_provider_moves m
                                       WHERE m.account = h.account AND m.tx >= h.unfolded_from LIMIT 256) few) >= 256
    ), due AS MATERIALIZED (
        SELECT account FROM harness_provider_rates WHERE account = ANY(ARRAY(SELECT account FROM many))
         ORDER BY account FOR NO KEY UPDATE SKIP LOCKED
    ), folded AS (
        DELETE FROM harness_provider_moves
         WHERE ctid = ANY(ARRAY(
               SELECT m.ctid FROM many d
                CROSS JOIN LATERAL (SELECT ctid FROM harness_provider_moves m
                                     WHERE m.account = d.account AND m.tx >= d.unfolded_from OFFSET 0) m
                WHERE d.account IN (SELECT account FROM due)))
        RETURNING *
    ), summed AS (
        INSERT INTO harness_provider_moves (account, counts_until, amount)
        SELECT account, counts_until, sum(amount) FROM folded WHERE counts_until > now()
         GROUP BY 1, 2 HAVING sum(amount) <> 0
    )
    UPDATE harness_provider_rates SET folded_tx = pg_snapshot_xmin(pg_current_snapshot()), changed_at = now()
     WHERE account = ANY(ARRAY(SELECT account FROM due))"
);

/// What the calls of a batch take, as parameters of a statement.
#[derive(Default)]
pub(super) struct Takes<'a> {
    /// Each account once, and the lowest limit that is named for it.
    pub accounts: Vec<&'a str>,
    pub limits: Vec<Option<i64>>,
    /// Which call takes from which account, both from 1, and how much.
    turns: Vec<i32>,
    of: Vec<i32>,
    amounts: Vec<i64>,
    as_produced: Vec<bool>,
    /// The key of each call.
    keys: Vec<Option<&'a str>>,
}

impl<'a> Takes<'a> {
    /// Returns what the calls take; `None` if none of them names a key.
    pub fn of(calls: &[&'a NewCall]) -> Option<Takes<'a>> {
        calls.iter().any(|call| call.rate_use.is_some()).then(|| {
            let mut takes = Takes::default();
            let mut places = HashMap::new();
            for (turn, call) in (1..).zip(calls) {
                takes.keys.push(call.rate_use.as_ref().map(|used| used.key.as_str()));
                for take in call.rate_use.iter().flat_map(|used| &used.takes) {
                    let place = *places.entry(take.account.as_str()).or_insert_with(|| {
                        takes.accounts.push(&take.account);
                        takes.limits.push(None);
                        takes.accounts.len()
                    });
                    let lowest = &mut takes.limits[place - 1];
                    *lowest = (*lowest).into_iter().chain(take.limit.map(count)).min();
                    takes.turns.push(turn);
                    takes.of.push(place as i32);
                    takes.amounts.push(count(take.amount));
                    takes.as_produced.push(take.as_produced);
                }
            }
            takes
        })
    }

    /// Returns whether a limit is named, so that its account is to be opened.
    pub fn names_limits(&self) -> bool {
        self.limits.iter().any(Option::is_some)
    }

    pub fn params(&self) -> [&(dyn ToSql + Sync); 7] {
        [&self.accounts, &self.limits, &self.turns, &self.of, &self.amounts, &self.as_produced, &self.keys]
    }
}

/// What settled calls have used, as parameters of a statement.
#[derive(Default)]
pub(super) struct Uses<'a> {
    calls: Vec<Uuid>,
    accounts: Vec<&'a str>,
    amounts: Vec<i64>,
    used: Vec<i64>,
    as_produced: Vec<bool>,
}

impl<'a> Uses<'a> {
    /// Adds what a call has used of each of its takes, in their order. What is missing was used as it was taken.
    pub fn add(&mut self, call: &'a NewCall, used: &[u64]) {
        let takes = call.rate_use.iter().flat_map(|used| &used.takes);
        for (at, take) in takes.enumerate() {
            let used = used.get(at).copied().unwrap_or(take.amount);
            if used != take.amount || take.as_produced {
                self.calls.push(call.call_id);
                self.accounts.push(&take.account);
                self.amounts.push(count(take.amount));
                self.used.push(count(used));
                self.as_produced.push(take.as_produced);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.calls, &self.accounts, &self.amounts, &self.used, &self.as_produced]
    }
}

/// Returns a count as the ledger holds it. Sums of many of them must not overflow.
fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX).min(1 << 48)
}
