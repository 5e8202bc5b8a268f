//! The rules, each as one statement that selects what breaks it: an id and what is wrong.
//!
//! The parameters are those of `Bounds` in the module above. `now()` is the moment of the snapshot.

use serde::Serialize;

use self::Kind::{Conservation, Liveness};
use super::money::{ACCOUNTS, CACHE, HOLDS, LIMITS, PAID, RATES, WINDOWS};
use crate::access::log_hash;

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The ledger contradicts itself.
    Conservation,
    /// The ledger is right, but some process does not do its part.
    Liveness,
}

/// One rule.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) rule: &'static str,
    pub(super) sql: &'static str,
}

const fn check(kind: Kind, name: &'static str, rule: &'static str, sql: &'static str) -> Check {
    Check { name, kind, rule, sql }
}

pub(super) const CHECKS: [Check; 47] = [
    check(Conservation, "one_place", "no job is live and ended", ONE_PLACE),
    check(Conservation, "leases", "a running job's worker is known, and neither dead nor stopped", LEASES),
    check(Conservation, "drained", "a worker that has confirmed that it is drained runs nothing", DRAINED),
    check(Conservation, "one_runner", "at most one job of a session has begun", ONE_RUNNER),
    check(
        Conservation,
        "begun",
        "a job that runs or waits for a person has an epoch, a blocked one has none",
        BEGUN,
    ),
    check(
        Conservation,
        "questions",
        "a job waits for a person exactly while a question of it is open",
        QUESTIONS,
    ),
    check(
        Conservation,
        "places",
        "only a job that is not due for the first time has no place in its session",
        PLACES,
    ),
    check(Conservation, "lanes", "a job waits in the lane of those that have begun exactly if it has", LANES),
    check(Conservation, "turns", "a blocked job waits for another job of its session", TURNS),
    check(Conservation, "sessions", "every job that was claimed or has ended has its session", SESSIONS),
    check(Conservation, "ends", "a session has as many results as it counts ends", ENDS),
    check(
        Conservation,
        "spend",
        "a session and its unfolded checkpoints equal the sum of its results",
        SPEND,
    ),
    check(Conservation, "unfolded", "the checkpoints that an ended job left add up to its result", UNFOLDED),
    check(Conservation, "runs", "a success has a run, and only a run uses anything", RUNS),
    check(Conservation, "envelopes", "an envelope names its own job and session", ENVELOPES),
    check(Conservation, "tenants", "a row, its session's key and its envelope name the same tenant", TENANTS),
    check(Conservation, "checkpoints", "a checkpoint has its job and its session", CHECKPOINTS),
    check(Conservation, "deltas", "the checkpoints of a run are numbered without a gap", DELTAS),
    check(
        Conservation,
        "history",
        "folded checkpoints are whole runs, older than those left to fold, and add up to their jobs' results",
        HISTORY,
    ),
    check(
        Conservation,
        "folds",
        "what was folded within the run of a live job is in the history, and the state before it is kept",
        FOLDS,
    ),
    check(
        Conservation,
        "blobs",
        "what refers to a blob finds it, with the content that its hash stands for",
        BLOBS,
    ),
    check(Conservation, "fencing", "no checkpoint is newer than its job's last run", FENCING),
    check(Conservation, "epochs", "an epoch belongs to one job", EPOCHS),
    check(Conservation, "sequence", "no epoch is ahead of the sequence that gives epochs out", SEQUENCE),
    check(Conservation, "guards", "the schema's constraints and unique indexes are valid", GUARDS),
    check(Conservation, "log", "the operators' log is a chain: each row fits the one before it", LOG),
    check(Conservation, "keys", "a key belongs to a tenant", KEYS),
    check(Conservation, "taken_keys", "a job's key finds a job of its tenant", TAKEN_KEYS),
    check(Conservation, "labels", "a label is on a job of its tenant", LABELS),
    check(Conservation, "deliveries", "an end has its delivery to each webhook that wants it", DELIVERIES),
    check(Conservation, "accounts", "an account equals its calls", ACCOUNTS),
    check(Conservation, "limits", "no account is above its limit, but for overruns", LIMITS),
    check(Conservation, "windows", "a call counts in the window in which it was reserved", WINDOWS),
    check(
        Conservation,
        "holds",
        "a call is held by a worker that is neither dead nor stopped, and not long after its run",
        HOLDS,
    ),
    check(
        Conservation,
        "rates",
        "an account of a rate limit has what calls took and did not give back",
        RATES,
    ),
    check(Conservation, "paid", "what a job's checkpoints cost is no more than what its calls cost", PAID),
    check(Liveness, "rescue", "a lease that has run out is noticed", RESCUE),
    check(Liveness, "inbox", "what was enqueued by SQL is taken in, while its tenant has room", INBOX),
    check(Liveness, "schedules", "a schedule that is due is fired while a process leads", SCHEDULES),
    check(
        Liveness,
        "lines",
        "what waits in a line is looked at, and nothing waits where there is none",
        LINES,
    ),
    check(Liveness, "due", "a due job is published", DUE),
    check(Liveness, "publishing", "a publish is confirmed or given up", PUBLISHING),
    check(Liveness, "queued", "a queued job is claimed", QUEUED),
    check(Liveness, "unwanted", "a waiting job that is cancelled or overdue is ended", UNWANTED),
    check(Liveness, "cache", "an answer of the cache goes when it is too old", CACHE),
    check(Liveness, "answers", "a question is closed when its time is over, and with its job", ANSWERS),
    check(Liveness, "partitions", "results, labels, calls and history have a partition to go to", PARTITIONS),
];

