//! Submit: into the ledger first, then to the broker. Every entry point uses it: for one job, for many, and for jobs
//! that redo the work of failed ones.

use std::time::Duration;

use anyhow::Context;
use dispatch::{Candidate, Dispatch, Sent};
use job::{JobId, JobSpec, JobState, Limits};
use store::{Acceptance, Accepted, DueJob, KeyKind, StoreError, Taken};

use crate::older::refuse_beside_older_workers;
use crate::send_spans::SendSpans;

/// Jobs that were submitted, and what became of each. The new ones still have to be published.
#[must_use = "what is not published here waits until a relay publishes it"]
pub struct Submitted {
    /// The new jobs, in order.
    pub new: Vec<JobId>,
    /// Jobs that Postgres cannot hold, and why.
    pub refused: Vec<(JobId, String)>,
    /// How many jobs had been accepted before.
    pub accepted_before: usize,
    due: Vec<DueJob>,
    /// How many of the new ones wait in a line or are not due yet. A relay publishes them in their turn.
    later: usize,
    /// The spans end when the broker has confirmed.
    send_spans: SendSpans,
    dispatch: Dispatch,
}

/// Writes jobs to the ledger, in order. A job counts as accepted once it is there.
pub async fn submit(
    dispatch: &Dispatch,
    mut jobs: Vec<JobSpec>,
    limits: &Limits,
) -> anyhow::Result<Submitted> {
    if jobs.iter().any(|spec| !spec.tenant.is_default()) {
        refuse_beside_older_workers(&dispatch.store).await?;
    }
    let send_spans = SendSpans::begin(&mut jobs, limits);
    let answers = dispatch.store.accept(&jobs).await.context("writing jobs to Postgres")?;
    let (mut new, mut refused) = (Vec::new(), Vec::new());
    for (spec, answer) in jobs.iter().zip(answers) {
        match answer {
            Accepted::New(state) => new.push(NewJob::of(spec, job::encode(spec), state)),
            Accepted::Duplicate => {}
            Accepted::Refused(reason) => refused.push((spec.job_id, reason)),
        }
    }
    let accepted_before = jobs.len() - new.len() - refused.len();
    Ok(Submitted::accepted(dispatch, new, refused, accepted_before, send_spans))
}

/// What became of one job that shared its transaction with those of other callers.
#[must_use = "what is not published here waits until a relay publishes it"]
pub enum Submission {
    /// The job was accepted at this time (RFC 3339) and is in this state; it may still have to be published.
    New(String, JobState, Box<Submitted>),
    /// A job of this id had been accepted before.
    Known,
    /// This job holds one of its keys, of this kind; whether its caller sent the same.
    Found(KeyKind, JobId, bool),
    /// Postgres cannot hold the job, for this reason.
    Refused(String),
}

/// Writes one job to the ledger, in one transaction with the jobs of other callers that arrive meanwhile.
pub async fn submit_one(
    dispatch: &Dispatch,
    mut candidate: Candidate,
    limits: &Limits,
) -> Result<Submission, StoreError> {
    let mut send_spans = SendSpans::begin([&mut candidate.spec], limits);
    let job_id = candidate.spec.job_id;
    let acceptance = candidate.into_acceptance();
    let job = DueJob::encoded(acceptance.spec(), acceptance.message().to_owned());
    match dispatch.store.take(acceptance).await {
        Ok(Taken::New { accepted_at, state }) => {
            let submitted =
                Submitted::accepted(dispatch, vec![NewJob { job, state }], Vec::new(), 0, send_spans);
            Ok(Submission::New(accepted_at, state, Box::new(submitted)))
        }
        Ok(Taken::Known) => {
            send_spans.accepted(&[], &[]);
            Ok(Submission::Known)
        }
        Ok(Taken::Found { by, job_id, same }) => {
            send_spans.accepted(&[], &[]);
            Ok(Submission::Found(by, job_id, same))
        }
        Err(refused @ StoreError::Refused { .. }) => {
            let refused = refused.to_string();
            send_spans.accepted(&[], &[(job_id, refused.clone())]);
            Ok(Submission::Refused(refused))
        }
        Err(error) => Err(error),
    }
}

