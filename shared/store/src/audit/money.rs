//! The rules of money, as the rules of jobs are in `checks`.

use crate::spend::{keys_of_call, unfolded_from};

/// Accounts with the moves that are not folded, and whether all their calls are still there. Retention keeps those of
/// this month. An account that was opened for calls from before may have lost some of them; it has no bound.
macro_rules! accounts {
    () => {
        concat!(
            "SELECT a.key, a.spent_microusd + m.spent AS spent, a.held_microusd + m.held AS held,
                    a.overrun_microusd + m.overrun AS overrun, greatest(a.bound_microusd, m.bound) AS bound,
                    split_part(a.key, ':', 3) = '' AND a.counts_from >= month.starts
                       AND greatest(a.bound_microusd, m.bound) < 9223372036854775807
                    OR split_part(a.key, ':', 3) >= to_char(month.starts AT TIME ZONE zone, 'YYYY-MM') AS is_whole
               FROM (SELECT *, ",
            $crate::spend::unfolded_from!(),
            " AS unfolded_from FROM harness_accounts) a
              CROSS JOIN LATERAL (
                    SELECT coalesce(sum(spent_microusd), 0) AS spent, coalesce(sum(held_microusd), 0) AS held,
                           coalesce(sum(overrun_microusd), 0) AS overrun, coalesce(max(bound_microusd), 0) AS bound
                      FROM harness_account_moves m WHERE m.key = a.key AND m.tx >= a.unfolded_from) m
              CROSS JOIN (SELECT zone, date_trunc('month', now() AT TIME ZONE zone) AT TIME ZONE zone AS starts
                            FROM harness_spend_zone) month"
        )
    };
}

/// Calls without an account are a finding, too. So is a move that no reader finds.
pub(super) const ACCOUNTS: &str = concat!(
    "SELECT coalesce(a.key, c.key), format('%s spent and %s held, its calls: %s and %s',
                                          a.spent, a.held, coalesce(c.spent, 0), coalesce(c.held, 0))
       FROM (",
    accounts!(),
    ") a
       FULL JOIN (SELECT k.key, sum(c.cost_microusd) AS spent,
                         sum(CASE c.state WHEN 'held' THEN c.reserved_microusd ELSE 0 END) AS held,
                         max(c.reserved_at) AS newest
                    FROM harness_calls c ",
    keys_of_call!(),
    " GROUP BY k.key) c ON c.key = a.key
      WHERE (a.key IS NULL AND c.newest >= now() - interval '28 days')
         OR (a.is_whole AND (a.spent, a.held) IS DISTINCT FROM (coalesce(c.spent, 0), coalesce(c.held, 0)))"
);

/// The greatest limit under which a call was granted in the window: a limit that was lowered is no finding.
pub(super) const LIMITS: &str = concat!(
    "SELECT key, format('%s spent and %s held under a limit of %s, with overruns of %s', spent, held, bound, overrun)
       FROM (",
    accounts!(),
    ") a WHERE bound > 0 AND bound < 9223372036854775807 AND spent + held > bound + overrun"
);

/// Postgres's clock may have been set, or a transaction begun before midnight. So it is only the day that is
/// compared.
pub(super) const WINDOWS: &str = "
    SELECT call_id::text, format('job %s: it counts for %s and was reserved at %s', job_id, day, reserved_at)
      FROM harness_calls, harness_spend_zone
     WHERE call_id >= $1 AND day <> (reserved_at AT TIME ZONE zone)::date";

/// A take and what is given back of it end at the same moment, so at no moment can more end than was taken. A request is
/// never given back, so an account of requests has at least those that were reserved since it was opened.
pub(super) const RATES: &str = concat!(
    "WITH moves AS MATERIALIZED (
        SELECT m.account, m.counts_until, m.amount, a.account IS NOT NULL AND m.tx < a.unfolded_from AS is_hidden
          FROM harness_provider_moves m
          LEFT JOIN (SELECT account, ",
    unfolded_from!(),
    " AS unfolded_from FROM harness_provider_rates) a ON a.account = m.account
         WHERE m.counts_until > now() + interval '5 seconds'
    )
    SELECT account, format('%s count until %s', sum(amount), counts_until) FROM moves
     GROUP BY account, counts_until HAVING sum(amount) < 0
    UNION ALL
    SELECT account, format('%s that count until %s are found by no reader', amount, counts_until) FROM moves
     WHERE is_hidden
    UNION ALL
    SELECT a.account, format('%s requests count, and %s were reserved', coalesce(m.level, 0), c.calls)
      FROM harness_provider_rates a
      JOIN (SELECT account, count(*) AS calls
              FROM (SELECT unnest(rate_accounts) AS account, reserved_at FROM harness_calls
                     WHERE rate_accounts IS NOT NULL AND reserved_at > now() - interval '50 seconds') c
              JOIN harness_provider_rates a USING (account)
             WHERE split_part(account, ':', 3) = 'requests' AND reserved_at >= a.opened_at
             GROUP BY account) c ON c.account = a.account
      LEFT JOIN (SELECT account, sum(amount) AS level FROM moves GROUP BY account) m ON m.account = a.account
     WHERE c.calls > coalesce(m.level, 0)"
);

/// A run may have ended whose call is still read to its end, for an hour at most (`USAGE_DRAIN_S`). A settlement that Postgres does
/// not take is tried until its worker stops.
pub(super) const HOLDS: &str = "
    SELECT c.call_id::text, format('job %s: held under epoch %s by worker %s, which is %s',
                                   c.job_id, c.epoch, c.worker_id, coalesce(w.state, 'unknown'))
      FROM harness_calls c LEFT JOIN harness_workers w ON w.worker_id = c.worker_id
     WHERE c.state = 'held'
       AND (w.worker_id IS NULL
            OR (w.state = 'stopped' OR w.rescued_at IS NOT NULL)
               AND w.ended_at < now() - $5 * interval '1 millisecond')
    UNION ALL
    SELECT c.call_id::text, format('job %s: held under epoch %s, and its run has epoch %s', c.job_id, c.epoch, j.epoch)
      FROM harness_calls c JOIN harness_jobs j ON j.job_id = c.job_id
     WHERE c.state = 'held' AND j.epoch <> c.epoch
    UNION ALL
    SELECT c.call_id::text, format('job %s: held by worker %s, and its run is over since %s', c.job_id, c.worker_id, r.over_since)
      FROM harness_calls c
      JOIN (SELECT job_id, finished_at AS over_since FROM harness_results
            UNION ALL
            SELECT job_id, state_since FROM harness_jobs WHERE state <> 'running') r ON r.job_id = c.job_id
      JOIN harness_workers w ON w.worker_id = c.worker_id
     WHERE c.state = 'held' AND w.state NOT IN ('dead', 'stopped') AND r.over_since < now() - interval '2 hours'";

/// What a checkpoint counts was metered by the run's gateway, which has reserved before and settles soon after. A call
/// that the gateway could not settle counted with its reservation there, even if an operator has settled it for less.
pub(super) const PAID: &str = "
    SELECT u.job_id::text, format('session %s: its checkpoints cost %s microdollars, its calls %s', u.session_id, u.cost, c.cost)
      FROM (SELECT session_id, job_id,
                   sum(CASE WHEN state IN ('held', 'unknown') OR l.call IS NOT NULL
                            THEN greatest(cost_microusd, reserved_microusd) ELSE cost_microusd END) AS cost
              FROM harness_calls
              LEFT JOIN (SELECT DISTINCT detail->>'call' AS call FROM harness_audit_log WHERE act = 'call_settled') l
                     ON l.call = call_id::text
             GROUP BY session_id, job_id) c
      JOIN (SELECT job_id, session_id, cost_microusd AS cost FROM harness_results WHERE job_id >= $1
            UNION ALL
            SELECT j.job_id, j.session_id, coalesce(j.folded_cost_microusd, 0) + coalesce(k.cost, 0)
              FROM harness_jobs j
              LEFT JOIN (SELECT job_id, session_id, sum(cost_microusd) AS cost FROM harness_checkpoints
                          GROUP BY job_id, session_id) k ON k.job_id = j.job_id AND k.session_id = j.session_id) u ON u.job_id = c.job_id AND u.session_id = c.session_id
     WHERE u.cost > c.cost";

/// Upkeep looks every quarter of an hour.
pub(super) const CACHE: &str = "
    SELECT encode(key, 'hex'), format('tenant %s: it was to be kept until %s', tenant, keep_until)
      FROM harness_cache WHERE keep_until < now() - interval '2 hours'";