const ONE_PLACE: &str = "
    SELECT j.job_id::text, format('session %s: %s and %s', j.session_id, j.state, r.state)
      FROM harness_jobs j JOIN harness_results r ON r.job_id = j.job_id";

/// A missing row is always wrong: a worker's row outlives its jobs. A worker may end while it holds a job,
/// and rescue takes the job a moment later.
const LEASES: &str = "
    SELECT j.job_id::text,
           CASE WHEN w.worker_id IS NULL THEN format('session %s: worker %s is unknown', j.session_id, j.worker_id)
                ELSE format('session %s: worker %s is %s since %s', j.session_id, j.worker_id, w.state, w.ended_at) END
      FROM harness_jobs j LEFT JOIN harness_workers w ON w.worker_id = j.worker_id
     WHERE j.state = 'running'
       AND (w.worker_id IS NULL
            OR (w.state IN ('dead', 'stopped')
                AND greatest(w.ended_at, j.state_since) < now() - $5 * interval '1 millisecond'))";

/// A drained worker may be scaled away. Without a valid mark it is no longer drained.
const DRAINED: &str = "
    SELECT j.job_id::text, format('session %s: worker %s is drained since %s', j.session_id, w.worker_id, w.drained_at)
      FROM harness_jobs j JOIN harness_workers w ON w.worker_id = j.worker_id
     WHERE j.state = 'running' AND w.drained_at IS NOT NULL AND w.drain_until > now()";

const ONE_RUNNER: &str = "
    SELECT job_id::text, format('session %s: one of %s that have begun, %s', session_id, begun, state)
      FROM (SELECT *, count(*) OVER (PARTITION BY session_id) AS begun
              FROM harness_jobs WHERE epoch > 0 OR state = 'running') j
     WHERE begun > 1";

/// Rescue looks for jobs with an epoch, and releases only those without.
const BEGUN: &str = "
    SELECT job_id::text, format('session %s: %s under epoch %s', session_id, state, epoch) FROM harness_jobs
     WHERE (state IN ('running', 'awaiting_input') AND epoch <= 0) OR (state = 'blocked' AND epoch <> 0) OR epoch < 0";

/// A question of a job that has ended is another matter: an older binary ends a job and leaves it.
const QUESTIONS: &str = "
    SELECT job_id::text, format('session %s: awaiting_input since %s, and asks nothing', session_id, state_since)
      FROM harness_jobs j
     WHERE state = 'awaiting_input'
       AND NOT EXISTS (SELECT FROM harness_inputs i WHERE i.job_id = j.job_id AND i.outcome IS NULL)
    UNION ALL
    SELECT j.job_id::text, format('session %s: call %s is open, and the job is %s', j.session_id, i.call_id, j.state)
      FROM harness_inputs i JOIN harness_jobs j ON j.job_id = i.job_id
     WHERE i.outcome IS NULL AND j.state <> 'awaiting_input'";

const PLACES: &str = "
    SELECT job_id::text, format('session %s: %s under epoch %s, without a place', session_id, state, epoch)
      FROM harness_jobs WHERE seq = 9223372036854775807 AND (state <> 'scheduled' OR epoch > 0)";

const LANES: &str = "
    SELECT job_id::text, format('session %s: waiting in lane %s under epoch %s', session_id, lane, epoch)
      FROM harness_jobs WHERE state = 'waiting' AND ((epoch > 0) <> (lane = 0) OR lane NOT BETWEEN 0 AND 3)";

/// The one that waits longest stands for its pool: the admitter has looked at none of it.
const LINES: &str = "
    SELECT job_id::text, CASE WHEN line IS NOT TRUE THEN format('waiting since %s, and pool %s has no line', state_since, pool)
                              ELSE format('waiting since %s, and the line of pool %s was looked at last at %s',
                                          state_since, pool, coalesce(seen_at::text, 'no time')) END
      FROM (SELECT DISTINCT ON (j.pool) j.job_id, j.pool, greatest(j.state_since, p.changed_at) AS state_since, p.line,
                   coalesce(p.seen_at, p.changed_at) AS seen_at
              FROM harness_jobs j LEFT JOIN harness_pools p ON p.pool = j.pool
             WHERE j.state = 'waiting' ORDER BY j.pool, j.state_since) first
     WHERE state_since < now() - $5 * interval '1 millisecond'
       AND (line IS NOT TRUE OR coalesce(seen_at < now() - $5 * interval '1 millisecond', true))";

