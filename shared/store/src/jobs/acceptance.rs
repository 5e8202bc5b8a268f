//! Acceptance: the way in for callers who each bring one job and wait for the answer. Jobs that arrive at the same
//! moment share a transaction. A job may come with keys, which find an earlier job for the same request or work.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use deadpool_postgres::Pool;
use job::{Change, JobId, JobSpec, JobState, Name, Tenant};
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use uuid::Uuid;

use super::accept::{ACCEPT, ACCEPT_FRESH, DROP_ENDED, accepted, new_jobs_of};
use super::columns::Columns;
use super::labels::LabelColumns;
use super::taken_keys::{
    ACCEPT_KEYED, FIND_HELD, JobKey, KeyColumns, KeyKind, LOCK_KEYS, SETTLE_KEYS, read_found,
};
use crate::database::{
    Batched, Params, Tx, alone_in_its_batch, commit, query, read_ids, read_job_id, read_name, read_state,
    rfc3339, uuids,
};
use crate::{Store, StoreError};

/// A job to be taken in.
#[derive(Clone, Debug)]
pub struct Acceptance {
    pub(super) spec: JobSpec,
    message: String,
    bytes: usize,
    pub(super) keys: Vec<JobKey>,
    /// The SHA-256 of what the caller sent; it counts with keys alone.
    pub(super) sent: [u8; 32],
    has_fresh_id: bool,
}

impl Acceptance {
    /// This job, whose body had so many bytes.
    pub fn new(spec: JobSpec, bytes: usize) -> Acceptance {
        let message = job::encode(&spec);
        Acceptance { spec, message, bytes, keys: Vec::new(), sent: [0; 32], has_fresh_id: false }
    }

    /// The same with keys, at most one of each kind. `sent` is the SHA-256 of what the caller sent, by which the same
    /// request is known again.
    pub fn with_keys(self, keys: Vec<JobKey>, sent: [u8; 32]) -> Acceptance {
        Acceptance { keys, sent, ..self }
    }

    /// The same, where the id was made for this call, and is nobody's yet: the ledger need not be asked whether it knows it.
    pub fn with_fresh_id(self) -> Acceptance {
        Acceptance { has_fresh_id: true, ..self }
    }

    /// Returns the job.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// Returns the envelope.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the job and its envelope.
    pub fn into_parts(self) -> (JobSpec, String) {
        (self.spec, self.message)
    }

    /// What no other call of its batch may have, too: its keys, as numbers.
    fn key_numbers(&self) -> impl Iterator<Item = u128> {
        self.keys.iter().map(|key| key.number(&self.spec.tenant))
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is in the ledger now.
    New {
        /// RFC 3339, UTC.
        accepted_at: String,
        /// `publishing` if its caller publishes it next, else `waiting` or `scheduled`.
        state: JobState,
    },
    /// The id was accepted before: nothing changed.
    Known,
    /// Another job holds one of its keys: nothing was inserted.
    Found {
        /// The key's kind. Where both keys are held, the idempotency key counts.
        by: KeyKind,
        /// The job that holds the key.
        job_id: JobId,
        /// Whether that job's caller sent the same.
        same: bool,
    },
}

/// A job that the ledger has, as far as it can be compared with another one of the same id.
#[derive(Clone, Debug)]
pub struct KnownJob {
    /// The key of its session.
    pub session_key: String,
    /// Its agent.
    pub agent_id: String,
    /// On whose behalf.
    pub user_id: Option<String>,
    /// Its pool.
    pub pool: String,
    /// The envelope; it is not kept of a job that has succeeded.
    pub message: Option<String>,
}

/// A row that another transaction holds (a claim of the same id) must not hold up all callers; alone, its own caller
/// waits for less than it was promised an answer in.
const TOGETHER: &str = "100ms";
const ALONE: &str = "1s";
const UNIQUE_VIOLATION: &str = "23505";

/// Returns the time of the transaction, too.
const SET_LOCK_TIMEOUT: &str = concat!("SELECT set_config('lock_timeout', $1, true), ", rfc3339!("now()"));

impl Batched for Acceptance {
    type Answer = Taken;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn key(&self) -> u128 {
        Uuid::from(self.spec.job_id).as_u128()
    }

