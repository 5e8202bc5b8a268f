//! Which accounts a call counts in, and what they say.
//!
//! An account is a scope and a window, `scope:period:window:name`. Every call counts in those of the fleet, of its
//! tenant, of its agent and of its user, per day and per month, whether a limit names them or not. So a limit that is
//! set later finds what was spent before. Those of a session and of a job exist only once a limit names them; then
//! they take in their earlier calls.
//!
//! Days and months turn in one time zone for the whole fleet, by Postgres's clock.

use job::Usd;

use super::call::NewCall;

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All calls.
    Fleet,
    /// Those of a tenant.
    Tenant,
    /// Those of an agent, of all tenants.
    Agent,
    /// Those of a user of a tenant.
    User,
    /// Those of a session.
    Session,
    /// Those of a job.
    Job,
}

/// The window of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// A calendar day.
    Day,
    /// A calendar month.
    Month,
    /// For as long as there are calls: of sessions and jobs.
    Life,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 6] =
        [Scope::Fleet, Scope::Tenant, Scope::Agent, Scope::User, Scope::Session, Scope::Job];

    /// Returns the one of this name.
    pub fn of(name: &str) -> Option<Scope> {
        Scope::ALL.into_iter().find(|scope| scope.as_str() == name)
    }

    /// Returns its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Fleet => "fleet",
            Scope::Tenant => "tenant",
            Scope::Agent => "agent",
            Scope::User => "user",
            Scope::Session => "session",
            Scope::Job => "job",
        }
    }

    /// Returns whether every call counts in it, limited or not.
    fn is_always_open(self) -> bool {
        !matches!(self, Scope::Session | Scope::Job)
    }
}

impl Period {
    /// Returns the one of this name.
    pub fn of(name: &str) -> Option<Period> {
        [Period::Day, Period::Month, Period::Life].into_iter().find(|period| period.as_str() == name)
    }

    /// Returns its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Period::Day => "day",
            Period::Month => "month",
            Period::Life => "life",
        }
    }
}

/// A limit that a worker, an agent or a job names for its own calls. The ledger's table may hold a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What it is about. The name is the call's own.
    pub scope: Scope,
    /// Its window.
    pub period: Period,
    /// The most that may be spent in a window.
    pub limit: Usd,
}

/// The accounts of a batch of calls, each once, as parameters of a statement.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub scopes: Vec<&'static str>,
    pub periods: Vec<&'static str>,
    pub names: Vec<String>,
    /// Whether any call of the batch counts in it in any case.
    pub always: Vec<bool>,
    /// The lowest limit that any call of the batch names.
    pub named: Vec<Option<i64>>,
    /// The calls that count in the accounts, from 1, those of an account together; and which limit each names there.
    pub calls: Vec<i32>,
    pub limits: Vec<Option<i64>>,
    /// Where those of each account end, behind a 0.
    pub ends: Vec<i32>,
}

impl Accounts {
    pub fn of<'a>(calls: impl Iterator<Item = &'a NewCall>) -> Accounts {
        let mut accounts = Accounts::default();
        let mut places = std::collections::HashMap::new();
        let mut calls_of: Vec<Vec<(i32, Option<i64>)>> = Vec::new();
        for (turn, call) in (1..).zip(calls) {
            for (scope, period, name) in call.accounts() {
                let named = call.limits.iter().filter(|it| it.scope == scope && it.period == period);
                let named = named.map(|it| micros(it.limit)).min();
                let place = *places.entry((scope, period, name.clone())).or_insert_with(|| {
                    accounts.scopes.push(scope.as_str());
                    accounts.periods.push(period.as_str());
                    accounts.names.push(name);
                    accounts.always.push(scope.is_always_open());
                    accounts.named.push(None);
                    calls_of.push(Vec::new());
                    accounts.scopes.len()
                });
                let lowest = &mut accounts.named[place - 1];
                *lowest = (*lowest).into_iter().chain(named).min();
                calls_of[place - 1].push((turn, named));
            }
        }
        accounts.ends.push(0);
        for calls in calls_of {
            let (calls, limits): (Vec<i32>, Vec<Option<i64>>) = calls.into_iter().unzip();
            accounts.calls.extend(calls);
            accounts.limits.extend(limits);
            accounts.ends.push(accounts.calls.len() as i32);
        }
        accounts
    }
}

