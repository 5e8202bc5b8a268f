//! New jobs, as the statements that insert them take them: accept, redrive, and the claim of a job that the
//! ledger has not seen.

use std::borrow::Cow;

use job::JobSpec;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// One vector per column. They are the first parameters of a statement, which reads them as [`new_jobs`].
pub(crate) struct Columns<'a> {
    pub(crate) jobs: Vec<Uuid>,
    /// Keys, each of which says its tenant.
    pub(crate) sessions: Vec<String>,
    pub(crate) agents: Vec<&'a str>,
    pub(crate) users: Vec<Option<&'a str>>,
    pools: Vec<&'a str>,
    messages: Vec<Cow<'a, str>>,
    deadlines: Vec<Option<f64>>,
    traces: Vec<Option<Uuid>>,
    /// Unix time in milliseconds before which the job does not start.
    dues: Vec<Option<f64>>,
    lanes: Vec<i16>,
    lines: Vec<String>,
}

/// The rows, in their order (`turn`), with one more column if a further parameter comes with them.
macro_rules! new_jobs {
    ($($more:literal as $name:literal)?) => {
        concat!(
            "unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::float8[], $8::uuid[],
              $9::float8[], $10::smallint[], $11::text[]",
            $(", ", $more,)?
            ")
      WITH ORDINALITY AS t(job_id, session_id, agent_id, user_id, pool, message, deadline, trace_id, due,
                               lane, line",
            $(", ", $name,)?
            ", turn)"
        )
    };
}
pub(crate) use new_jobs;

/// The tenant of a session's key. It is read from the key, so that the two always agree.
macro_rules! tenant_of {
    ($session:literal) => {
        concat!(
            "CASE WHEN ",
            $session,
            " LIKE '~%' THEN split_part(substr(",
            $session,
            ", 2), '/', 1) ELSE 'default' END"
        )
    };
}
pub(crate) use tenant_of;

/// The columns of `harness_jobs` that new jobs fill.
macro_rules! job_columns {
    () => {
        "job_id, tenant, session_id, agent_id, user_id, pool, message, deadline_at, trace_id, lane, line"
    };
}
pub(crate) use job_columns;

/// The values of [`job_columns`].
macro_rules! job_values {
    () => {
        concat!(
            "job_id, ",
            $crate::jobs::columns::tenant_of!("session_id"),
            ", session_id, agent_id, user_id, pool, message::json, to_timestamp(deadline / 1000), trace_id,
             lane, line"
        )
    };
}
pub(crate) use job_values;

/// The place (`seq`) of a job that is not due for the first time: none in its session's order, behind all that have one.
macro_rules! no_place {
    () => {
        "9223372036854775807"
    };
}
pub(crate) use no_place;

/// When a new job is due.
macro_rules! due_at {
    () => {
        "greatest(now(), to_timestamp(due / 1000))"
    };
}
pub(crate) use due_at;

/// Whether a pool has a line. (Postgres makes the table of them once for a statement.)
macro_rules! has_line {
    ($pool:literal) => {
        concat!("((", $pool, " IN (SELECT p.pool FROM harness_pools p WHERE p.line)) IS TRUE)")
    };
}
pub(crate) use has_line;

/// The pools that have a line, to be joined with jobs. (`harness_pools.pool` has a collation of its own, with which no index of
/// jobs can be used.)
macro_rules! lined_pools {
    () => {
        "(SELECT pool COLLATE \"default\" AS pool, granted, granted_until, counted_from FROM harness_pools WHERE line)"
    };
}
pub(crate) use lined_pools;

/// Whether a new job of a pool that has a line is published without its turn: under the admitter's grant, while fewer messages
/// than it allows are on their way. What a limit or a tenant's bound may hold back is not. One transaction at a time uses a pool's
/// grant, because it cannot count what others insert meanwhile: their jobs wait for their turns. (One that begins while another
/// commits may miss what that has published, and use the grant again. Postgres counts once for a statement, in the pools of
/// these jobs, and only if one of them has a line. For a job, all count that stand before it there.)
macro_rules! is_granted {
    () => {
        concat!(
            "(line = '' AND turn <= coalesce(((
                  SELECT json_object_agg(p.pool, p.granted - (
                         SELECT count(*) FROM (
                               (SELECT FROM harness_jobs
                                 WHERE state = 'publishing' AND pool = p.pool AND state_since >= p.counted_from
                                 ORDER BY state_since LIMIT p.granted)
                               UNION ALL
                               (SELECT FROM harness_jobs
                                 WHERE state = 'queued' AND pool = p.pool AND state_since >= p.counted_from
                                 ORDER BY state_since LIMIT p.granted)) on_their_way))
                    FROM (SELECT * FROM ",
            $crate::jobs::columns::lined_pools!(),
            " l WHERE pool = ANY($5::text[]) AND granted_until > now() OFFSET 0) p
                   WHERE pg_try_advisory_xact_lock(34, hashtext(p.pool))) ->> pool)::bigint, 0)
              AND ",
            $crate::jobs::columns::tenant_of!("session_id"),
            " NOT IN (SELECT b.name FROM harness_tenants b WHERE b.max_running IS NOT NULL))"
        )
    };
}
pub(crate) use is_granted;

