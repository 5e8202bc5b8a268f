//! Settles dead letters: redrives or drops first the jobs, then the messages.
//!
//! Works in chunks, so that memory stays bounded for any number. Both passes end where their list ended when they
//! began, so a letter that dies again after its redrive is not seen twice. A letter whose job has been settled, now or
//! before, is removed as soon as any pass finds it.

use std::collections::HashSet;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use dispatch::Dispatch;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{FailureCode, JobId, JobSpec, Name, Peek};
use queue::{DeadLetterCursor, HeldLetter};
use store::{FailedJob, MessageAct};
use tokio_util::sync::CancellationToken;

use super::plan::{Act, Step, renewed, step};
use super::read::{CHUNK, failed, id_of, is_called, peek, standing, standing_of};
use super::selection::{Filter, Kind, Selection};
use crate::intake_limits::IntakeLimits;
use crate::submit;

/// Jobs per transaction. Each brings its whole envelope.
const JOBS: i64 = 64;
/// Bytes of bodies per chunk of letters.
const CHUNK_BYTES: usize = 16 * 1024 * 1024;

/// A request to settle dead letters.
#[derive(Clone, Debug)]
pub struct Order {
    pub act: Act,
    pub selection: Selection,
    /// Who asks, for the operators' log.
    pub actor: String,
    /// Only report what would be done.
    pub dry_run: bool,
}

/// Receives the events of a run.
pub trait Listener {
    /// Takes one event.
    fn hear(&mut self, event: Event<'_>);

    /// Waits until all events so far are dealt with. No work is done meanwhile.
    fn keep_up(&mut self) -> impl Future<Output = ()> + Send;
}

/// An event of a run.
pub enum Event<'a> {
    /// One letter was settled or kept.
    Settled { kind: Kind, id: &'a str, disposition: &'a Disposition },
    /// No dead letter has this id.
    Missing { id: &'a str, why: &'a str },
    /// This many more letters were read.
    Looked(u64),
}

/// What became of a letter.
#[derive(Clone, Debug)]
pub enum Disposition {
    /// A new job redoes its work.
    Redriven(JobId),
    /// It was sent back to this queue.
    Returned(String),
    /// It was removed from the list.
    Dropped,
    /// Its job had been settled before; the leftover message was removed.
    Cleared,
    /// Nothing was done, for this reason.
    Kept(String),
}

/// Returns how many letters there may be to read; `None` when they are selected by id.
pub async fn count(dispatch: &Dispatch, selection: &Selection) -> anyhow::Result<Option<u64>> {
    let Selection::All(filter) = selection else { return Ok(None) };
    let mut count = 0;
    if filter.takes(Kind::Job) {
        count += dispatch.store.count_failed(&filter.of).await.context("counting failed jobs")?;
    }
    if filter.takes(Kind::Message) {
        count += dispatch.broker.dead_letter_count().await.context("counting harness.dead")?;
    }
    Ok(Some(count))
}

/// Settles all selected letters. After an error or a stop, what was done stays done.
pub async fn settle<L: Listener>(
    dispatch: &Dispatch,
    intake_limits: &IntakeLimits,
    order: &Order,
    stop: &CancellationToken,
    listener: &mut L,
) -> anyhow::Result<()> {
    // A copy of a letter that no sweep has seen yet would otherwise fail the job whose message goes back to its queue.
    if !order.dry_run {
        dispatch.sweep_dead_letters().await.context("ending jobs whose message is dead")?;
    }
    let (jobs, found) = (HashSet::new(), HashSet::new());
    let mut work = Work { dispatch, intake_limits, stop, order, listener, jobs, found, letters_left: false };
    work.run().await
}

struct Work<'a, L> {
    dispatch: &'a Dispatch,
    intake_limits: &'a IntakeLimits,
    stop: &'a CancellationToken,
    order: &'a Order,
    listener: &'a mut L,
    /// Jobs that were selected by id and have been read.
    jobs: HashSet<JobId>,
    /// Ids that were asked for and found.
    found: HashSet<String>,
    /// Whether a settled job may have left a letter behind.
    letters_left: bool,
}

