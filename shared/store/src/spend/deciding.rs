//! The statements of a reservation: its locks, and what decides by them.
//!
//! A reservation is waited for before its call is sent, and what it costs is mostly the number of nodes in a plan: each is
//! set up anew for each execution, and finds the CPU's caches cold where calls are few. So a statement has only the parts
//! that its batch needs ([`Form`]). What only a call needs that is refused is looked up after the transaction.

use std::sync::LazyLock;

use super::account::{accounts, unfolded_from};
use super::answers::{answers, is_progress};
use super::cache::cached;
use super::call::{call_columns, call_values};

/// How answers are looked up that were paid before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// It is only noted that there may be one, and then the call holds nothing. Few calls have one.
    Noted,
    /// Those that earlier runs of the job were given.
    Answers,
    /// Those, and those of other jobs.
    Cached,
}

/// What a batch needs of the statement that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub given: Given,
    /// Whether a call names the key of a provider, whose limits are decided as well.
    pub rates: bool,
    /// Whether there is more than one call, so that each counts for those after it.
    pub several: bool,
}

/// Keeps the jobs $6 with their runs until the calls are inserted, because a newer run must find them. Then locks the
/// accounts that carry a limit, and then those of the keys' limits ($7), each in the order of their names. The counts are
/// compared so that each lock is taken only after those before it. It rewrites nothing.
macro_rules! lock {
    ($rates:literal, $last:literal) => {
        concat!(
            "WITH ",
            accounts!(),
            ", jobs AS MATERIALIZED (
                SELECT FROM harness_jobs WHERE job_id = ANY($6::uuid[]) AND state = 'running' ORDER BY job_id FOR SHARE
            ), locked AS MATERIALIZED (
                SELECT FROM harness_accounts
                 WHERE key = ANY(ARRAY(SELECT key FROM accounts WHERE named IS NOT NULL OR budget IS NOT NULL))
                   AND (SELECT count(*) FROM jobs) >= 0
                 ORDER BY key FOR NO KEY UPDATE
            )",
            $rates,
            " SELECT count(*) FROM ",
            $last
        )
    };
}

const LOCK: &str = lock!("", "locked");

const LOCK_WITH_RATES: &str = lock!(
    ", rates AS MATERIALIZED (
        SELECT FROM harness_provider_rates
         WHERE account = ANY($7::text[]) AND (SELECT count(*) FROM locked) >= 0
         ORDER BY account FOR NO KEY UPDATE
    )",
    "rates"
);

const ANSWERS: &str = answers!();
const CACHED: &str = cached!();

/// The statements by [`Form::at`].
static DECIDE: LazyLock<[String; 12]> = LazyLock::new(|| {
    let forms = [Given::Noted, Given::Answers, Given::Cached].into_iter().flat_map(|given| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(rates, several)| Form {
            given,
            rates,
            several,
        })
    });
    let mut statements = <[String; 12]>::default();
    forms.for_each(|form| statements[form.at()] = form.statement());
    statements
});

