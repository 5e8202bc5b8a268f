//! The inbox: takes the jobs that services have enqueued by SQL, and publishes them.
//!
//! Of all relays the one that leads (lease `line`) looks every 10 ms, or ten times as long as a look took. It takes a job
//! in as the HTTP API does, decoded by the same decoder. What is no job has its end recorded as `invalid`, under the id
//! that the service was given. A row is removed after its job is in the ledger, so a crash in between repeats the step, which
//! then finds the job there.
//!
//! No job ends for want of a worker: it is published to its pool's queue, and is the demand for which workers are started.
//! But a pool's name that no worker has ever had, and no autoscaler, is taken for a wrong one, as over HTTP: nothing would
//! ever read the queue that it makes, and each such name would make one. What was once known stays known, so the same job
//! never has another answer because time has passed.
//!
//! A tenant that has as many waiting jobs as it may have leaves its rows where they are until there is room. The rate of
//! a tenant is the HTTP API's: a service that commits is not made to wait.

mod looks;

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use job::{JobId, JobSpec, Json, Limits, Name, ReplyRule, RequestedJob, Trouble, decode_strict_as, peek};
use prometheus::{IntCounterVec, register_int_counter_vec};
use store::{DueJob, InboxRow, StoreError, Taken, Unwanted};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::looks::Looks;
use crate::{Candidate, Dispatch, Leader, schedules};

/// Who leads takes from the inbox.
const LEASE_NAME: &str = "line";
const LEASE: Duration = Duration::from_secs(5);
/// The pause between two looks, at least, and in relation to what the look took.
const EVERY: Duration = Duration::from_millis(10);
const REST: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

static METRICS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let metric = register_int_counter_vec!(
        "harness_inbox_jobs_total",
        "Jobs enqueued by SQL that were taken from the inbox, by outcome: accepted, known (the id or a key was there), invalid",
        &["outcome"]
    )
    .expect("every metric has a name of its own, so that registering cannot fail");
    for outcome in ["accepted", "known", "invalid"] {
        metric.with_label_values(&[outcome]);
    }
    metric
});

/// What jobs in the inbox must keep.
#[derive(Clone, Debug)]
pub struct InboxRules {
    /// The largest job, in bytes.
    pub max_bytes: usize,
    /// How old a job's id may be.
    pub retention: Duration,
    /// Where results may be sent.
    pub replies: ReplyRule,
}

impl InboxRules {
    /// Those of these limits.
    pub fn of(limits: &Limits) -> InboxRules {
        let Limits { max_bytes, retention, now_unix_ms: _, ref replies } = *limits;
        InboxRules { max_bytes, retention, replies: replies.clone() }
    }

    fn at(&self, now_unix_ms: u64) -> Limits {
        let InboxRules { max_bytes, retention, ref replies } = *self;
        Limits { max_bytes, retention, now_unix_ms, replies: replies.clone() }
    }

    fn largest(&self) -> i64 {
        i64::try_from(self.max_bytes).unwrap_or(i64::MAX)
    }
}

/// Takes from the inbox and fires schedules while this process leads, until asked to stop.
pub(crate) async fn run(dispatch: &Dispatch, rules: &InboxRules, stop: &CancellationToken) {
    LazyLock::force(&METRICS);
    let leader = Leader::new(LEASE_NAME.to_owned(), LEASE, |_| {});
    tokio::join!(
        leader.keep(&dispatch.store, stop),
        take(dispatch, rules, &leader, stop),
        schedules::run(&dispatch.store, &leader, stop)
    );
}

async fn take(dispatch: &Dispatch, rules: &InboxRules, leader: &Leader, stop: &CancellationToken) {
    let (mut looks, mut trouble) = (Looks::default(), Trouble::default());
    let mut pause = EVERY;
    while stop.run_until_cancelled(sleep(pause)).await.is_some() {
        if leader.leadership().is_none() {
            looks = Looks::default();
            pause = EVERY * REST;
            continue;
        }
        let begun = Instant::now();
        pause = match looks.look(dispatch, rules).await {
            Ok(full) => {
                trouble.ends();
                if full { Duration::ZERO } else { (begun.elapsed() * REST).clamp(EVERY, LONGEST_PAUSE) }
            }
            Err(cause) => {
                if trouble.begins() {
                    warn!(cause = cause.as_dyn(), "jobs enqueued by SQL cannot be taken in, retrying");
                }
                LONGEST_PAUSE
            }
        };
    }
}

impl Dispatch {
    /// Takes those of these jobs that are in the inbox into the ledger now, for a caller that acts on them.
    pub async fn take_from_inbox(&self, jobs: &[JobId], rules: &InboxRules) -> Result<(), StoreError> {
        let rows = self.store.read_from_inbox(jobs, rules.largest()).await?;
        self.take_in(rows, rules).await
    }

