//! Claim: the transaction that makes a message's job durable and gives it to one worker.

use std::collections::HashMap;

use deadpool_postgres::Pool;
use job::{Change, JobSpec, JobState, WorkerId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::claimed::{Claimed, claimed_columns, read_claimed, read_claimed_with_message};
use super::columns::{Columns, due_at, has_line, job_columns, job_values, new_jobs, no_place, tenant_of};
use super::labels::LabelColumns;
use crate::StoreError;
use crate::database::{Batched, LOCK_SESSIONS, LOCK_WORKER, Params, Tx, may_take, query};
use crate::spend::LEAVE_OLDER_RUNS;

/// A request to run the job of a delivery. The worker does not run the job at present: if the ledger says
/// that it does, the reply to an earlier claim was lost.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// The worker that asks.
    pub worker: WorkerId,
    /// The job, from the message.
    pub spec: JobSpec,
}

/// The answer to a claim. The delivery is acked at once for all but the first.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The job is the worker's, under a new epoch.
    Claimed(Box<Claimed>),
    /// It has ended.
    Finished(JobState),
    /// A live worker runs it.
    Held,
    /// Its turn in its session comes later; the end of the job before it releases it.
    Blocked,
    /// It waits for its next attempt.
    NotDue,
    /// It waits for a person.
    AwaitingInput,
    /// The id belongs to a job of another session. This is its key, which says its tenant.
    OtherSession(String),
    /// The message names another tenant than `default`, and the ledger does not know the job. Only a door takes in
    /// another tenant's jobs, and it writes them into the ledger first.
    NotAccepted,
    /// The worker has been declared dead: it must stop what it runs and take a new id.
    LeaseLost,
    /// The worker has confirmed that it is drained, and may be gone at any moment: another worker must run
    /// the job.
    Drained,
}

/// Creates sessions, in order, so that there is a row to lock. Another tenant's session is created only for a job
/// that the ledger knows, and as that job says, whatever the message says.
const CREATE_SESSIONS: &str = concat!(
    "
    INSERT INTO harness_sessions (session_id, tenant, agent_id, user_id)
    SELECT session_id, ",
    tenant_of!("session_id"),
    ",
           min(CASE WHEN session_id LIKE '~%' THEN (SELECT j.agent_id FROM harness_jobs j WHERE j.job_id = t.job_id)
                    ELSE agent_id END),
           min(CASE WHEN session_id LIKE '~%' THEN (SELECT j.user_id FROM harness_jobs j WHERE j.job_id = t.job_id)
                    ELSE user_id END)
      FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[]) AS t(session_id, agent_id, user_id, job_id)
     WHERE session_id NOT LIKE '~%'
        OR (SELECT j.session_id FROM harness_jobs j WHERE j.job_id = t.job_id) = session_id
     GROUP BY session_id ORDER BY session_id COLLATE \"C\"
    ON CONFLICT DO NOTHING"
);