impl Form {
    /// Returns the statement that locks. Its parameters are those of `accounts`, the jobs, and the accounts of limits of keys
    /// if there are [`Form::rates`].
    pub fn lock(self) -> &'static str {
        if self.rates { LOCK_WITH_RATES } else { LOCK }
    }

    /// Returns the statement that decides. A row says of a call, in this order: its id; whether it is held now; whether its run
    /// may call; whether an answer is noted; whether an account that counts is not open; whether those before it in the batch
    /// leave no room; whether a limit of its key does; an account in which it counts under a limit, if it is not held: key,
    /// limit, whether there is no room beside what is spent and held, whether there is none beside what is spent, whether it
    /// is shut, what is left beside what is spent, and beside what is spent and held; and an answer.
    pub fn decide(self) -> &'static str {
        &DECIDE[self.at()]
    }

    fn at(self) -> usize {
        4 * self.given as usize + 2 * usize::from(self.rates) + usize::from(self.several)
    }

    /// Decides about the calls of a batch, in their order. A call whose answer was paid before holds nothing. A call that
    /// would not even fit alone counts for nothing; of the others each counts for those after it, even if another account
    /// refuses it. So a batch may grant less than its calls would get one after the other, never more.
    ///
    /// A limit is decided only on an account that this transaction has locked: `xmax` is who has locked a row. An account that
    /// was opened since the locks is not open for this transaction. Where an account that counts is not open, no call is
    /// held. A call that is there already is not inserted again.
    ///
    /// 64 calls have 640 places in accounts. Our sessions join by loops alone, which would compare each place with each call and each
    /// account. So an account's places lie together in the arrays, what a call brings is read from them by its turn, and
    /// membership is written `(… IN (SELECT …)) IS TRUE`: in a WHERE, a plain IN becomes such a join, and this a look into a hash table.
    fn statement(self) -> String {
        let Form { given, rates, several } = self;
        let accounts = accounts!();
        let unfolded_from = unfolded_from!();
        let columns = call_columns!();
        let values = call_values!();
        let stored = match given {
            Given::Noted => {
                "t.after_checkpoints IS NOT NULL
                 AND EXISTS (SELECT FROM harness_call_answers s WHERE s.job_id = t.job_id
                                AND s.request_hash = t.request_hash AND s.request_nth = t.request_nth)"
            }
            Given::Answers | Given::Cached => "false",
        };
        let (answers, has_none, answered_from, answer) = match given {
            Given::Noted => {
                (String::new(), "", "", "NULL::text, NULL::bytea, false, 0::bigint, 0::bigint, 0::bigint")
            }
            Given::Answers | Given::Cached => {
                let (cached, too) = match given {
                    Given::Cached => (CACHED, " UNION ALL SELECT * FROM cached"),
                    _ => ("", ""),
                };
                (
                    format!(", {ANSWERS}{cached}, given AS MATERIALIZED (SELECT * FROM answers{too})"),
                    "AND t.turn NOT IN (SELECT turn FROM given)",
                    "LEFT JOIN given g ON g.turn = a.turn",
                    "g.content_type, g.body, g.cached, g.cost, g.input, g.output",
                )
            }
        };
        let (crowded, not_crowded, is_crowded, in_order) = if several {
            (
                ", crowded AS MATERIALIZED (
                    SELECT turn FROM (
                        SELECT turn, spent + held + sum(reserved) OVER (PARTITION BY n ORDER BY turn) > max AS over
                          FROM counted
                         WHERE max IS NOT NULL AND turn NOT IN (SELECT turn FROM counted WHERE is_full)) o
                     WHERE over
                )",
                "AND a.turn NOT IN (SELECT turn FROM crowded)",
                "a.turn IN (SELECT turn FROM crowded)",
                "ORDER BY a.call_id",
            )
        } else {
            ("", "", "false", "")
        };
        let (held, together) = if several {
            ("sum(c.reserved), max(coalesce(c.max, 9223372036854775807))", "GROUP BY c.key")
        } else {
            ("c.reserved, coalesce(c.max, 9223372036854775807)", "")
        };
        let (refusing, refusals) = if several {
            (
                ", refusing AS MATERIALIZED (
                    SELECT * FROM counted c
                     WHERE c.max IS NOT NULL AND (c.call_id IN (SELECT call_id FROM inserted)) IS NOT TRUE
                )",
                "refusing c ON c.turn = a.turn",
            )
        } else {
            ("", "counted c ON c.turn = a.turn AND c.max IS NOT NULL AND i.call_id IS NULL")
        };
        let rated = if rates { rate_ctes(several) } else { String::new() };
        let taken = if rates { take(several) } else { String::new() };
        let (rate_column, rate_value, not_hindered, is_hindered) = if rates {
            (
                ", rate_accounts",
                ", (SELECT array_agg(r.account) FROM rated r WHERE r.turn = a.turn)",
                "AND a.turn NOT IN (SELECT turn FROM hindered)",
                "a.turn IN (SELECT turn FROM hindered)",
            )
        } else {
            ("", "", "", "false")
        };
        format!(
            "WITH {accounts}, used AS MATERIALIZED (
                SELECT a.n, a.scope, a.budget, h.key,
                       CASE WHEN a.named IS NOT NULL OR a.budget IS NOT NULL THEN h.is_locked IS NOT TRUE
                            ELSE a.always AND h.key IS NULL END AS is_closed,
                       h.spent_microusd + coalesce(m.spent, 0) AS spent, h.held_microusd + coalesce(m.held, 0) AS held,
                       h.overrun_microusd + coalesce(m.overrun, 0) > h.reopened_microusd AS shut
                  FROM accounts a
                  LEFT JOIN LATERAL (
                       SELECT *, {unfolded_from} AS unfolded_from, xmax = pg_current_xact_id()::xid AS is_locked
                         FROM harness_accounts h WHERE h.key = a.key OFFSET 0) h ON true
                  LEFT JOIN LATERAL (
                       SELECT sum(spent_microusd) AS spent, sum(held_microusd) AS held, sum(overrun_microusd) AS overrun
                         FROM harness_account_moves m
                        WHERE m.key = h.key AND m.tx >= h.unfolded_from AND (a.named IS NOT NULL OR a.budget IS NOT NULL)
                       OFFSET 0) m ON true
            ), came AS MATERIALIZED (
                SELECT t.*, {stored} AS is_stored,
                       EXISTS (SELECT FROM harness_jobs j
                                WHERE j.job_id = t.job_id AND j.epoch = t.epoch AND j.session_id || '' = t.session_id
                                  AND j.worker_id IS NOT DISTINCT FROM t.worker_id) AS alive
                  FROM unnest($6::uuid[], $7::uuid[], $8::bigint[], $9::uuid[], $10::text[], $11::text[], $12::text[],
                              $13::text[], $14::text[], $15::bigint[], $16::bytea[], $17::int[], $21::int[], $22::bytea[],
                              $23::bigint[], $24::bool[])
                       WITH ORDINALITY AS t(call_id, job_id, epoch, worker_id, session_id, agent_id, user_id, provider,
                                            model, reserved, request_hash, request_nth, after_checkpoints, cache_key,
                                            cache_age_s, only_look, turn)
            ){answers}, asked AS MATERIALIZED (
                SELECT t.*, t.alive AND NOT t.only_look AND NOT t.is_stored {has_none}
                            AND NOT EXISTS (SELECT FROM used WHERE is_closed) AS runs
                  FROM came t
            ), counted AS MATERIALIZED (
                SELECT c.*, c.max IS NOT NULL AND (c.shut OR c.spent + c.held + c.reserved > c.max) AS is_full
                  FROM (SELECT p.turn, ($6::uuid[])[p.turn] AS call_id, ($15::bigint[])[p.turn] AS reserved,
                               u.n, u.key, u.scope, u.spent, u.held, u.shut, least(p.named, u.budget) AS max
                          FROM used u
                         CROSS JOIN LATERAL unnest(($18::int[])[($19::int[])[u.n] + 1 : ($19::int[])[u.n + 1]],
                                                   ($20::bigint[])[($19::int[])[u.n] + 1 : ($19::int[])[u.n + 1]])
                                            AS p(turn, named)
                         WHERE u.key IS NOT NULL AND (p.turn IN (SELECT turn FROM asked WHERE runs)) IS TRUE) c
            ){crowded}{rated}, inserted AS (
                INSERT INTO harness_calls ({columns}, on_session, on_job{rate_column})
                SELECT {values},
                       a.turn IN (SELECT turn FROM counted WHERE scope = 'session'),
                       a.turn IN (SELECT turn FROM counted WHERE scope = 'job'){rate_value}
                  FROM asked a
                 WHERE a.runs AND a.turn NOT IN (SELECT turn FROM counted WHERE is_full) {not_crowded} {not_hindered}
                 {in_order}
                ON CONFLICT DO NOTHING RETURNING call_id
            ), moved AS (
                INSERT INTO harness_account_moves (key, held_microusd, bound_microusd)
                SELECT c.key, {held} FROM counted c
                 WHERE (c.call_id IN (SELECT call_id FROM inserted)) IS TRUE {together}
            ){taken}{refusing}
            SELECT a.call_id, i.call_id IS NOT NULL, a.alive, a.is_stored, EXISTS (SELECT FROM used WHERE is_closed),
                   {is_crowded}, {is_hindered}, c.key, c.max, c.is_full, c.shut OR c.spent + c.reserved > c.max, c.shut,
                   greatest(c.max - c.spent, 0)::bigint, greatest(c.max - c.spent - c.held, 0)::bigint, {answer}
              FROM asked a
              LEFT JOIN inserted i ON i.call_id = a.call_id
              LEFT JOIN {refusals}
              {answered_from}"
        )
    }
}