/// The insert of new jobs, up to its FROM. Those that are not due are scheduled, and the trigger `harness_jobs_not_due` gives
/// them no place. The others wait in their pool's line; where it has none, or grants it, their caller publishes them next.
macro_rules! insert_for_publishing {
    () => {
        concat!(
            "INSERT INTO harness_jobs (",
            $crate::jobs::columns::job_columns!(),
            ", state, due_at)
        SELECT ",
            $crate::jobs::columns::job_values!(),
            ", CASE WHEN to_timestamp(due / 1000) > now() THEN 'scheduled'
                    WHEN ",
            $crate::jobs::columns::has_line!("pool"),
            " AND NOT ",
            $crate::jobs::columns::is_granted!(),
            " THEN 'waiting' ELSE 'publishing' END, ",
            $crate::jobs::columns::due_at!(),
            "
          FROM "
        )
    };
}
pub(crate) use insert_for_publishing;

impl<'a> Columns<'a> {
    pub(crate) fn of(specs: impl Iterator<Item = &'a JobSpec> + Clone) -> Columns<'a> {
        let messages = specs.clone().map(|spec| job::encode(spec).into()).collect();
        Columns::with_messages(specs, messages)
    }

    /// As [`Columns::of`], where the jobs are encoded already.
    pub(crate) fn with_messages(
        specs: impl Iterator<Item = &'a JobSpec> + Clone,
        messages: Vec<Cow<'a, str>>,
    ) -> Columns<'a> {
        Columns {
            jobs: specs.clone().map(|spec| spec.job_id.into()).collect(),
            sessions: specs.clone().map(|spec| spec.session_key().into()).collect(),
            agents: specs.clone().map(|spec| spec.agent_id.as_str()).collect(),
            users: specs.clone().map(|spec| spec.user_id.as_deref()).collect(),
            pools: specs.clone().map(|spec| spec.pool.as_str()).collect(),
            messages,
            deadlines: specs.clone().map(|spec| spec.deadline_unix_ms().map(|ms| ms as f64)).collect(),
            traces: specs.clone().map(foreign_trace).collect(),
            dues: specs.clone().map(|spec| spec.due_unix_ms().map(|ms| ms as f64)).collect(),
            lanes: specs.clone().map(|spec| spec.lane.number()).collect(),
            lines: specs.map(|spec| spec.limits.line()).collect(),
        }
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 11] {
        let Columns { jobs, sessions, agents, users, pools, messages, deadlines, traces, dues, lanes, lines } =
            self;
        [jobs, sessions, agents, users, pools, messages, deadlines, traces, dues, lanes, lines]
    }

    /// Returns the parameters with one more at the end.
    pub(crate) fn params_and<'b>(&'b self, more: &'b (dyn ToSql + Sync)) -> [&'b (dyn ToSql + Sync); 12] {
        let [jobs, sessions, agents, users, pools, messages, deadlines, traces, dues, lanes, lines] =
            self.params();
        [jobs, sessions, agents, users, pools, messages, deadlines, traces, dues, lanes, lines, more]
    }
}

/// Returns the trace id to keep: none if the trace is the job's own.
fn foreign_trace(spec: &JobSpec) -> Option<Uuid> {
    let trace_id = spec.trace_id();
    (trace_id != spec.job_id.into()).then(|| trace_id.into())
}