/// Every transaction that takes away what a job waits for also releases the job, so this holds at every
/// moment.
const TURNS: &str = "
    SELECT b.job_id::text, format('session %s: blocked since %s, by nothing', b.session_id, b.state_since)
      FROM harness_jobs b
     WHERE b.state = 'blocked'
       AND NOT EXISTS (SELECT FROM harness_jobs o
                        WHERE o.session_id = b.session_id AND (o.seq < b.seq OR o.epoch > 0))";

/// Accepted jobs need no session before their first claim. A job that was cancelled before it was seen names
/// no session.
const SESSIONS: &str = "
    SELECT job_id::text, format('session %s: %s, and no such session', session_id, state) FROM harness_jobs j
     WHERE session_id <> '' AND (epoch > 0 OR state IN ('blocked', 'running', 'awaiting_input'))
       AND NOT EXISTS (SELECT FROM harness_sessions s WHERE s.session_id = j.session_id)
    UNION ALL
    SELECT job_id::text, format('%s, without a session', state) FROM harness_jobs
     WHERE session_id = '' AND (state <> 'scheduled' OR asked IS DISTINCT FROM 'cancel' OR epoch <> 0)
    UNION ALL
    SELECT job_id::text, format('session %s: %s, and no such session', session_id, state) FROM harness_results r
     WHERE job_id >= $1 AND session_id <> ''
       AND NOT EXISTS (SELECT FROM harness_sessions s WHERE s.session_id = r.session_id)
    UNION ALL
    SELECT job_id::text, format('%s, without a session', state) FROM harness_results
     WHERE job_id >= $1 AND session_id = '' AND state <> 'cancelled'";

/// Sessions, with the sums of their results (`r`) and of the checkpoints of their ended jobs (`c`), and the live job in whose
/// run they were folded (`l`).
macro_rules! sums {
    ($select:literal) => {
        concat!(
            $select,
            "
      FROM harness_sessions s
      LEFT JOIN (SELECT session_id, count(*) AS ends, sum(iterations) AS iterations, sum(cost_microusd) AS cost,
                        sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out
                   FROM harness_results
                  WHERE $2 = '-infinity' OR session_id IN
                        (SELECT session_id FROM harness_sessions WHERE last_updated >= to_timestamp($2))
                  GROUP BY session_id) r ON r.session_id = s.session_id
      LEFT JOIN (SELECT session_id, sum(iterations) AS iterations, sum(cost_microusd) AS cost,
                        sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out
                   FROM harness_checkpoints c
                  WHERE NOT EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = c.job_id)
                  GROUP BY session_id) c ON c.session_id = s.session_id
      LEFT JOIN harness_jobs l ON l.session_id = s.session_id AND l.folded_epoch IS NOT NULL
     WHERE s.last_updated >= to_timestamp($2)"
        )
    };
}

/// A session that was made by the end of jobs that were never claimed says nothing about their age.
const ENDS: &str = concat!(
    sums!("SELECT s.session_id, format('%s ends counted, %s results there', s.version, coalesce(r.ends, 0))"),
    " AND (s.version < coalesce(r.ends, 0)
            OR (s.version > coalesce(r.ends, 0)
                AND s.created_at >= to_timestamp($4) AND s.last_updated > s.created_at))"
);

const SPEND: &str = concat!(
    "SELECT session_id, format('folded and left to fold: %s iterations, %s microdollars, %s and %s tokens; results: %s, %s, %s and %s',
                               b_iterations, b_cost, b_in, b_out, r_iterations, r_cost, r_in, r_out)
       FROM (",
    sums!(
        "SELECT s.session_id, s.version, coalesce(r.ends, 0) AS ends,
                s.iteration_count + coalesce(c.iterations, 0) - coalesce(l.folded_iterations, 0) AS b_iterations,
                s.cost_microusd + coalesce(c.cost, 0) - coalesce(l.folded_cost_microusd, 0) AS b_cost,
                s.input_tokens + coalesce(c.tokens_in, 0) - coalesce(l.folded_input_tokens, 0) AS b_in,
                s.output_tokens + coalesce(c.tokens_out, 0) - coalesce(l.folded_output_tokens, 0) AS b_out,
                coalesce(r.iterations, 0) AS r_iterations, coalesce(r.cost, 0) AS r_cost,
                coalesce(r.tokens_in, 0) AS r_in, coalesce(r.tokens_out, 0) AS r_out"
    ),
    ") t
      WHERE b_iterations < r_iterations OR b_cost < r_cost OR b_in < r_in OR b_out < r_out
         OR (ends = version
             AND (b_iterations, b_cost, b_in, b_out) IS DISTINCT FROM (r_iterations, r_cost, r_in, r_out))"
);