/// Returns an amount as the ledger holds it.
pub(super) fn micros(amount: Usd) -> i64 {
    i64::try_from(amount.micros()).unwrap_or(i64::MAX)
}

/// The day that it is now in the fleet's time zone.
macro_rules! today {
    () => {
        "(SELECT (now() AT TIME ZONE zone)::date FROM harness_spend_zone WHERE one)"
    };
}
pub(crate) use today;

/// The CTE `accounts`: those of a batch, from the parameters $1 to $5.
macro_rules! accounts {
    () => {
        concat!(
            "accounts AS MATERIALIZED (
                SELECT t.n, t.scope, t.name, t.always, t.named,
                       (SELECT b.limit_microusd FROM harness_budgets b
                         WHERE b.scope = t.scope AND b.period = t.period AND b.name = t.name) AS budget,
                       t.scope || ':' || t.period || ':' || CASE t.period
                           WHEN 'day' THEN to_char(d.today, 'YYYY-MM-DD')
                           WHEN 'month' THEN to_char(d.today, 'YYYY-MM') ELSE '' END || ':' || t.name AS key
                  FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[], $5::bigint[])
                       WITH ORDINALITY AS t(scope, period, name, always, named, n),
                       (SELECT ",
            $crate::spend::account::today!(),
            " AS today) d
            )"
        )
    };
}
pub(crate) use accounts;

/// A total as the ledger holds it: one that is larger stays at the largest, so that no statement fails for it. It must not be
/// NULL. What a call can cost has a bound (`MOST_OF_A_CALL`), so this is only where many millions of calls add up: a program
/// that no limit holds may reserve as often as it likes.
macro_rules! bounded {
    ($sum:expr) => {
        concat!("greatest(least(", $sum, ", 9223372036854775807), -9223372036854775807)::bigint")
    };
}
pub(crate) use bounded;

/// The keys of the accounts in which the row `c` of `harness_calls` counts, as `k.key`.
macro_rules! keys_of_call {
    () => {
        "CROSS JOIN LATERAL (
            SELECT key FROM (VALUES
                ('fleet:day:' || to_char(c.day, 'YYYY-MM-DD') || ':'),
                ('fleet:month:' || to_char(c.day, 'YYYY-MM') || ':'),
                ('tenant:day:' || to_char(c.day, 'YYYY-MM-DD') || ':' || c.tenant),
                ('tenant:month:' || to_char(c.day, 'YYYY-MM') || ':' || c.tenant),
                ('agent:day:' || to_char(c.day, 'YYYY-MM-DD') || ':' || c.agent_id),
                ('agent:month:' || to_char(c.day, 'YYYY-MM') || ':' || c.agent_id),
                ('user:day:' || to_char(c.day, 'YYYY-MM-DD') || ':' || c.tenant || '/' || c.user_id),
                ('user:month:' || to_char(c.day, 'YYYY-MM') || ':' || c.tenant || '/' || c.user_id),
                (CASE WHEN c.on_session THEN 'session:life::' || c.session_id END),
                (CASE WHEN c.on_job THEN 'job:life::' || c.job_id END)) AS v(key)
             WHERE key IS NOT NULL) k"
    };
}
pub(crate) use keys_of_call;

/// From which transaction on an account's moves are read, of a row of `harness_accounts`. A position that Postgres
/// has not reached is that of another server, from which the ledger was restored, and counts for nothing.
macro_rules! unfolded_from {
    () => {
        "CASE WHEN folded_tx <= pg_snapshot_xmax(pg_current_snapshot()) THEN folded_tx ELSE '0'::xid8 END"
    };
}
pub(crate) use unfolded_from;

/// The limit under which the newest call of some moves was granted; NULL if none of them is of a grant.
macro_rules! newest_bound {
    () => {
        "(array_agg(bound_microusd ORDER BY tx DESC) FILTER (WHERE bound_microusd > 0))[1]"
    };
}
pub(crate) use newest_bound;