    /// Takes these jobs in, in their order, publishes them, and removes their rows.
    async fn take_in(&self, rows: Vec<InboxRow>, rules: &InboxRules) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let read: Vec<Result<RequestedJob, String>> = rows.iter().map(|row| read(row, rules)).collect();
        let pools: BTreeSet<Name> = read.iter().flatten().map(|asked| asked.spec.pool.clone()).collect();
        let served = self.store.served_pools(&pools).await?;
        let (mut candidates, mut of_rows) = (Vec::new(), Vec::new());
        for (row, read) in rows.iter().zip(read) {
            match read.and_then(|asked| check(asked, row, &served)) {
                Ok(asked) => {
                    candidates.push(Candidate::new(asked, row.bytes));
                    of_rows.push(row);
                }
                Err(problem) => self.end(row, rules, Unwanted::Invalid(&problem)).await?,
            }
        }
        let jobs: Vec<store::Acceptance> = candidates.iter().map(Candidate::acceptance).collect();
        let answers = self.store.take_in_order(&jobs).await;
        let mut due = Vec::new();
        for ((row, candidate), answer) in of_rows.into_iter().zip(candidates).zip(answers) {
            match answer {
                Ok(Taken::New { .. }) => {
                    count("accepted");
                    if candidate.spec.is_due(row.read_unix_ms) {
                        due.push(DueJob::of(&candidate.spec));
                    }
                }
                // It was taken in before, and the row was left by a crash; unless the id is another tenant's.
                Ok(Taken::Known) => {
                    if self.is_of_another(row).await? {
                        let problem =
                            format!("job_id: got {}, which is taken, expected a new id", row.job_id);
                        self.end_as(row, JobId::now(), Unwanted::Invalid(&problem)).await?;
                    } else {
                        count("known");
                    }
                }
                Ok(Taken::Found { job_id, .. }) if job_id == row.job_id => count("known"),
                Ok(Taken::Found { by, job_id, .. }) => {
                    let problem = format!("{}: the job {job_id} holds its key", by.field());
                    self.end(row, rules, Unwanted::KeyHeld(&problem)).await?;
                }
                Err(StoreError::Refused { .. }) => {
                    let problem = "it cannot be kept in Postgres";
                    self.end(row, rules, Unwanted::Invalid(problem)).await?;
                }
                Err(error) => return Err(error),
            }
        }
        let places: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        // They are in the ledger. What is not published here comes due again.
        let (published, left) = tokio::join!(self.publish_new(due), self.store.leave_inbox(&places));
        left?;
        published
    }

    async fn publish_new(&self, due: Vec<DueJob>) -> Result<(), StoreError> {
        // Without a broker a publish would wait for one.
        if !due.is_empty() && self.broker.held_up().is_none() {
            self.publish(due).await?;
        }
        Ok(())
    }

    /// Records the end of a row that does not start.
    async fn end(&self, row: &InboxRow, rules: &InboxRules, why: Unwanted<'_>) -> Result<(), StoreError> {
        let limits = rules.at(row.read_unix_ms);
        let in_window = row.job_id.check_window(limits.now_unix_ms, limits.retention).is_ok();
        // Under an id that no result can have, or that is another tenant's, nobody would find it.
        let usable = in_window && !self.is_of_another(row).await?;
        let job_id = if usable { row.job_id } else { JobId::now() };
        self.end_as(row, job_id, why).await
    }

    /// Records the end of a row under this id.
    async fn end_as(&self, row: &InboxRow, job_id: JobId, why: Unwanted<'_>) -> Result<(), StoreError> {
        match why {
            Unwanted::Invalid(reason) => {
                count("invalid");
                info!(job_id = %row.job_id, tenant = row.tenant.unless_default(), reason, "what was enqueued by SQL is no job");
            }
            _ => count("known"),
        }
        self.store.end_unstarted(&unstarted(row, job_id), why).await?;
        Ok(())
    }

    async fn is_of_another(&self, row: &InboxRow) -> Result<bool, StoreError> {
        let known = self.store.known_job(row.job_id).await?;
        Ok(known.is_some_and(|known| job::SessionKey::split(&known.session_key).0 != row.tenant))
    }
}

fn count(outcome: &str) {
    METRICS.with_label_values(&[outcome]).inc();
}

/// Reads a row as the HTTP API reads a body.
fn read(row: &InboxRow, rules: &InboxRules) -> Result<RequestedJob, String> {
    let Some(text) = &row.job else {
        return Err(format!("body: got {} bytes, expected at most {}", row.bytes, rules.max_bytes));
    };
    let mut asked =
        decode_strict_as(text, row.job_id, &rules.at(row.read_unix_ms)).map_err(|error| error.to_string())?;
    asked.spec.tenant = row.tenant.clone();
    Ok(asked)
}

/// Refuses what the HTTP API refuses as well.
fn check(asked: RequestedJob, row: &InboxRow, served: &BTreeSet<Name>) -> Result<RequestedJob, String> {
    if asked.spec.reply_to.is_some() && !row.may_reply {
        return Err("reply_to: the role that enqueued it may not name a queue for replies".to_owned());
    }
    if !served.contains(&asked.spec.pool) {
        return Err(format!("pool: got \"{}\", which no worker has ever served", asked.spec.pool));
    }
    Ok(asked)
}

/// A job that ends before it starts: what can be read of it, and what was given as its input.
fn unstarted(row: &InboxRow, job_id: JobId) -> JobSpec {
    let text = row.job.as_deref().unwrap_or_default();
    let peek = peek(text.as_bytes(), None);
    let named = |text: String| text.parse::<Name>().expect("an id is a name");
    let session = peek.session_id.unwrap_or_else(|| named(job_id.to_string()));
    let agent = peek.agent_id.unwrap_or_else(|| named("unknown".to_owned()));
    let given = Json::parse(text).unwrap_or_else(|_| Json::null());
    JobSpec { job_id, tenant: row.tenant.clone(), ..JobSpec::new(session, agent, given) }
}