/// The CTE `rates`: the accounts $25 that have a limit, named ($26) or learnt, and how much of each counts now.
macro_rules! levels {
    ($accounts:literal, $limits:literal) => {
        concat!(
            "rates AS MATERIALIZED (
                SELECT r.n, r.account, least(r.named, h.learnt) AS max, h.unfolded_from,
                       coalesce((SELECT sum(amount) FROM harness_provider_moves m
                                  WHERE m.account = r.account AND m.tx >= h.unfolded_from AND m.counts_until > now()),
                                0) AS level
                  FROM unnest(",
            $accounts,
            "::text[], ",
            $limits,
            "::bigint[]) WITH ORDINALITY AS r(account, named, n)
                 CROSS JOIN LATERAL (SELECT learnt, ",
            unfolded_from!(),
            " AS unfolded_from FROM harness_provider_rates h WHERE h.account = r.account OFFSET 0) h
                 WHERE coalesce(r.named, h.learnt) IS NOT NULL
            )"
        )
    };
}

/// Whether a call does not fit under a limit of its key, of a row of `rated`. One that takes more than the whole limit fits if
/// nothing counts.
macro_rules! is_over {
    () => {
        "NOT (r.before + greatest(r.amount, 1) <= r.max OR r.amount > r.max AND r.before <= 0)"
    };
}

/// CTEs: `rated` has what each call takes, and `hindered` are the calls that have to wait. A call of a batch counts for those
/// after it, even if it is refused elsewhere.
fn rate_ctes(several: bool) -> String {
    let (levels, is_over) = (levels!("$25", "$26"), is_over!());
    let before = if several {
        "r.level + sum(p.amount) OVER (PARTITION BY r.n ORDER BY p.turn) - p.amount"
    } else {
        "r.level"
    };
    format!(
        ", {levels}, rated AS MATERIALIZED (
            SELECT p.turn, ($6::uuid[])[p.turn] AS call_id, p.amount, p.as_produced, r.*, {before} AS before
              FROM unnest($27::int[], $28::int[], $29::bigint[], $30::bool[]) AS p(turn, n, amount, as_produced)
              JOIN rates r ON r.n = p.n
             WHERE (p.turn IN (SELECT turn FROM asked WHERE runs)) IS TRUE
        ), hindered AS MATERIALIZED (
            SELECT r.turn FROM rated r WHERE {is_over}
            UNION ALL
            SELECT k.turn FROM unnest($31::text[]) WITH ORDINALITY AS k(key, turn)
             WHERE (SELECT s.shut_until > now() FROM harness_provider_keys s WHERE s.key = k.key)
        )"
    )
}