/// Writes jobs of one caller to the ledger, in their order, as [`Store::take_in_order`](store::Store::take_in_order) does. Each comes
/// back with its own answer; what is new is in the second.
pub async fn submit_in_order(
    dispatch: &Dispatch,
    mut candidates: Vec<Candidate>,
    limits: &Limits,
    within: Duration,
) -> (Vec<(JobSpec, Result<Taken, StoreError>)>, Submitted) {
    let send_spans = SendSpans::begin(candidates.iter_mut().map(|candidate| &mut candidate.spec), limits);
    let jobs: Vec<Acceptance> = candidates.into_iter().map(Candidate::into_acceptance).collect();
    let answers = dispatch.store.take_in_order(&jobs, within).await;
    let (mut answered, mut new) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
    let mut refused = Vec::new();
    for (job, answer) in jobs.into_iter().zip(answers) {
        let (spec, message) = job.into_parts();
        match &answer {
            Ok(Taken::New { state, .. }) => new.push(NewJob::of(&spec, message, *state)),
            Ok(Taken::Known | Taken::Found { .. }) => {}
            Err(error) => refused.push((spec.job_id, error.to_string())),
        }
        answered.push((spec, answer));
    }
    let before = answered.len() - new.len() - refused.len();
    let submitted = Submitted::accepted(dispatch, new, refused, before, send_spans);
    (answered, submitted)
}

/// Finds which of these jobs the ledger has already, by their ids and keys, and takes none in; `None` for those that it
/// does not have.
pub async fn find_earlier(
    dispatch: &Dispatch,
    candidates: &[Candidate],
) -> Result<Vec<Option<Taken>>, StoreError> {
    if !candidates.iter().any(Candidate::may_be_known) {
        return Ok(candidates.iter().map(|_| None).collect());
    }
    let jobs: Vec<Acceptance> = candidates.iter().map(Candidate::acceptance).collect();
    dispatch.store.find_taken(&jobs).await
}

/// Accepts jobs that redo the work of failed ones; each comes with the id of its failed job. If another caller has
/// settled the failed job meanwhile, its new job is not accepted. The operators' log names the actor.
pub async fn redrive(
    dispatch: &Dispatch,
    actor: &str,
    jobs: Vec<(JobId, JobSpec)>,
    limits: &Limits,
) -> anyhow::Result<Submitted> {
    let (failed, mut jobs): (Vec<JobId>, Vec<JobSpec>) = jobs.into_iter().unzip();
    let send_spans = SendSpans::begin(&mut jobs, limits);
    let pairs: Vec<(JobId, JobSpec)> = failed.into_iter().zip(jobs).collect();
    let taken = dispatch.store.redrive(actor, &pairs).await.context("redriving jobs")?;
    let new = pairs.iter().filter_map(|(_, spec)| {
        let state = *taken.get(&spec.job_id)?;
        Some(NewJob::of(spec, job::encode(spec), state))
    });
    let new: Vec<NewJob> = new.collect();
    let before = pairs.len() - new.len();
    Ok(Submitted::accepted(dispatch, new, Vec::new(), before, send_spans))
}

/// A job that the ledger has taken in.
struct NewJob {
    job: DueJob,
    /// One that is `publishing` is published next; the others are left to the relays.
    state: JobState,
}

impl NewJob {
    fn of(spec: &JobSpec, message: String, state: JobState) -> NewJob {
        NewJob { job: DueJob::encoded(spec, message), state }
    }
}

impl Submitted {
    /// The jobs that still have to be published.
    pub fn due(&self) -> impl Iterator<Item = JobId> {
        self.due.iter().map(|job| job.job_id)
    }

    /// The size of the messages that still have to be published.
    pub fn bytes(&self) -> usize {
        self.due.iter().map(|job| job.message.len()).sum()
    }

    fn accepted(
        dispatch: &Dispatch,
        accepted: Vec<NewJob>,
        refused: Vec<(JobId, String)>,
        accepted_before: usize,
        mut send_spans: SendSpans,
    ) -> Submitted {
        let new: Vec<JobId> = accepted.iter().map(|new| new.job.job_id).collect();
        send_spans.accepted(&new, &refused);
        let due = accepted.into_iter().filter(|new| new.state == JobState::Publishing);
        let due: Vec<DueJob> = due.map(|new| new.job).collect();
        let later = new.len() - due.len();
        Submitted { new, refused, accepted_before, due, later, send_spans, dispatch: dispatch.clone() }
    }

    /// Publishes the new ones. A job whose publish is not confirmed stays accepted, and a relay publishes it later. Returns how
    /// many were confirmed, wait in a line or are not due yet.
    pub async fn publish(self) -> anyhow::Result<usize> {
        let (dispatch, later) = (self.dispatch.clone(), self.later);
        let sent = send(&dispatch, vec![self]).await;
        Ok(later + dispatch.note(&sent).await.context("noting the broker's confirms in Postgres")?)
    }
}

/// Publishes the new ones of several submissions, as [`Submitted::publish`] does those of one. The broker's answers have
/// to be noted.
pub async fn send(dispatch: &Dispatch, submitted: Vec<Submitted>) -> Sent {
    let (mut due, mut send_spans) = (Vec::new(), Vec::new());
    for one in submitted {
        due.extend(one.due);
        send_spans.push(one.send_spans);
    }
    let sent = dispatch.send_all(due).await;
    drop(send_spans);
    sent
}