    fn more_keys(&self) -> impl Iterator<Item = u128> {
        self.key_numbers()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Taken>, StoreError> {
        let messages = batch.iter().map(|acceptance| acceptance.message.as_str().into()).collect();
        let columns = Columns::with_messages(batch.iter().map(|acceptance| &acceptance.spec), messages);
        let lock_timeout = if batch.len() > 1 { TOGETHER } else { ALONE };
        let keys = KeyColumns::of(batch);
        let labels = LabelColumns::of(batch.iter().map(|acceptance| &acceptance.spec));
        if !keys.is_empty() {
            return commit_keyed(pool, &columns, &keys, &labels, lock_timeout).await;
        }
        if batch.iter().all(|acceptance| acceptance.has_fresh_id) {
            match commit_fresh(pool, &columns, &labels, lock_timeout).await {
                // That an id is known after all is possible, and not believable.
                Err(StoreError::Refused { sqlstate, .. }) if sqlstate == UNIQUE_VIOLATION => {}
                taken => return taken,
            }
        }
        let sql = [SET_LOCK_TIMEOUT, ACCEPT, DROP_ENDED];
        let tx = Tx::prepare_more(pool, "take", sql, labels.statement()).await?;
        let params: [&Params<'_>; 3] = [&[&lock_timeout], &columns.params(), &[&columns.jobs]];
        let ([_, inserted, ended], _) = tx.run_more(params, &labels.params()).await?;
        let mut new = new_jobs_of(&inserted, &ended);
        let taken = |id: &Uuid| match new.remove(id) {
            Some((accepted_at, state)) => Taken::New { accepted_at, state },
            None => Taken::Known,
        };
        Ok(columns.jobs.iter().map(taken).collect())
    }

    fn changed(&self, answer: &Taken, changes: &mut Vec<Change>) {
        if let Taken::New { state, .. } = answer {
            changes.push(accepted(&self.spec, *state));
        }
    }
}

/// As [`Acceptance::commit`], where no id can be known.
async fn commit_fresh(
    pool: &Pool,
    columns: &Columns<'_>,
    labels: &LabelColumns,
    lock_timeout: &str,
) -> Result<Vec<Taken>, StoreError> {
    let tx =
        Tx::prepare_more(pool, "take_fresh", [SET_LOCK_TIMEOUT, ACCEPT_FRESH], labels.statement()).await?;
    let ([begun, states], _) = tx.run_more([&[&lock_timeout], &columns.params()], &labels.params()).await?;
    let accepted_at: String = begun.first().map(|row| row.get(1)).unwrap_or_default();
    let taken = |row| Taken::New { accepted_at: accepted_at.clone(), state: read_state(row, 0) };
    Ok(states.iter().map(taken).collect())
}

/// As [`Acceptance::commit`], where a job has a key.
async fn commit_keyed(
    pool: &Pool,
    columns: &Columns<'_>,
    keys: &KeyColumns<'_>,
    labels: &LabelColumns,
    lock_timeout: &str,
) -> Result<Vec<Taken>, StoreError> {
    let sql = [SET_LOCK_TIMEOUT, LOCK_KEYS, ACCEPT_KEYED, DROP_ENDED, SETTLE_KEYS];
    let tx = Tx::prepare_more(pool, "take_keyed", sql, labels.statement()).await?;
    let accept = [columns.params().as_slice(), keys.params().as_slice()].concat();
    let params = keys.params();
    let all: [&Params<'_>; 5] = [&[&lock_timeout], &params, &accept, &[&columns.jobs], &params];
    let ([_, _, accepted, ended, _], _) = tx.run_more(all, &labels.params()).await?;
    let mut found = held_by(&accepted);
    let inserted = accepted.iter().filter(|row| row.get::<_, Option<Uuid>>(3).is_none());
    let mut new = new_jobs_of(inserted, &ended);
    let taken = |id: &Uuid| match (new.remove(id), found.remove(id)) {
        (Some((accepted_at, state)), _) => Taken::New { accepted_at, state },
        (None, Some(found)) => found,
        (None, None) => Taken::Known,
    };
    Ok(columns.jobs.iter().map(taken).collect())
}

/// Returns the jobs that were found by their keys, with what holds them. Where both keys are held, the idempotency key
/// counts.
fn held_by(rows: &[Row]) -> HashMap<Uuid, Taken> {
    let mut found: HashMap<Uuid, Taken> = HashMap::new();
    for (job, taken) in rows.iter().filter_map(read_found) {
        let by_idempotency = matches!(taken, Taken::Found { by: KeyKind::Idempotency, .. });
        if by_idempotency || !found.contains_key(&job) {
            found.insert(job, taken);
        }
    }
    found
}

const FIND_IDS: &str = "
    SELECT t.job_id FROM unnest($1::uuid[]) AS t(job_id)
     WHERE (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = t.job_id) IS NOT NULL
        OR (SELECT r.job_id FROM harness_results r WHERE r.job_id = t.job_id) IS NOT NULL";

/// So many envelopes are read at a time.
const READ_AT_ONCE: usize = 16;

const READ_KNOWN: &str = "
    SELECT t.job_id, k.session_id, k.agent_id, k.user_id, k.pool, k.message::text
      FROM unnest($1::uuid[]) AS t(job_id)
     CROSS JOIN LATERAL (
           SELECT session_id, agent_id, user_id, pool, message FROM harness_jobs j WHERE j.job_id = t.job_id
           UNION ALL
           SELECT session_id, agent_id, user_id, pool, message FROM harness_results r WHERE r.job_id = t.job_id
           LIMIT 1) k";

const TENANTS_OF: &str = "
    SELECT t.job_id, k.tenant
      FROM unnest($1::uuid[]) AS t(job_id)
     CROSS JOIN LATERAL (
           SELECT tenant FROM harness_jobs j WHERE j.job_id = t.job_id
           UNION ALL
           SELECT tenant FROM harness_results r WHERE r.job_id = t.job_id
           LIMIT 1) k";

/// The first of these jobs that go into one transaction, and those between them that need none.
struct Together {
    count: usize,
    /// The places of those that have the same keys as one before them. The ledger cannot know their ids, so they are found by
    /// the keys.
    repeats: Vec<usize>,
}

impl Together {
    /// As many as have neither a key nor an id in common, and are no more than a transaction may hold; at least one. One that
    /// is larger goes alone.
    fn of(jobs: &[Acceptance]) -> Together {
        let (mut seen, mut key_sets) = (HashSet::new(), HashSet::new());
        let (mut repeats, mut bytes) = (Vec::new(), 0);
        for (place, job) in jobs.iter().enumerate() {
            let keys: BTreeSet<u128> = job.key_numbers().collect();
            if job.has_fresh_id && key_sets.contains(&keys) {
                repeats.push(place);
                continue;
            }
            bytes += job.bytes;
            let fits = place - repeats.len() < Acceptance::MAX_ROWS && bytes <= Acceptance::MAX_BYTES;
            let is_apart = keys.iter().copied().chain([job.key()]).all(|key| seen.insert(key));
            if place > 0 && !(fits && is_apart) {
                return Together { count: place, repeats };
            }
            if job.has_fresh_id && !keys.is_empty() {
                key_sets.insert(keys);
            }
        }
        Together { count: jobs.len(), repeats }
    }
}

/// Jobs that are taken in one transaction after the other.
struct Taking<'a> {
    store: &'a Store,
    begun: Instant,
    within: Duration,
}

impl Taking<'_> {
    /// Takes these in one transaction, and looks for those that repeat one of them behind it; where one makes that fail, each
    /// alone.
    async fn together(&self, jobs: &[Acceptance], repeats: &[usize]) -> Vec<Result<Taken, StoreError>> {
        let Store { pool, changes, .. } = self.store;
        let is_repeat = |place: usize| repeats.binary_search(&place).is_ok();
        let owned = |repeated: bool| -> Vec<Acceptance> {
            let chosen = jobs.iter().enumerate().filter(|(place, _)| is_repeat(*place) == repeated);
            chosen.map(|(_, job)| job.clone()).collect()
        };
        let first = if repeats.is_empty() { Cow::Borrowed(jobs) } else { Cow::Owned(owned(false)) };
        let mut taken = match self.in_time(commit(pool, changes, &first)).await {
            Ok(taken) => taken.into_iter(),
            Err(error) if error.may_lie_in_one_call() => return self.each_alone(jobs).await,
            Err(error) => return jobs.iter().map(|_| Err(error.clone())).collect(),
        };
        let found: Vec<Option<Result<Taken, StoreError>>> = match repeats {
            [] => Vec::new(),
            _ => match self.in_time(self.store.find_taken(&owned(true))).await {
                Ok(found) => found.into_iter().map(|found| found.map(Ok)).collect(),
                Err(error) => vec![Some(Err(error)); repeats.len()],
            },
        };
        let mut found = found.into_iter();
        let mut answers = Vec::with_capacity(jobs.len());
        for (place, job) in jobs.iter().enumerate() {
            let answer = if is_repeat(place) { found.next().flatten() } else { taken.next().map(Ok) };
            answers.push(match answer {
                Some(answer) => answer,
                // What held its keys has ended meanwhile.
                None => self.in_time(alone_in_its_batch(pool, changes, job)).await,
            });
        }
        answers
    }

    async fn each_alone(&self, jobs: &[Acceptance]) -> Vec<Result<Taken, StoreError>> {
        let mut answers: Vec<Result<Taken, StoreError>> = Vec::with_capacity(jobs.len());
        for job in jobs {
            let answer = match answers.last() {
                Some(Err(error)) if !error.may_lie_in_one_call() => Err(error.clone()),
                _ => self.in_time(alone_in_its_batch(&self.store.pool, &self.store.changes, job)).await,
            };
            answers.push(answer);
        }
        answers
    }

    async fn in_time<T>(&self, asking: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let left = self.within.saturating_sub(self.begun.elapsed());
        timeout(left, asking).await.unwrap_or_else(|elapsed| Err(elapsed.into()))
    }
}

/// The pool `default` is always known. Another one is from the first worker that served it: a row of one of its workers is
/// kept. So is one that an autoscaler has decided about, which starts workers when there are jobs, and one that an
/// operator has given a line.
const SERVED_POOLS: &str = "
    SELECT t.pool FROM unnest($1::text[]) AS t(pool)
     WHERE t.pool = 'default'
        OR (SELECT w.pool FROM harness_workers w WHERE w.pool = t.pool LIMIT 1) IS NOT NULL
        OR (SELECT d.pool FROM harness_scale_decisions d WHERE d.pool = t.pool LIMIT 1) IS NOT NULL
        OR (SELECT p.pool FROM harness_pools p WHERE p.pool = t.pool) IS NOT NULL";

impl Store {
    /// Takes jobs of one caller into the ledger, in their order, and as many in a transaction as fit into one; where one of
    /// them makes that fail, each alone. A key or an id that comes a second time begins another transaction, which finds the
    /// first one's job; jobs of new ids that have the same keys are looked for together. Where Postgres is not available, or
    /// it has taken longer than `within` in all, the rest has that answer.
    pub async fn take_in_order(
        &self,
        jobs: &[Acceptance],
        within: Duration,
    ) -> Vec<Result<Taken, StoreError>> {
        let taking = Taking { store: self, begun: Instant::now(), within };
        let mut answers: Vec<Result<Taken, StoreError>> = Vec::with_capacity(jobs.len());
        while answers.len() < jobs.len() {
            let rest = &jobs[answers.len()..];
            match answers.last() {
                Some(Err(error)) if !error.may_lie_in_one_call() => {
                    let error = error.clone();
                    answers.extend(rest.iter().map(|_| Err(error.clone())));
                }
                _ => {
                    let Together { count, repeats } = Together::of(rest);
                    answers.extend(taking.together(&rest[..count], &repeats).await);
                }
            }
        }
        answers
    }