/// A fold takes all of a session's checkpoints, so an ended job's are all there or all gone, but for those that were
/// folded within its run.
const UNFOLDED: &str = "
    SELECT r.job_id::text, format('session %s: %s iterations and %s microdollars in its result, %s and %s in its checkpoints',
                                  r.session_id, r.iterations, r.cost_microusd, c.iterations, c.cost)
      FROM (SELECT job_id, sum(iterations) AS iterations, sum(cost_microusd) AS cost,
                   sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out
              FROM (SELECT job_id, iterations, cost_microusd, input_tokens, output_tokens FROM harness_checkpoints
                    UNION ALL
                    SELECT job_id, iterations, cost_microusd, input_tokens, output_tokens FROM harness_history h
                     WHERE job_id = folded_by
                       AND EXISTS (SELECT FROM harness_checkpoints k
                                    WHERE k.session_id = h.session_id AND k.job_id = h.job_id)) t
             GROUP BY job_id) c
      JOIN harness_results r ON r.job_id = c.job_id
     WHERE (r.iterations, r.cost_microusd, r.input_tokens, r.output_tokens)
           IS DISTINCT FROM (c.iterations, c.cost, c.tokens_in, c.tokens_out)";

/// A job that ends without a worker has no worker's id. A job that was never claimed has no epoch and no
/// start, and has used nothing.
const RUNS: &str = "
    SELECT job_id::text, format('session %s: %s under epoch %s by worker %s, started %s, %s iterations, %s microdollars',
                                session_id, state, epoch, coalesce(worker_id::text, 'none'),
                                coalesce(started_at::text, 'never'), iterations, cost_microusd)
      FROM harness_results
     WHERE job_id >= $1
       AND ((state = 'succeeded' AND worker_id IS NULL)
            OR (worker_id IS NOT NULL AND epoch <= 0)
            OR (epoch > 0) <> (started_at IS NOT NULL)
            OR (epoch <= 0 AND (iterations <> 0 OR cost_microusd <> 0 OR input_tokens <> 0 OR output_tokens <> 0)))";

/// The tenant in a session's key.
macro_rules! tenant_in_key {
    () => {
        "CASE WHEN session_id LIKE '~%' THEN split_part(substr(session_id, 2), '/', 1) ELSE 'default' END"
    };
}

/// A success keeps no envelope. The envelope of a job that was cancelled before it was seen is empty.
const TENANTS: &str = concat!(
    "
    SELECT job_id::text, format('session %s: tenant %s, in its envelope %s', session_id, tenant,
                                coalesce(message->>'tenant', 'default'))
      FROM (SELECT job_id, session_id, tenant, message FROM harness_jobs
            UNION ALL
            SELECT job_id, session_id, tenant, message FROM harness_results WHERE job_id >= $1) j
     WHERE tenant <> ",
    tenant_in_key!(),
    " OR (message IS NOT NULL AND tenant <> coalesce(message->>'tenant', 'default'))
    UNION ALL
    SELECT session_id, format('tenant %s', tenant) FROM harness_sessions
     WHERE last_updated >= to_timestamp($2) AND tenant <> ",
    tenant_in_key!()
);

/// A success keeps no envelope. The key of another tenant's session holds the tenant.
const ENVELOPES: &str = "
    SELECT job_id::text, format('session %s: its envelope names job %s of session %s',
                                session_id, message->>'job_id', message->>'session_id')
      FROM (SELECT job_id, session_id, message FROM harness_jobs WHERE session_id <> ''
            UNION ALL
            SELECT job_id, session_id, message FROM harness_results
             WHERE job_id >= $1 AND session_id <> '' AND message IS NOT NULL) m
     WHERE message->>'job_id' IS DISTINCT FROM job_id::text
        OR message->>'session_id' IS DISTINCT FROM regexp_replace(session_id, '^~[^/]*/', '')";

/// A checkpoint that is never folded outlives its job's result.
const CHECKPOINTS: &str = "
    SELECT c.job_id::text,
           format('session %s: %s checkpoints under epoch %s, and no such %s', c.session_id, c.rows, c.epoch,
                  CASE WHEN s.session_id IS NULL THEN 'session' ELSE 'job in it' END)
      FROM (SELECT session_id, job_id, epoch, count(*) AS rows
              FROM harness_checkpoints GROUP BY session_id, job_id, epoch) c
      LEFT JOIN harness_sessions s ON s.session_id = c.session_id
      LEFT JOIN harness_jobs j ON j.job_id = c.job_id AND j.session_id = c.session_id
      LEFT JOIN harness_results r ON r.job_id = c.job_id AND r.session_id = c.session_id
     WHERE s.session_id IS NULL OR (c.job_id >= $3 AND j.job_id IS NULL AND r.job_id IS NULL)";

/// The first ones of a run may have been folded within it. Retention takes those with the result of their job.
const DELTAS: &str = "
    SELECT job_id::text, format('session %s: %s checkpoints under epoch %s, numbered from %s to %s',
                                session_id, rows, epoch, first, last)
      FROM (SELECT session_id, job_id, epoch, count(*) AS rows, min(ordinal) AS first, max(ordinal) AS last
              FROM harness_checkpoints GROUP BY session_id, job_id, epoch) c
     WHERE last - first <> rows - 1
        OR (first <> 0 AND job_id >= $3
            AND NOT EXISTS (SELECT FROM harness_history h
                             WHERE h.session_id = c.session_id AND h.epoch = c.epoch AND h.ordinal = c.first - 1
                               AND h.job_id = c.job_id))";