/// The CTE that takes what the calls in `inserted` have taken.
fn take(several: bool) -> String {
    let (held_until, counts_until) =
        (super::rates::held_until!("now()"), super::rates::counts_until!("now()"));
    let (amount, together) = if several { ("sum(r.amount)", "GROUP BY 1, 2") } else { ("r.amount", "") };
    format!(
        ", taken AS (
            INSERT INTO harness_provider_moves (account, counts_until, amount)
            SELECT r.account, CASE WHEN r.as_produced THEN {held_until} ELSE {counts_until} END, {amount}
              FROM rated r
             WHERE r.amount > 0 AND (r.call_id IN (SELECT call_id FROM inserted)) IS TRUE {together}
        )"
    )
}

/// Why the calls with these takes have to wait, and for how long, each by itself: number of the call, account of the limit or
/// key, seconds. A call that no longer has to wait has no row.
///
/// What is held until calls are settled comes back sooner than its end, so a call that waits for it asks again in a second.
pub(super) const WAITS: &str = concat!(
    "WITH ",
    levels!("$1", "$2"),
    ", rated AS MATERIALIZED (
        SELECT p.turn, p.amount, p.as_produced, r.*, r.level AS before
          FROM unnest($3::int[], $4::int[], $5::bigint[], $6::bool[]) AS p(turn, n, amount, as_produced)
          JOIN rates r ON r.n = p.n
    )
    SELECT DISTINCT ON (turn) turn, by, wait FROM (
        SELECT r.turn, r.account AS by, coalesce(w.wait, CASE WHEN r.as_produced THEN 1 ELSE 62 END) AS wait
          FROM rated r
         CROSS JOIN LATERAL (
               SELECT min(extract(epoch FROM ends - now()))::float8 AS wait
                 FROM (SELECT ends, r.before - sum(amount) OVER (ORDER BY ends) AS level
                         FROM (SELECT CASE WHEN counts_until > now() + interval '63 seconds'
                                           THEN now() + interval '1 second' ELSE counts_until END AS ends, amount
                                 FROM harness_provider_moves m
                                WHERE m.account = r.account AND m.tx >= r.unfolded_from
                                  AND m.counts_until > now()) m) l
                WHERE level + greatest(r.amount, 1) <= r.max OR r.amount > r.max AND level <= 0) w
         WHERE ",
    is_over!(),
    "
        UNION ALL
        SELECT k.turn::int, s.key, extract(epoch FROM s.shut_until - now())::float8
          FROM unnest($7::text[]) WITH ORDINALITY AS k(key, turn)
         CROSS JOIN LATERAL (SELECT key, shut_until FROM harness_provider_keys s
                              WHERE s.key = k.key AND s.shut_until > now() OFFSET 0) s) hindered
     ORDER BY turn, wait DESC, by"
);

/// Which of the calls $1 there are.
pub(super) const FOUND: &str = "SELECT call_id, state, epoch FROM harness_calls WHERE call_id = ANY($1)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_a_statement_of_its_own_with_the_parts_that_it_needs() {
        let mut all: Vec<&str> = DECIDE.iter().map(String::as_str).collect();
        for (at, statement) in all.iter().enumerate() {
            assert_eq!(statement.contains("harness_cache"), at >= 8, "{statement}");
            assert_eq!(statement.contains("harness_checkpoints"), at >= 4, "{statement}");
            assert_eq!(statement.contains("harness_provider"), at % 4 >= 2, "{statement}");
            assert_eq!(statement.contains(" OVER "), at % 2 == 1, "{statement}");
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 12);
    }
}