    /// What an acceptance of these jobs would find, without taking one in: for each [`Taken::Known`] or [`Taken::Found`],
    /// or `None` if it would be new.
    pub async fn find_taken(&self, jobs: &[Acceptance]) -> Result<Vec<Option<Taken>>, StoreError> {
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.spec.job_id.into()).collect();
        let keys = KeyColumns::of(jobs);
        let mut found = match keys.is_empty() {
            true => HashMap::new(),
            false => held_by(&query(&self.pool, "find_held", FIND_HELD, &keys.params()).await?),
        };
        let known = query(&self.pool, "find_ids", FIND_IDS, &[&ids]).await?;
        let known = read_ids(&known);
        let answer = |id: &Uuid| found.remove(id).or_else(|| known.contains(id).then_some(Taken::Known));
        Ok(ids.iter().map(answer).collect())
    }

    /// What the ledger has of this id.
    pub async fn known_job(&self, job_id: JobId) -> Result<Option<KnownJob>, StoreError> {
        let mut found = None;
        self.known_jobs(&[job_id], |_, known| found = Some(known)).await?;
        Ok(found)
    }

    /// Hands over what the ledger has of these ids, one after the other. Envelopes may be large, so few of them are in memory
    /// at a time.
    pub async fn known_jobs(
        &self,
        ids: &[JobId],
        mut each: impl FnMut(JobId, KnownJob),
    ) -> Result<(), StoreError> {
        for ids in ids.chunks(READ_AT_ONCE) {
            for row in query(&self.pool, "known_jobs", READ_KNOWN, &[&uuids(ids)]).await? {
                let known = KnownJob {
                    session_key: row.get(1),
                    agent_id: row.get(2),
                    user_id: row.get(3),
                    pool: row.get(4),
                    message: row.get(5),
                };
                each(read_job_id(&row, 0), known);
            }
        }
        Ok(())
    }

    /// Returns whose jobs these are, of those that the ledger knows.
    pub async fn tenants_of(&self, ids: &[JobId]) -> Result<HashMap<JobId, Tenant>, StoreError> {
        let rows = query(&self.pool, "tenants_of", TENANTS_OF, &[&uuids(ids)]).await?;
        let read = |row: &Row| Some((read_job_id(row, 0), row.get::<_, &str>(1).parse().ok()?));
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Returns those of these pools that a worker serves or has ever served, that will have workers, or that an operator
    /// has named.
    pub async fn served_pools(&self, pools: &BTreeSet<Name>) -> Result<BTreeSet<Name>, StoreError> {
        let names: Vec<&str> = pools.iter().map(Name::as_str).collect();
        let rows = query(&self.pool, "served_pools", SERVED_POOLS, &[&names]).await?;
        Ok(rows.iter().filter_map(|row| read_name(row, 0)).collect())
    }
}