/// A fold takes all of a session's checkpoints, so what is left to fold is newer than all that is folded. A job keeps its
/// turn to its end, so its checkpoints are folded within its run, with it or after it; those of the first kind go with its
/// result, and the others perhaps later. Those of a job that was rolled back while it waited for a person are moved alone.
const HISTORY: &str = "
    WITH runs AS (
        SELECT session_id, job_id, epoch, count(*) AS rows, min(ordinal) AS first, max(ordinal) AS last,
               sum(iterations) AS iterations, sum(cost_microusd) AS cost, sum(input_tokens) AS tokens_in,
               sum(output_tokens) AS tokens_out
          FROM harness_history WHERE folded_by >= $1 GROUP BY session_id, job_id, epoch
    )
    SELECT job_id::text, format('session %s: %s folded checkpoints under epoch %s, numbered from %s to %s',
                                session_id, rows, epoch, first, last)
      FROM runs WHERE (first <> 0 AND job_id >= greatest($1, $3)) OR last - first <> rows - 1
    UNION ALL
    SELECT c.job_id::text, format('session %s: epoch %s is left to fold from %s, and epoch %s is folded to %s',
                                  c.session_id, c.place[1], c.place[2], h.place[1], h.place[2])
      FROM (SELECT session_id, job_id, min(ARRAY[epoch, ordinal]) AS place
              FROM harness_checkpoints GROUP BY session_id, job_id, epoch) c
      JOIN (SELECT session_id, max(ARRAY[epoch, ordinal]) AS place FROM harness_history
             WHERE folded_by >= $1 AND NOT undone GROUP BY session_id) h ON h.session_id = c.session_id
     WHERE c.place <= h.place
    UNION ALL
    SELECT r.job_id::text, format('session %s: %s iterations and %s microdollars in its result, %s and %s in its history',
                                  r.session_id, r.iterations, r.cost_microusd, h.iterations, h.cost)
      FROM (SELECT job_id, sum(iterations) AS iterations, sum(cost) AS cost, sum(tokens_in) AS tokens_in,
                   sum(tokens_out) AS tokens_out
              FROM (SELECT job_id, iterations, cost, tokens_in, tokens_out FROM runs
                    UNION ALL
                    SELECT job_id, iterations, cost_microusd, input_tokens, output_tokens FROM harness_checkpoints
                     WHERE job_id IN (SELECT job_id FROM runs)) t
             GROUP BY job_id) h
      JOIN harness_results r ON r.job_id = h.job_id
     WHERE r.job_id >= $1
       AND (r.iterations, r.cost_microusd, r.input_tokens, r.output_tokens)
           IS DISTINCT FROM (h.iterations, h.cost, h.tokens_in, h.tokens_out)";

const FOLDS: &str = "
    WITH folded AS (
        SELECT folded_by, max(ARRAY[epoch, ordinal]) AS place, sum(iterations) AS iterations, sum(cost_microusd) AS cost,
               sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out
          FROM harness_history h
         WHERE job_id = folded_by AND EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = h.folded_by)
         GROUP BY folded_by
    )
    SELECT j.job_id::text, format('session %s: %s iterations and %s microdollars were folded up to %s of epoch %s, %s and %s are in the history%s',
                                  j.session_id, j.folded_iterations, j.folded_cost_microusd, j.folded_ordinal, j.folded_epoch,
                                  coalesce(f.iterations, 0), coalesce(f.cost, 0),
                                  CASE WHEN j.before_memory IS NULL OR j.before_context IS NULL OR j.before_progress IS NULL
                                       THEN ', and the state before it is not there' END)
      FROM harness_jobs j LEFT JOIN folded f ON f.folded_by = j.job_id
     WHERE (j.folded_epoch IS NOT NULL OR f.folded_by IS NOT NULL)
       AND (ARRAY[j.folded_epoch, j.folded_ordinal] IS DISTINCT FROM f.place
            OR (j.folded_iterations, j.folded_cost_microusd, j.folded_input_tokens, j.folded_output_tokens)
               IS DISTINCT FROM (f.iterations, f.cost, f.tokens_in, f.tokens_out)
            OR j.before_memory IS NULL OR j.before_context IS NULL OR j.before_progress IS NULL)";

/// What the history refers to need not be live.
const BLOBS: &str = "
    SELECT r.session_id, format('%s refers to blob %s, which is %s', r.what, encode(r.hash, 'hex'),
                                CASE WHEN b.hash IS NULL THEN 'not there' ELSE 'not live' END)
      FROM (SELECT session_id, unnest(blobs) AS hash, true AS live, 'its state' AS what FROM harness_sessions
             WHERE blobs IS NOT NULL AND last_updated >= to_timestamp($2)
            UNION
            SELECT session_id, unnest(blobs), true, 'a checkpoint' FROM harness_checkpoints WHERE blobs IS NOT NULL
            UNION
            SELECT session_id, unnest(before_blobs), true, 'the state before its live job' FROM harness_jobs
             WHERE before_blobs IS NOT NULL
            UNION
            SELECT session_id, unnest(blobs), false, 'its history' FROM harness_history
             WHERE folded_by >= $1 AND blobs IS NOT NULL) r
      LEFT JOIN harness_blobs b ON b.session_id = r.session_id AND b.hash = r.hash
     WHERE b.hash IS NULL OR (r.live AND NOT b.live)
    UNION ALL
    SELECT session_id, format('the content of blob %s has another hash', encode(hash, 'hex')) FROM harness_blobs
     WHERE created_at >= to_timestamp($2) AND hash <> sha256(convert_to(content::text, 'UTF8'))";