impl<L: Listener> Work<'_, L> {
    async fn run(&mut self) -> anyhow::Result<()> {
        match &self.order.selection {
            Selection::All(filter) => {
                if filter.takes(Kind::Job) {
                    self.all_jobs(filter).await?;
                }
                if filter.takes(Kind::Message) || self.letters_left {
                    self.messages().await?;
                }
                Ok(())
            }
            Selection::Ids(ids) => {
                self.jobs_by_id(ids).await?;
                if self.letters_left || ids.iter().any(|id| !self.found.contains(id)) {
                    self.messages().await?;
                }
                self.report_missing(ids).await
            }
        }
    }

    /// Checks only after the listener has kept up.
    async fn check_stop(&mut self) -> anyhow::Result<()> {
        self.listener.keep_up().await;
        if self.stop.is_cancelled() {
            bail!("interrupted; what was done stays done");
        }
        Ok(())
    }

    async fn all_jobs(&mut self, filter: &Filter) -> anyhow::Result<()> {
        let store = &self.dispatch.store;
        let by = store.clock().await.context("asking Postgres for the time")?.now();
        let mut after = None;
        loop {
            self.check_stop().await?;
            let chunk =
                store.failed_after(&filter.of, after, by, JOBS).await.context("reading failed jobs")?;
            let (Some(last), count) = (chunk.last(), chunk.len()) else { return Ok(()) };
            after = Some(last.job_id);
            self.settle(chunk).await?;
            self.listener.hear(Event::Looked(count as u64));
        }
    }

    async fn jobs_by_id(&mut self, ids: &[String]) -> anyhow::Result<()> {
        let mut jobs: Vec<JobId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
        jobs.sort();
        jobs.dedup();
        for chunk in jobs.chunks(JOBS as usize) {
            self.check_stop().await?;
            let jobs = failed(&self.dispatch.store, chunk).await?;
            self.jobs.extend(jobs.iter().map(|job| job.job_id));
            self.settle(jobs).await?;
        }
        let is_found = |id: &&String| id.parse().is_ok_and(|id| self.jobs.contains(&id));
        self.found.extend(ids.iter().filter(is_found).cloned());
        Ok(())
    }

    /// Redrives or dismisses failed jobs.
    async fn settle(&mut self, jobs: Vec<FailedJob>) -> anyhow::Result<()> {
        let leaves_letter = [FailureCode::UnknownAgent, FailureCode::DeadLettered].map(FailureCode::as_str);
        self.letters_left |= jobs.iter().any(|job| leaves_letter.contains(&job.code.as_str()));
        let mut open = Vec::new();
        for job in jobs {
            match settled(&job) {
                Some(why) => self.note_job(job.job_id, Disposition::Kept(why)),
                None => open.push(job),
            }
        }
        match &self.order.act {
            Act::Drop => self.dismiss(open.iter().map(|job| job.job_id).collect()).await,
            Act::Redrive { to_pool } => self.redrive(&open, to_pool.as_ref()).await,
        }
    }

    async fn dismiss(&mut self, jobs: Vec<JobId>) -> anyhow::Result<()> {
        let dropped: HashSet<JobId> = if self.order.dry_run || jobs.is_empty() {
            jobs.iter().copied().collect()
        } else {
            let dismissed =
                self.dispatch.store.dismiss(&self.order.actor, &jobs).await.context("dismissing jobs")?;
            dismissed.into_iter().collect()
        };
        for job_id in jobs {
            self.note_job(job_id, if dropped.contains(&job_id) { Disposition::Dropped } else { lost() });
        }
        Ok(())
    }

    async fn redrive(&mut self, jobs: &[FailedJob], to_pool: Option<&Name>) -> anyhow::Result<()> {
        let limits = self.intake_limits.current();
        let mut renewing: Vec<(JobId, JobSpec)> = Vec::new();
        for job in jobs {
            match renewed(job, to_pool, &limits) {
                Ok(spec) => renewing.push((job.job_id, spec)),
                Err(why) => self.note_job(job.job_id, Disposition::Kept(why)),
            }
        }
        let ids: Vec<(JobId, JobId)> = renewing.iter().map(|(job_id, spec)| (*job_id, spec.job_id)).collect();
        if self.order.dry_run || ids.is_empty() {
            for (job_id, new) in ids {
                self.note_job(job_id, Disposition::Redriven(new));
            }
            return Ok(());
        }
        let submitted = submit::redrive(self.dispatch, &self.order.actor, renewing, &limits).await?;
        let taken: HashSet<JobId> = submitted.new.iter().copied().collect();
        for (job_id, new) in ids {
            self.note_job(job_id, if taken.contains(&new) { Disposition::Redriven(new) } else { lost() });
        }
        submitted.publish().await?;
        Ok(())
    }

    fn note_job(&mut self, job_id: JobId, disposition: Disposition) {
        self.listener.hear(Event::Settled {
            kind: Kind::Job,
            id: &job_id.to_string(),
            disposition: &disposition,
        });
    }

    async fn messages(&mut self) -> anyhow::Result<()> {
        let mut cursor = self.dispatch.broker.dead_letter_cursor().await.context("reading harness.dead")?;
        let done = self.walk(&mut cursor).await;
        // Closed even after an error: what was published must be removed.
        let closed = cursor.close().await.context("removing letters from harness.dead");
        done.and(closed)
    }

    async fn walk(&mut self, cursor: &mut DeadLetterCursor) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let mut more = true;
        while more {
            self.check_stop().await?;
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
                let Some(held) = cursor.next().await.context("reading harness.dead")? else {
                    more = false;
                    break;
                };
                let seen = Seen::new(held, &self.order.selection, now);
                // A letter that was not selected matters only if its job was settled.
                if seen.is_wanted || seen.peek.job_id.is_some() {
                    bytes += seen.held.letter.body.len();
                    chunk.push(seen);
                }
                if self.order.selection.takes_messages() {
                    self.listener.hear(Event::Looked(1));
                }
            }
            self.settle_letters(cursor, chunk).await?;
        }
        Ok(())
    }

    async fn settle_letters(
        &mut self,
        cursor: &mut DeadLetterCursor,
        chunk: Vec<Seen>,
    ) -> anyhow::Result<()> {
        let standing = standing(&self.dispatch.store, chunk.iter().map(|seen| &seen.peek)).await?;
        let limits = self.intake_limits.current();
        let by_id = matches!(self.order.selection, Selection::Ids(_));
        let step = |seen: &Seen| {
            let standing = standing_of(&standing, &seen.peek);
            step(&self.order.act, &seen.held.letter, &seen.peek, standing, &limits)
        };
        let steps: Vec<Step> = chunk.iter().map(step).collect();
        self.log(&chunk, &steps).await?;
        let mut publishing = FuturesUnordered::new();
        for (seen, step) in chunk.into_iter().zip(steps) {
            let letter = &seen.held.letter;
            if let Selection::Ids(ids) = &self.order.selection {
                self.found.extend(ids.iter().filter(|id| is_called(letter, id)).cloned());
            }
            match step {
                Step::Clear => self.clear(cursor, seen),
                Step::AsJob(job_id) if seen.is_wanted && by_id && self.jobs.insert(job_id) => {
                    let jobs = failed(&self.dispatch.store, &[job_id]).await?;
                    self.settle(jobs).await?;
                    let after = self.dispatch.store.standing(&[job_id]).await.context("asking for a job")?;
                    if after.iter().all(|standing| !standing.open) {
                        self.clear(cursor, seen);
                    }
                }
                // It belongs to a job, and goes when the job is settled.
                Step::AsJob(_) => {}
                _ if !seen.is_wanted => {}
                Step::Keep(why) => self.note(&seen, Disposition::Kept(why)),
                Step::Remove => {
                    self.note(&seen, Disposition::Dropped);
                    self.remove(cursor, seen);
                }
                Step::Publish(queue) if self.order.dry_run => self.note(&seen, Disposition::Returned(queue)),
                Step::Publish(queue) => {
                    let publisher = &self.dispatch.publisher;
                    publishing.push(async move {
                        let published = publisher.redrive(&seen.held, &queue).await;
                        (seen, queue, published)
                    });
                }
            }
        }
        while let Some((seen, queue, published)) = publishing.next().await {
            match published {
                Ok(()) => {
                    self.note(&seen, Disposition::Returned(queue));
                    self.remove(cursor, seen);
                }
                Err(error) => self.note(&seen, Disposition::Kept(error.to_string())),
            }
        }
        Ok(())
    }

    /// Writes down what is about to be done with the messages that belong to no job.
    async fn log(&self, chunk: &[Seen], steps: &[Step]) -> anyhow::Result<()> {
        if self.order.dry_run {
            return Ok(());
        }
        for (act, is_of) in [
            (MessageAct::Returned, (|step| matches!(step, Step::Publish(_))) as fn(&Step) -> bool),
            (MessageAct::Dropped, |step| matches!(step, Step::Remove)),
        ] {
            let of_act = chunk.iter().zip(steps).filter(|(seen, step)| seen.is_wanted && is_of(step));
            let ids: Vec<String> = of_act.map(|(seen, _)| id_of(&seen.held.letter)).collect();
            if !ids.is_empty() {
                let noting = self.dispatch.store.note_messages(&self.order.actor, act, &ids);
                noting.await.context("writing the operators' log")?;
            }
        }
        Ok(())
    }

    fn note(&mut self, seen: &Seen, disposition: Disposition) {
        self.listener.hear(Event::Settled {
            kind: Kind::Message,
            id: &id_of(&seen.held.letter),
            disposition: &disposition,
        });
    }

    fn clear(&mut self, cursor: &mut DeadLetterCursor, seen: Seen) {
        self.note(&seen, Disposition::Cleared);
        self.remove(cursor, seen);
    }

    fn remove(&self, cursor: &mut DeadLetterCursor, seen: Seen) {
        if !self.order.dry_run {
            cursor.remove(seen.held);
        }
    }

    /// Reports for each id that was not found what it is instead.
    async fn report_missing(&mut self, ids: &[String]) -> anyhow::Result<()> {
        for id in ids.iter().filter(|id| !self.found.contains(*id)) {
            let state = match id.parse::<JobId>() {
                Ok(job_id) => self.dispatch.store.jobs(&[job_id]).await.context("reading a job")?.pop(),
                Err(_) => None,
            };
            let why = match state {
                Some(view) => format!("it has not failed: {}", view.state),
                None => "no such dead letter".to_owned(),
            };
            self.listener.hear(Event::Missing { id, why: &why });
        }
        Ok(())
    }
}

/// A letter that this run holds, and what is known of it.
struct Seen {
    held: HeldLetter,
    peek: Peek,
    /// Whether it was selected.
    is_wanted: bool,
}

impl Seen {
    fn new(held: HeldLetter, selection: &Selection, now: SystemTime) -> Seen {
        let peek = peek(&held.letter);
        let is_wanted = match selection {
            Selection::All(filter) => filter.passes(&held.letter, &peek, now),
            Selection::Ids(ids) => ids.iter().any(|id| is_called(&held.letter, id)),
        };
        Seen { held, peek, is_wanted }
    }
}

/// What was done about a failed job before.
pub(super) fn settled(job: &FailedJob) -> Option<String> {
    match (job.redriven_as, &job.dismissed_at) {
        (Some(new), _) => Some(format!("was redriven before, as {new}")),
        (None, Some(at)) => Some(format!("was dropped before, at {at}")),
        (None, None) => None,
    }
}

fn lost() -> Disposition {
    Disposition::Kept("another caller has just settled it".to_owned())
}