/// Moves what the calls in the CTE `adopted` have spent and hold into the accounts of their sessions, or of their jobs.
macro_rules! take_in {
    ($scope:literal, $id:literal) => {
        concat!(
            " INSERT INTO harness_account_moves (key, spent_microusd, held_microusd, overrun_microusd, bound_microusd)
              SELECT '",
            $scope,
            ":life::' || ",
            $id,
            ", sum(cost_microusd), coalesce(sum(reserved_microusd) FILTER (WHERE state = 'held'), 0), sum(overrun_microusd),
                     9223372036854775807
                FROM adopted GROUP BY ",
            $id
        )
    };
}

/// The calls of those jobs among `accounts` of which this holds, that count in no account of their job.
macro_rules! calls_of_jobs {
    ($holds:literal) => {
        concat!(
            "SELECT c.call_id FROM accounts a
              CROSS JOIN LATERAL (SELECT session_id, job_id FROM harness_jobs j
                                   WHERE j.job_id = CASE WHEN a.scope = 'job' THEN a.name::uuid END OFFSET 0) j
              CROSS JOIN LATERAL (SELECT call_id FROM harness_calls c
                                   WHERE c.session_id = j.session_id AND c.job_id = j.job_id AND NOT c.on_job OFFSET 0) c
              WHERE a.scope = 'job' AND ",
            $holds
        )
    };
}