const FENCING: &str = "
    SELECT c.job_id::text, format('session %s: %s checkpoints under epoch %s, its last run had %s',
                                  c.session_id, c.rows, c.epoch, coalesce(j.epoch, r.epoch))
      FROM (SELECT session_id, job_id, epoch, count(*) AS rows
              FROM harness_checkpoints GROUP BY session_id, job_id, epoch) c
      LEFT JOIN harness_jobs j ON j.job_id = c.job_id
      LEFT JOIN harness_results r ON r.job_id = c.job_id
     WHERE c.epoch <= 0 OR c.epoch > coalesce(j.epoch, r.epoch)";

/// The epochs of earlier runs are known from what they checkpointed. A job in both places is left to
/// `one_place`.
const EPOCHS: &str = "
    WITH given AS NOT MATERIALIZED (
        SELECT epoch, job_id, session_id FROM harness_jobs WHERE epoch > 0
        UNION ALL
        SELECT epoch, job_id, session_id FROM harness_results r WHERE job_id >= $1 AND epoch > 0
           AND NOT EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = r.job_id)
        UNION ALL
        SELECT DISTINCT epoch, job_id, session_id FROM harness_checkpoints c WHERE epoch > 0
           AND NOT EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = c.job_id AND j.epoch = c.epoch)
           AND NOT EXISTS (SELECT FROM harness_results r WHERE r.job_id = c.job_id AND r.epoch = c.epoch)
    )
    SELECT g.job_id::text, format('session %s: epoch %s is not its alone', g.session_id, g.epoch)
      FROM (SELECT epoch FROM given GROUP BY epoch HAVING count(*) > 1) twice JOIN given g ON g.epoch = twice.epoch";

/// The sequence is read as it is now, which is never earlier than the snapshot.
const SEQUENCE: &str = "
    SELECT job_id::text, format('session %s: epoch %s, the sequence is at %s', session_id, epoch, last_value)
      FROM (SELECT epoch, job_id, session_id FROM harness_jobs
            UNION ALL
            SELECT epoch, job_id, session_id FROM harness_results WHERE job_id >= $1
            UNION ALL
            SELECT DISTINCT epoch, job_id, session_id FROM harness_checkpoints) given, harness_epoch
     WHERE epoch > last_value";

/// Constraints are found by name. An index of the partitioned table is valid when it is on every partition.
const GUARDS: &str = "
    SELECT wanted.name, format('on %s: %s', wanted.tab,
                               CASE WHEN c.oid IS NULL AND i.indexrelid IS NULL THEN 'is not there'
                                    WHEN i.indexrelid IS NOT NULL AND NOT i.indisunique THEN 'is not unique'
                                    ELSE 'is not valid' END)
      FROM (VALUES ('harness_jobs', 'harness_jobs_pkey'), ('harness_jobs', 'harness_jobs_one_begun'),
                   ('harness_jobs', 'harness_jobs_check'), ('harness_jobs', 'harness_jobs_state_check'),
                   ('harness_jobs', 'harness_jobs_asked_check'),
                   ('harness_results', 'harness_results_pkey'), ('harness_results', 'harness_results_state_check'),
                   ('harness_sessions', 'harness_sessions_pkey'), ('harness_checkpoints', 'harness_checkpoints_pkey'),
                   ('harness_blobs', 'harness_blobs_pkey'),
                   ('harness_workers', 'harness_workers_pkey'), ('harness_workers', 'harness_workers_state_check'),
                   ('harness_workers', 'harness_workers_lease_ms_check'),
                   ('harness_tenants', 'harness_tenants_pkey'), ('harness_taken_keys', 'harness_taken_keys_pkey'),
                   ('harness_pools', 'harness_pools_pkey'), ('harness_limits', 'harness_limits_pkey'),
                   ('harness_limits', 'harness_limits_most_check'),
                   ('harness_inbox', 'harness_inbox_job'), ('harness_roles', 'harness_roles_pkey'),
                   ('harness_schedules', 'harness_schedules_pkey'), ('harness_schedules', 'harness_schedules_name'),
                   ('harness_schedules', 'harness_schedules_times'), ('harness_schedules', 'harness_schedules_next'),
                   ('harness_schedules', 'harness_schedules_catch_up_check'),
                   ('harness_schedules', 'harness_schedules_overlap_check'),
                   ('harness_rates', 'harness_rates_pkey'), ('harness_labels', 'harness_labels_pkey'),
                   ('harness_audit_log', 'harness_audit_log_pkey'), ('harness_api_keys', 'harness_api_keys_pkey'),
                   ('harness_api_keys', 'harness_api_keys_scopes_check'),
                   ('harness_webhooks', 'harness_webhooks_pkey'), ('harness_webhooks', 'harness_webhooks_states_check'),
                   ('harness_deliveries', 'harness_deliveries_pkey'),
                   ('harness_deliveries', 'harness_deliveries_state_check'),
                   ('harness_calls', 'harness_calls_pkey'), ('harness_calls', 'harness_calls_state_check'),
                   ('harness_calls', 'harness_calls_check'), ('harness_calls', 'harness_calls_check1'),
                   ('harness_accounts', 'harness_accounts_pkey'), ('harness_cache', 'harness_cache_pkey'),
                    ('harness_budgets', 'harness_budgets_pkey'),
                   ('harness_provider_keys', 'harness_provider_keys_pkey'),
                   ('harness_provider_keys', 'harness_provider_keys_shut_for_check'),
                   ('harness_provider_rates', 'harness_provider_rates_pkey'),
                   ('harness_provider_rates', 'harness_provider_rates_learnt_check')) wanted(tab, name)
      LEFT JOIN pg_constraint c ON c.conrelid = to_regclass(wanted.tab) AND c.conname = wanted.name
      LEFT JOIN pg_index i ON i.indrelid = to_regclass(wanted.tab) AND i.indexrelid = to_regclass(wanted.name)
     WHERE coalesce(c.convalidated, i.indexrelid IS NOT NULL) IS NOT TRUE
        OR (i.indisvalid AND i.indisready AND i.indisunique) IS FALSE
     UNION ALL
    SELECT wanted.name, format('on %s: %s', wanted.tab, CASE WHEN t.oid IS NULL THEN 'is not there' ELSE 'is disabled' END)
      FROM (VALUES ('harness_audit_log', 'harness_audit_log_append'), ('harness_audit_log', 'harness_audit_log_keep'),
                   ('harness_jobs', 'harness_jobs_not_due'), ('harness_jobs', 'harness_jobs_due_now')) wanted(tab, name)
      LEFT JOIN pg_trigger t ON t.tgrelid = to_regclass(wanted.tab) AND t.tgname = wanted.name
     WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')";

