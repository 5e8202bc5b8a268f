//! Rows of the inbox are taken into the ledger: first what starts, then the ends of what does not.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use job::{JobId, JobSpec, JobState, Json, Name, RequestedJob, decode_strict_as, peek};
use store::{Acceptance, DueJob, InboxRow, StoreError, Taken, Unwanted};
use tracing::info;

use super::{InboxRules, METRICS};
use crate::{Candidate, Dispatch, Sent};

/// Ends of one transaction, and the bytes of what was enqueued.
const ENDS: usize = 256;
const ENDS_BYTES: usize = 8 << 20;

/// A row that was left, because the ledger failed on it, and why.
pub(super) type Apart<'a> = (&'a InboxRow, StoreError);

/// A row that does not start.
struct Refused<'a> {
    row: &'a InboxRow,
    why: Why,
    reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Invalid,
    KeyHeld,
}

impl Refused<'_> {
    fn invalid(row: &InboxRow, reason: String) -> Refused<'_> {
        Refused { row, why: Why::Invalid, reason }
    }
}

impl Dispatch {
    /// Takes those of these jobs that are in the inbox into the ledger now, for a caller that acts on them.
    pub async fn take_from_inbox(&self, jobs: &[JobId], rules: &InboxRules) -> Result<(), StoreError> {
        let rows = self.store.read_from_inbox(jobs, rules.largest()).await?;
        let apart = self.take_in(&rows, rules).await?;
        apart.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Takes these jobs in, in their order, publishes them, and removes their rows. Returns those that the ledger has failed
    /// on, for a reason that may lie in them.
    pub(super) async fn take_in<'a>(
        &self,
        rows: &'a [InboxRow],
        rules: &InboxRules,
    ) -> Result<Vec<Apart<'a>>, StoreError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let read: Vec<Result<RequestedJob, String>> = rows.iter().map(|row| read(row, rules)).collect();
        let pools: BTreeSet<Name> = read.iter().flatten().map(|asked| asked.spec.pool.clone()).collect();
        let served = self.store.served_pools(&pools).await?;
        let (mut jobs, mut refused) = (Vec::new(), Vec::new());
        for (row, read) in rows.iter().zip(read) {
            match read.and_then(|asked| check(asked, row, &served)) {
                Ok(asked) => jobs.push((row, Candidate::new(asked, row.bytes))),
                Err(problem) => refused.push(Refused::invalid(row, problem)),
            }
        }
        let mut apart = Vec::new();
        let known = self.accept(jobs, &mut refused, &mut apart).await?;
        if !refused.is_empty() || !known.is_empty() {
            self.end(refused, known, rules, &mut apart).await?;
        }
        Ok(apart)
    }

    /// Takes in what starts, and publishes it. Returns the rows whose ids the ledger has known before.
    async fn accept<'a>(
        &self,
        jobs: Vec<(&'a InboxRow, Candidate)>,
        refused: &mut Vec<Refused<'a>>,
        apart: &mut Vec<Apart<'a>>,
    ) -> Result<Vec<&'a InboxRow>, StoreError> {
        let accepting: Vec<Acceptance> = jobs.iter().map(|(_, candidate)| candidate.acceptance()).collect();
        let answers = self.store.take_in_order(&accepting, Duration::MAX).await;
        let (mut due, mut done, mut known, mut failed) = (Vec::new(), Vec::new(), Vec::new(), None);
        for ((row, candidate), answer) in jobs.into_iter().zip(answers) {
            match answer {
                Ok(Taken::New { state, .. }) => {
                    count("accepted");
                    done.push(row.seq);
                    if state == JobState::Publishing {
                        due.push(DueJob::of(&candidate.spec));
                    }
                }
                Ok(Taken::Known) => known.push(row),
                Ok(Taken::Found { job_id, .. }) if job_id == row.job_id => known.push(row),
                Ok(Taken::Found { by, job_id, .. }) => {
                    let reason = format!("{}: the job {job_id} holds its key", by.field());
                    refused.push(Refused { row, why: Why::KeyHeld, reason });
                }
                Err(StoreError::Refused { .. }) => {
                    refused.push(Refused::invalid(row, "it cannot be kept in Postgres".to_owned()));
                }
                Err(error) if error.may_lie_in_one_call() => apart.push((row, error)),
                Err(error) => failed = Some(error),
            }
        }
        // They are in the ledger. What is not published here comes due again.
        let (published, left) = tokio::join!(self.publish_new(due), self.store.leave_inbox(&done));
        left?;
        published?;
        failed.map_or(Ok(known), Err)
    }

    async fn publish_new(&self, due: Vec<DueJob>) -> Result<(), StoreError> {
        // Without a broker a publish would wait for one. Another process may have one.
        if self.broker.held_up().is_some() {
            self.note(&Sent::none_of(due.into_iter().map(|job| job.job_id))).await?;
        } else if !due.is_empty() {
            self.publish(due).await?;
        }
        Ok(())
    }

    /// Records the ends of rows that do not start, and removes them. A row whose id is known was taken in before, and was left
    /// by a crash; unless the id is another tenant's.
    async fn end<'a>(
        &self,
        mut refused: Vec<Refused<'a>>,
        known: Vec<&'a InboxRow>,
        rules: &InboxRules,
        apart: &mut Vec<Apart<'a>>,
    ) -> Result<(), StoreError> {
        let rows = refused.iter().map(|refused| refused.row).chain(known.iter().copied());
        let tenants = self.store.tenants_of(&rows.map(|row| row.job_id).collect::<Vec<_>>()).await?;
        let is_of_another =
            |row: &InboxRow| tenants.get(&row.job_id).is_some_and(|whose| *whose != row.tenant);
        let (taken, known): (Vec<_>, Vec<_>) = known.into_iter().partition(|row| is_of_another(row));
        refused.extend(taken.into_iter().map(|row| {
            let reason = format!("job_id: got {}, which is taken, expected a new id", row.job_id);
            Refused::invalid(row, reason)
        }));
        let mut given = HashSet::new();
        // Under an id that no result can have, or that is another tenant's, nobody would find it.
        let mut id = |row: &InboxRow| {
            let limits = rules.at(row.read_unix_ms);
            let in_window = row.job_id.check_window(limits.now_unix_ms, limits.retention).is_ok();
            if in_window && !is_of_another(row) && given.insert(row.job_id) {
                row.job_id
            } else {
                JobId::now()
            }
        };
        let ends: Vec<(Refused<'_>, JobSpec)> = refused
            .into_iter()
            .map(|refused| {
                let spec = unstarted(refused.row, id(refused.row));
                (refused, spec)
            })
            .collect();
        for why in [Why::Invalid, Why::KeyHeld] {
            let ends: Vec<_> = ends.iter().filter(|(refused, _)| refused.why == why).collect();
            for together in batches(&ends) {
                self.end_together(why, together, apart).await?;
            }
        }
        known.iter().for_each(|_| count("known"));
        self.store.leave_inbox(&known.iter().map(|row| row.seq).collect::<Vec<_>>()).await
    }

    /// Ends these in one transaction; where one of them makes that fail, each alone.
    async fn end_together<'a>(
        &self,
        why: Why,
        ends: &[&(Refused<'a>, JobSpec)],
        apart: &mut Vec<Apart<'a>>,
    ) -> Result<(), StoreError> {
        match self.end_all(why, ends).await {
            Err(error) if error.may_lie_in_one_call() => {}
            ended => return ended,
        }
        for end in ends {
            match self.end_all(why, std::slice::from_ref(end)).await {
                Err(error) if error.may_lie_in_one_call() => apart.push((end.0.row, error)),
                ended => ended?,
            }
        }
        Ok(())
    }

    async fn end_all(&self, why: Why, ends: &[&(Refused<'_>, JobSpec)]) -> Result<(), StoreError> {
        let reasons: Vec<(JobId, String)> =
            ends.iter().map(|(refused, spec)| (spec.job_id, refused.reason.clone())).collect();
        let specs: Vec<&JobSpec> = ends.iter().map(|(_, spec)| spec).collect();
        let unwanted = match why {
            Why::Invalid => Unwanted::Invalid(&reasons),
            Why::KeyHeld => Unwanted::KeyHeld(&reasons),
        };
        self.store.end_unstarted(&specs, unwanted).await?;
        for (Refused { row, reason, .. }, _) in ends {
            count(if why == Why::Invalid { "invalid" } else { "known" });
            if why == Why::Invalid {
                info!(job_id = %row.job_id, tenant = row.tenant.unless_default(), reason, "what was enqueued by SQL is no job");
            }
        }
        let places: Vec<i64> = ends.iter().map(|(refused, _)| refused.row.seq).collect();
        self.store.leave_inbox(&places).await
    }
}

/// As many as one transaction takes; one that is larger goes alone.
fn batches<'b, 'a>(ends: &'b [&'b (Refused<'a>, JobSpec)]) -> Vec<&'b [&'b (Refused<'a>, JobSpec)]> {
    let (mut batches, mut rest) = (Vec::new(), ends);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(ENDS).take_while(|(refused, _)| {
            bytes += refused.row.job.as_ref().map_or(0, String::len);
            bytes <= ENDS_BYTES
        });
        let (batch, others) = rest.split_at(fits.count().max(1));
        batches.push(batch);
        rest = others;
    }
    batches
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