/// Opens the accounts that are to be open, but those of jobs. A session's takes in the calls that it had before. Calls are locked in
/// the order of their ids, as by every settlement; and with them those that [`OPEN_JOBS`] will take in.
pub(super) const OPEN: &str = concat!(
    "WITH ",
    accounts!(),
    ", opened AS (
        INSERT INTO harness_accounts (key)
        SELECT key FROM accounts
         WHERE scope <> 'job' AND (always OR named IS NOT NULL OR budget IS NOT NULL) ORDER BY key COLLATE \"C\"
        ON CONFLICT DO NOTHING RETURNING key
    ), sessions AS MATERIALIZED (
        SELECT name FROM accounts WHERE scope = 'session' AND key = ANY(ARRAY(SELECT key FROM opened))
    ), locked AS MATERIALIZED (
        SELECT call_id FROM harness_calls
         WHERE call_id = ANY(ARRAY(
               SELECT c.call_id FROM sessions s
                CROSS JOIN LATERAL (SELECT call_id FROM harness_calls c
                                     WHERE c.session_id = s.name AND NOT c.on_session OFFSET 0) c
               UNION ALL ",
    calls_of_jobs!(
        "(a.named IS NOT NULL OR a.budget IS NOT NULL)
                 AND NOT EXISTS (SELECT FROM harness_accounts h WHERE h.key = a.key OFFSET 0)"
    ),
    "))
         ORDER BY call_id FOR UPDATE
    ), adopted AS (
        UPDATE harness_calls SET on_session = true
         WHERE call_id = ANY(ARRAY(SELECT call_id FROM locked))
           AND session_id = ANY(ARRAY(SELECT name FROM sessions)) AND NOT on_session
        RETURNING *
    )",
    take_in!("session", "session_id")
);

/// As [`OPEN`], for jobs. It is a statement of its own, because one changes a row only once.
pub(super) const OPEN_JOBS: &str = concat!(
    "WITH ",
    accounts!(),
    ", opened AS (
        INSERT INTO harness_accounts (key)
        SELECT key FROM accounts
         WHERE scope = 'job' AND (named IS NOT NULL OR budget IS NOT NULL) ORDER BY key COLLATE \"C\"
        ON CONFLICT DO NOTHING RETURNING key
    ), adopted AS (
        UPDATE harness_calls SET on_job = true
         WHERE call_id = ANY(ARRAY(",
    calls_of_jobs!("a.key = ANY(ARRAY(SELECT key FROM opened))"),
    ")) AND NOT on_job
        RETURNING *
    )",
    take_in!("job", "job_id")
);

/// A reservation locks only the accounts for which it sees a limit. One that did not see a limit yet must have ended before
/// another one decides by it. So each reservation holds this lock, shared with all others, from before it looks until
/// its end; a change of a limit holds it alone, and waits for those that are under way. It is the first lock of both, so
/// that a transaction which waits for it holds no other.
///
/// It is sent with all else of the transaction, in one round trip, and prepared: Postgres needs 6 µs for it. In one message with
/// BEGIN it would be planned each time, and a transaction took 15 µs longer by that.
pub(super) const LOCK_OUT_LIMITS: &str = "SELECT pg_advisory_xact_lock_shared(7521418671159473016)";

/// As [`LOCK_OUT_LIMITS`], for a change of a limit.
pub(super) const LOCK_OUT_RESERVATIONS: &str = "SELECT pg_advisory_xact_lock(7521418671159473016)";

/// Folds the moves of accounts, of those in the CTE `of` that have at least this many.
macro_rules! fold {
    ($of:expr, $least:literal) => {
        concat!(
            "WITH ",
            $of,
            ", many AS MATERIALIZED (
                SELECT h.key, h.unfolded_from FROM of
                 CROSS JOIN LATERAL (SELECT key, ",
            $crate::spend::account::unfolded_from!(),
            " AS unfolded_from FROM harness_accounts a WHERE a.key = of.key OFFSET 0) h
                 WHERE (SELECT count(*) FROM (SELECT FROM harness_account_moves m
                                               WHERE m.key = h.key AND m.tx >= h.unfolded_from LIMIT ",
            $least,
            ") few) >= ",
            $least,
            "
            ), due AS MATERIALIZED (
                SELECT key FROM harness_accounts WHERE key = ANY(ARRAY(SELECT key FROM many))
                 ORDER BY key FOR NO KEY UPDATE SKIP LOCKED
            ), folded AS (
                DELETE FROM harness_account_moves
                 WHERE ctid = ANY(ARRAY(
                       SELECT m.ctid FROM many d
                        CROSS JOIN LATERAL (SELECT ctid FROM harness_account_moves m
                                             WHERE m.key = d.key AND m.tx >= d.unfolded_from OFFSET 0) m
                        WHERE d.key IN (SELECT key FROM due)))
                RETURNING *
            ), f AS MATERIALIZED (
                SELECT key, sum(spent_microusd) AS spent, sum(held_microusd) AS held,
                       sum(overrun_microusd) AS overrun, max(bound_microusd) AS bound, ",
            $crate::spend::account::newest_bound!(),
            " AS newest_bound
                  FROM folded GROUP BY key
            )
            UPDATE harness_accounts a
               SET spent_microusd = ",
            $crate::spend::account::bounded!("a.spent_microusd + f.spent"),
            ",
                   held_microusd = ",
            $crate::spend::account::bounded!("a.held_microusd + f.held"),
            ",
                   overrun_microusd = ",
            $crate::spend::account::bounded!("a.overrun_microusd + f.overrun"),
            ",
                   bound_microusd = greatest(a.bound_microusd, f.bound),
                   newest_bound_microusd = coalesce(f.newest_bound, a.newest_bound_microusd),
                   folded_tx = pg_snapshot_xmin(pg_current_snapshot()), changed_at = now()
              FROM f WHERE a.key = ANY(ARRAY(SELECT key FROM f)) AND a.key = f.key"
        )
    };
}

/// Folds those accounts of a batch that have many moves: the limited ones, which this transaction has locked, and now
/// and then the others.
///
/// A fold leaves a dead version of the account, which every reader walks over while a snapshot is held somewhere. So
/// it is not done sooner than after 256 moves. Of the moves only the live ones are walked over: a move's transaction
/// is known by its id, and all that are older than the oldest one under way have ended. What they appended is folded,
/// and later readers start behind it. (If another transaction has folded meanwhile, its moves are not deleted again,
/// and so not counted again.)
pub(super) const FOLD: &str = fold!(
    concat!(
        accounts!(),
        ", of AS MATERIALIZED (
            SELECT key FROM accounts, (SELECT random() < 0.05 AS now) others
             WHERE named IS NOT NULL OR budget IS NOT NULL OR others.now)"
    ),
    "256"
);

/// Folds some accounts, however few moves they have. Returns how many there were.
pub(super) const FOLD_SOME: &str = concat!(
    fold!("of AS MATERIALIZED (SELECT DISTINCT key FROM harness_account_moves ORDER BY key LIMIT 1000)", "1"),
    " RETURNING a.key"
);