/// Names only the first row, because one that was changed or taken out may put all later ones in doubt. Rows before `$2` are left out, and the first one after it fits by its
/// own hash. A chain whose last rows were taken out fits: only a hash that was kept elsewhere shows that.
const LOG: &str = concat!(
    "
    SELECT format('row %s', id),
           format('%s by %s at %s: %s', act, actor, at,
                  CASE WHEN hash IS DISTINCT FROM own THEN 'its hash does not fit what it says'
                       WHEN before_id IS NULL THEN 'the rows before it are not there'
                       WHEN id <> before_id + 1 THEN format('the row before it is %s', before_id)
                       ELSE 'it does not hold the hash of the row before it' END)
      FROM (SELECT id, at, actor, act, hash, prev_hash, lag(id) OVER chain AS before_id, lag(hash) OVER chain AS before_hash,
                   ",
    log_hash!(),
    " AS own,
                   ($2 = '-infinity' OR id = 1) AS is_start
              FROM harness_audit_log
             WHERE id >= (SELECT min(id) FROM harness_audit_log WHERE at >= to_timestamp($2))
            WINDOW chain AS (ORDER BY id)) l
     WHERE hash IS DISTINCT FROM own
        OR (before_id IS NULL AND is_start AND (id <> 1 OR prev_hash <> decode(repeat('00', 32), 'hex')))
        OR (before_id IS NOT NULL AND (id <> before_id + 1 OR prev_hash IS DISTINCT FROM before_hash))
     ORDER BY l.id LIMIT 1"
);

const KEYS: &str = "
    SELECT k.id, format('a key of tenant %s, which is not there', k.tenant) FROM harness_api_keys k
     WHERE NOT EXISTS (SELECT FROM harness_tenants t WHERE t.name = k.tenant)";

/// A result may have been dropped before its key. The key's row is deleted within a minute or so after it has expired.
const TAKEN_KEYS: &str = "
    SELECT k.job_id::text, format('%s key of tenant %s: %s', k.kind, k.tenant,
                                  coalesce('its job is of tenant ' || coalesce(j.tenant, r.tenant), 'no such job'))
      FROM harness_taken_keys k
      LEFT JOIN harness_jobs j ON j.job_id = k.job_id
      LEFT JOIN harness_results r ON r.job_id = k.job_id
     WHERE k.expires_at > now() AND k.job_id >= $3 AND k.tenant IS DISTINCT FROM coalesce(j.tenant, r.tenant)";

/// A job's labels are written with it and stay until retention takes both.
const LABELS: &str = "
    SELECT l.job_id::text, format('label %s of tenant %s: %s', l.label, l.tenant,
                                  coalesce('its job is of tenant ' || coalesce(j.tenant, r.tenant), 'no such job'))
      FROM harness_labels l
      LEFT JOIN harness_jobs j ON j.job_id = l.job_id
      LEFT JOIN harness_results r ON r.job_id = l.job_id
     WHERE l.job_id >= greatest($1, $3) AND l.tenant IS DISTINCT FROM coalesce(j.tenant, r.tenant)";