/// Claims jobs that the ledger has not seen: any AMQP client can publish one. They run if their session has
/// no other job; otherwise they wait. One that is not due is scheduled, and holds up none. They are jobs of the tenant
/// `default`: a message alone proves no other one.
const CLAIM_FRESH: &str = concat!(
    "
    WITH incoming AS (
        SELECT t.*, row_number() OVER (PARTITION BY session_id, later ORDER BY turn) = 1 AS first
          FROM (SELECT *, coalesce(to_timestamp(due / 1000) > now(), false) AS later FROM ",
    new_jobs!(),
    ") t
         WHERE session_id NOT LIKE '~%'
           AND (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = t.job_id) IS NULL
           AND (SELECT r.job_id FROM harness_results r WHERE r.job_id = t.job_id) IS NULL
           AND ",
    may_take!("$12"),
    "
    ), decided AS MATERIALIZED (
        SELECT i.*, first AND NOT later
               AND (SELECT j.job_id FROM harness_jobs j
                     WHERE j.session_id = i.session_id AND j.seq < ",
    no_place!(),
    " LIMIT 1) IS NULL AS free
          FROM incoming i
    ), c AS (
        INSERT INTO harness_jobs (",
    job_columns!(),
    ", due_at, state, epoch, worker_id, started_at)
        SELECT ",
    job_values!(),
    ", ",
    due_at!(),
    ",
               CASE WHEN later THEN 'scheduled' WHEN free THEN 'running' ELSE 'blocked' END,
               CASE WHEN free THEN nextval('harness_epoch') ELSE 0 END,
               CASE WHEN free THEN $12 END,
               CASE WHEN free THEN now() END
          FROM decided ORDER BY turn
        ON CONFLICT DO NOTHING
        RETURNING job_id, session_id, epoch, attempts, state, deaths, deadline_at, killed_after_ms, suspected_at,
                  shared_deaths, folded_epoch
    )
    SELECT ",
    claimed_columns!(),
    " FROM c JOIN harness_sessions s ON s.session_id = c.session_id WHERE c.state = 'running'"
);

/// Claims jobs that the ledger knows and that wait for a worker. They run if they have begun before, or if no
/// other job of their session has begun and none was accepted earlier; otherwise they wait. One that is due for the first
/// time waits for a relay, which gives it its place; in a pool with a line, any that is due does. A job that is to be cancelled is left to the process that cancels it. A job that the ledger believes to run here, although
/// it does not, runs again, unless the previous statement, at the same moment, has just given it to us.
///
/// Any AMQP client can send a message with another tenant's id, session and name, and other fields. So such a job comes
/// with the ledger's own envelope. The messages of the tenant `default` are believed, and its envelopes are not read.
const CLAIM_KNOWN: &str = concat!(
    "
    WITH known AS (
        SELECT j.job_id, j.session_id, j.seq, j.epoch > 0 AS begun
          FROM harness_jobs j
         WHERE j.job_id = ANY($2) AND j.session_id = ($3::text[])[array_position($2, j.job_id)]
           AND CASE j.state
               WHEN 'publishing' THEN true
               WHEN 'queued' THEN true
               WHEN 'scheduled' THEN j.due_at <= now() AND j.seq < ",
    no_place!(),
    " AND NOT ",
    has_line!("j.pool"),
    "
               WHEN 'running' THEN j.worker_id = $1 AND j.state_since < now()
               ELSE false END
           AND j.asked IS DISTINCT FROM 'cancel'
           AND ",
    may_take!("$1"),
    "
         ORDER BY j.job_id
           FOR UPDATE OF j
    ), free AS MATERIALIZED (
        SELECT k.job_id FROM known k
         WHERE begun OR ((SELECT o.job_id FROM harness_jobs o
                           WHERE o.session_id = k.session_id AND o.epoch > 0) IS NULL
                         AND (SELECT o.job_id FROM harness_jobs o
                               WHERE o.session_id = k.session_id ORDER BY o.seq LIMIT 1) = k.job_id)
    ), waiting AS (
        UPDATE harness_jobs SET state = 'blocked', worker_id = NULL, state_since = now()
         WHERE job_id = ANY(ARRAY(SELECT job_id FROM known EXCEPT SELECT job_id FROM free))
    ), c AS (
        UPDATE harness_jobs
           SET state = 'running', epoch = nextval('harness_epoch'), worker_id = $1,
               started_at = coalesce(started_at, now()), state_since = now()
         WHERE job_id = ANY(ARRAY(SELECT job_id FROM free))
        RETURNING job_id, session_id, epoch, attempts, deaths, deadline_at, killed_after_ms, suspected_at, shared_deaths,
                  folded_epoch, CASE WHEN session_id LIKE '~%' THEN message END AS message
    )
    SELECT ",
    claimed_columns!(),
    ", c.message::text FROM c JOIN harness_sessions s ON s.session_id = c.session_id"
);

/// Reads the state of each job. A job that was cancelled before it was seen has no session. (Each lateral
/// part ends in OFFSET 0, so that it stays a look-up by id. While there are few jobs, Postgres would
/// otherwise read all of them once for the whole batch, and would keep doing so when there are many.)
pub(crate) const READ_ANSWERS: &str = "
    SELECT t.job_id, coalesce(j.state, r.state), nullif(coalesce(j.session_id, r.session_id), '')
      FROM unnest($1::uuid[]) AS t(job_id)
      LEFT JOIN LATERAL (SELECT state, session_id FROM harness_jobs j WHERE j.job_id = t.job_id OFFSET 0) j ON true
      LEFT JOIN LATERAL (SELECT state, session_id FROM harness_results r
                          WHERE r.job_id = t.job_id AND j.state IS NULL OFFSET 0) r ON true";

impl Batched for ClaimRequest {
    type Answer = Answer;

    fn bytes(&self) -> usize {
        self.spec.input.as_str().len() + 400
    }

    fn key(&self) -> u128 {
        Uuid::from(self.spec.job_id).as_u128()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Answer>, StoreError> {
        // A process changes its id only after it was declared dead, so of two ids in a batch only the last is
        // alive.
        let worker = batch.last().expect("a batch is never empty").worker;
        let worker_id = Uuid::from(worker);
        let mine = batch.iter().filter(|call| call.worker == worker);
        let mine: Vec<&JobSpec> = mine.map(|call| &call.spec).collect();
        let columns = Columns::of(mine.iter().copied());
        let Columns { jobs, sessions, agents, users, .. } = &columns;
        let statements =
            [LOCK_WORKER, CREATE_SESSIONS, LOCK_SESSIONS, CLAIM_FRESH, CLAIM_KNOWN, LEAVE_OLDER_RUNS];
        let labels = LabelColumns::of(mine.iter().copied());
        let tx = Tx::prepare_more(pool, "claim", statements, labels.statement()).await?;
        let params: [&Params<'_>; 6] = [
            &[&worker_id],
            &[sessions, agents, users, jobs],
            &[sessions],
            &columns.params_and(&worker_id),
            &[&worker_id, jobs, sessions],
            &[jobs],
        ];
        let ([alive, _, _, fresh, known, _], _) = tx.run_more(params, &labels.params()).await?;

        let fresh = fresh.iter().map(|row| read_claimed(row, worker));
        let known = known.iter().map(|row| read_claimed_with_message(row, worker));
        let mut claimed: HashMap<Uuid, Claimed> =
            fresh.chain(known).map(|claimed| (claimed.claim.job_id().into(), claimed)).collect();
        let drained = alive.first().is_some_and(|row| row.get(0));
        let others: Vec<Uuid> = jobs.iter().copied().filter(|id| !claimed.contains_key(id)).collect();
        let standing = if alive.is_empty() || drained || others.is_empty() {
            Vec::new()
        } else {
            query(pool, "read_answers", READ_ANSWERS, &[&others]).await?
        };
        let standing: HashMap<Uuid, &Row> = standing.iter().map(|row| (row.get(0), row)).collect();
        let answer = |call: &ClaimRequest| {
            let id = Uuid::from(call.spec.job_id);
            if call.worker != worker || alive.is_empty() {
                return Answer::LeaseLost;
            }
            if drained {
                return Answer::Drained;
            }
            match claimed.remove(&id) {
                Some(claimed) => Answer::Claimed(Box::new(claimed)),
                None => standing.get(&id).map_or(Answer::NotDue, |row| not_claimed(row, &call.spec)),
            }
        };
        Ok(batch.iter().map(answer).collect())
    }

    fn changed(&self, answer: &Answer, changes: &mut Vec<Change>) {
        let state = match answer {
            Answer::Claimed(_) => JobState::Running,
            Answer::Blocked => JobState::Blocked,
            _ => return,
        };
        changes.push(Change::new(self.spec.job_id, self.spec.session_key(), state));
    }
}

/// Returns why a job was not claimed, from a row of [`READ_ANSWERS`].
fn not_claimed(row: &Row, spec: &JobSpec) -> Answer {
    let session: Option<String> = row.get(2);
    let state = row.get::<_, Option<&str>>(1).and_then(|state| state.parse().ok());
    match (state, session) {
        (Some(_), Some(session)) if session != spec.session_key().as_str() => Answer::OtherSession(session),
        // A door commits a job before it publishes the message, so this is no race.
        (None, _) if !spec.tenant.is_default() => Answer::NotAccepted,
        (Some(JobState::Running), _) => Answer::Held,
        (Some(JobState::Blocked), _) => Answer::Blocked,
        (Some(JobState::AwaitingInput), _) => Answer::AwaitingInput,
        (Some(end), _) if end.is_end() => Answer::Finished(end),
        // It waits for its time, or is about to be cancelled, or its producer inserted it just after our
        // snapshot. In the last case the relay publishes it.
        _ => Answer::NotDue,
    }
}