/// Only what was written for as long as deliveries are kept is looked at. An end bears the time at which its transaction
/// began, so the first minute of a webhook is left out. A delivery may outlive the result that retention took.
/// One whose id is no UUIDv7 was written by hand.
const DELIVERIES: &str = "
    SELECT r.job_id::text, format('session %s: %s at %s, and no delivery to webhook %s',
                                  r.session_id, r.state, r.finished_at, w.id)
      FROM harness_webhooks w JOIN harness_results r ON r.tenant = w.tenant AND r.state = ANY(w.states)
     WHERE w.disabled_at IS NULL AND r.job_id >= $1
       AND r.finished_at > greatest(w.enabled_since + interval '1 minute', now() - interval '6 days')
       AND NOT EXISTS (SELECT FROM harness_deliveries d WHERE d.webhook_id = w.id AND d.job_id = r.job_id)
    UNION ALL
    SELECT d.job_id::text, format('a delivery to webhook %s, and no end', d.webhook_id) FROM harness_deliveries d
     WHERE (d.job_id >= greatest($1, $3) OR substr(d.job_id::text, 15, 1) <> '7')
       AND NOT EXISTS (SELECT FROM harness_results r WHERE r.job_id = d.job_id)";

/// Allows three leases, because a rescuer must have watched for one before it declares a worker dead.
const RESCUE: &str = "
    SELECT j.job_id::text, format('session %s: worker %s was last heard of at %s', j.session_id, w.worker_id, w.heartbeat_at)
      FROM harness_jobs j JOIN harness_workers w ON w.worker_id = j.worker_id
     WHERE j.state = 'running' AND w.state IN ('alive', 'draining')
       AND w.heartbeat_at < now() - 3 * w.lease_ms * interval '1 millisecond'";

/// Selects jobs that have been in `$state` for too long, by the time in `$since`.
macro_rules! waits {
    ($state:literal, $since:literal) => {
        concat!(
            "SELECT job_id::text, format('session %s, pool %s: since %s', session_id, pool, ",
            $since,
            ") FROM harness_jobs WHERE state = '",
            $state,
            "' AND ",
            $since,
            " < now() - $6 * interval '1 millisecond'"
        )
    };
}

const INBOX: &str = "
    SELECT job_id::text, format('tenant %s: in the inbox since %s', tenant, written_at) FROM harness_inbox i
     WHERE written_at < now() - $6 * interval '1 millisecond'
       AND NOT EXISTS (SELECT FROM harness_tenants t
                        WHERE t.name = i.tenant
                          AND t.max_waiting <= (SELECT count(*) FROM harness_jobs j
                                                 WHERE j.tenant = i.tenant AND j.state <> 'running'))";

const SCHEDULES: &str = "
    SELECT format('%s of tenant %s', name, tenant), format('due since %s, its next instant is %s', due_at, next_at)
      FROM harness_schedules
     WHERE paused_at IS NULL
       AND next_at < now() - jitter_ms * interval '1 millisecond' - $6 * interval '1 millisecond'
       AND EXISTS (SELECT FROM harness_leases WHERE name = 'line' AND expires_at > now())";

const DUE: &str = waits!("scheduled", "due_at");

const PUBLISHING: &str = waits!("publishing", "state_since");

const QUEUED: &str = waits!("queued", "state_since");

const UNWANTED: &str = "
    SELECT job_id::text, format('session %s: %s, %s', session_id, state,
                                CASE WHEN asked = 'cancel' THEN 'to be cancelled' ELSE format('overdue since %s', deadline_at) END)
      FROM harness_jobs
     WHERE state <> 'running'
       AND ((asked = 'cancel' AND state_since < now() - $6 * interval '1 millisecond')
            OR deadline_at < now() - $6 * interval '1 millisecond')";

/// Upkeep closes what an older binary has left, every quarter of an hour.
const ANSWERS: &str = "
    SELECT i.job_id::text, format('call %s: its time was over at %s', i.call_id, i.expires_at) FROM harness_inputs i
     WHERE i.outcome IS NULL AND i.expires_at < now() - $6 * interval '1 millisecond'
    UNION ALL
    SELECT i.job_id::text, format('call %s is open, and the job has ended', i.call_id)
      FROM harness_inputs i JOIN harness_results r ON r.job_id = i.job_id
     WHERE i.outcome IS NULL AND r.finished_at < now() - interval '1 hour'";

const PARTITIONS: &str = "
    SELECT tab || '_w' || week, format('the week from %s has no partition', to_timestamp(week * 604800) AT TIME ZONE 'UTC')
      FROM unnest(ARRAY['harness_results', 'harness_labels', 'harness_calls', 'harness_history']) AS tab, generate_series($7, $8) AS week
     WHERE NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                        WHERE i.inhparent = to_regclass(tab) AND NOT i.inhdetachpending
                          AND c.relname = tab || '_w' || week)";
