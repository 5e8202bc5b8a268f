//! `producer dead redrive` and `drop`: first the jobs, then the messages.
//!
//! In chunks, so that any number takes little memory. Both walks end where their list ended when they began: what dies
//! again because it was redriven does not come again. A letter whose job has been settled, now or before, is removed by
//! whoever comes across it.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{FailureCode, Glimpse, JobId, JobSpec, Name};
use queue::{DeadWalk, HeldLetter};
use relay::Relay;
use service::{note, printed};
use store::FailedJob;
use tokio_util::sync::CancellationToken;

use super::filter::{Filter, Kind};
use super::report::{Fate, Report};
use super::view::{CHUNK, failed, glimpse, id_of, is_called, of, standing};
use crate::cli::context::Yardstick;
use crate::cli::progress::Progress;
use crate::letter::{Act, Step, renewed, step};
use crate::submit;

/// Jobs per transaction; each brings its whole envelope along.
const JOBS: i64 = 64;
/// Bodies per chunk of letters.
const CHUNK_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, Args)]
pub struct Redrive {
    #[command(flatten)]
    pub which: Which,
    /// Into this pool instead of the one that each came from
    #[arg(long)]
    pub to_pool: Option<Name>,
}

/// What is to be settled.
#[derive(Debug, Args)]
pub struct Which {
    /// Jobs' ids, and messages' ids as the list shows them
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All that pass the filters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Everything is meant: --all without a filter
    #[arg(long)]
    yes: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// One JSON object per line for each: kind, id, fate, and the new job, the queue or the reason
    #[arg(long)]
    json: bool,
}

impl Which {
    /// Does it to all that is meant.
    pub async fn run(
        &self,
        act: Act,
        yardstick: &Yardstick,
        relay: &Relay,
        stop: &CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        if !self.all && !self.filter.is_empty() {
            note!("filters choose among all: got ids, expected --all or no filters");
            return Ok(ExitCode::from(2));
        }
        if self.all && self.filter.is_empty() && !self.yes && !self.dry_run {
            note!("--all without a filter means every dead letter: add --yes, or --dry-run to see them");
            return Ok(ExitCode::from(2));
        }
        // Else a letter's copy that nobody has looked at yet would fail the job that its message makes when it is back.
        if !self.dry_run {
            relay::sweep_dead(relay).await.context("ending jobs whose message is dead")?;
        }
        let progress = Progress::new(self.count(relay).await?);
        let report = Report::new(progress, self.json, self.dry_run, !self.all);
        let mut work = Work {
            relay,
            yardstick,
            stop,
            act,
            which: self,
            report,
            jobs: HashSet::new(),
            found: HashSet::new(),
            letters_left: false,
        };
        let done = work.run().await;
        let code = work.report.finish();
        done.map(|()| code)
    }

    /// How many there may be to look at.
    async fn count(&self, relay: &Relay) -> anyhow::Result<Option<u64>> {
        if !self.all {
            return Ok(None);
        }
        let jobs = match self.filter.takes(Kind::Job) {
            true => relay.store.count_failed(&self.filter.of_jobs()).await.context("counting failed jobs")?,
            false => 0,
        };
        let letters = match self.filter.takes(Kind::Message) {
            true => relay.broker.dead_letter_count().await.context("counting harness.dead")?,
            false => 0,
        };
        Ok(Some(jobs + letters))
    }
}

struct Work<'a> {
    relay: &'a Relay,
    yardstick: &'a Yardstick,
    stop: &'a CancellationToken,
    act: Act,
    which: &'a Which,
    report: Report,
    /// Jobs that were asked for by their ids and looked at.
    jobs: HashSet<JobId>,
    /// Ids that were asked for and found.
    found: HashSet<String>,
    /// Whether a job was settled that may have left a letter behind.
    letters_left: bool,
}

impl Work<'_> {
    async fn run(&mut self) -> anyhow::Result<()> {
        if self.which.all {
            if self.which.filter.takes(Kind::Job) {
                self.all_jobs().await?;
            }
            if self.which.filter.takes(Kind::Message) || self.letters_left {
                self.messages().await?;
            }
            return Ok(());
        }
        self.jobs_by_id().await?;
        if self.letters_left || self.which.ids.iter().any(|id| !self.found.contains(id)) {
            self.messages().await?;
        }
        self.tell_missing().await
    }

    /// Waits for who reads what became of those before.
    async fn check_stop(&self) -> anyhow::Result<()> {
        printed(self.stop).await;
        if self.stop.is_cancelled() {
            bail!("interrupted; what was done stays done");
        }
        Ok(())
    }

    async fn all_jobs(&mut self) -> anyhow::Result<()> {
        let (store, filter) = (&self.relay.store, self.which.filter.of_jobs());
        let by = store.clock().await.context("asking Postgres for the time")?.now();
        let mut after = None;
        loop {
            self.check_stop().await?;
            let chunk = store.failed_after(&filter, after, by, JOBS).await.context("reading failed jobs")?;
            let (Some(last), count) = (chunk.last(), chunk.len()) else { return Ok(()) };
            after = Some(last.job_id);
            self.settle(chunk).await?;
            self.report.progress.advance(count as u64);
        }
    }

    async fn jobs_by_id(&mut self) -> anyhow::Result<()> {
        let mut ids: Vec<JobId> = self.which.ids.iter().filter_map(|id| id.parse().ok()).collect();
        ids.sort();
        ids.dedup();
        for chunk in ids.chunks(JOBS as usize) {
            self.check_stop().await?;
            let jobs = failed(&self.relay.store, chunk).await?;
            self.jobs.extend(jobs.iter().map(|job| job.job_id));
            self.settle(jobs).await?;
        }
        let is_found = |id: &&String| id.parse().is_ok_and(|id| self.jobs.contains(&id));
        self.found.extend(self.which.ids.iter().filter(is_found).cloned());
        Ok(())
    }

    /// Redrives or dismisses failed jobs. Each is told of.
    async fn settle(&mut self, jobs: Vec<FailedJob>) -> anyhow::Result<()> {
        let mut specs: Vec<(JobId, JobSpec)> = Vec::new();
        let mut dropping = Vec::new();
        for job in &jobs {
            let leaves_letter = [FailureCode::UnknownAgent, FailureCode::DeadLettered];
            self.letters_left |= leaves_letter.iter().any(|code| code.as_str() == job.code);
            if let Some(why) = settled(job) {
                self.note_job(job.job_id, Fate::Kept(why));
                continue;
            }
            match &self.act {
                Act::Drop => dropping.push(job.job_id),
                Act::Redrive { to_pool } => match renewed(job, to_pool.as_ref(), &self.yardstick.limits()) {
                    Ok(spec) => specs.push((job.job_id, spec)),
                    Err(why) => self.note_job(job.job_id, Fate::Kept(why)),
                },
            }
        }
        let (store, dry_run) = (&self.relay.store, self.which.dry_run);
        let done: HashSet<JobId> = match dry_run {
            true => specs.iter().map(|(_, spec)| spec.job_id).chain(dropping.iter().copied()).collect(),
            false if !specs.is_empty() => {
                store.redrive(&specs).await.context("redriving jobs")?.into_iter().collect()
            }
            false if !dropping.is_empty() => {
                store.dismiss(&dropping).await.context("dismissing jobs")?.into_iter().collect()
            }
            false => HashSet::new(),
        };
        let lost = || Fate::Kept("somebody else has just settled it".to_owned());
        for job_id in dropping {
            self.note_job(job_id, if done.contains(&job_id) { Fate::Dropped } else { lost() });
        }
        let mut new = Vec::new();
        for (job_id, spec) in &specs {
            if done.contains(&spec.job_id) {
                self.note_job(*job_id, Fate::Redriven(spec.job_id));
                new.push(spec);
            } else {
                self.note_job(*job_id, lost());
            }
        }
        if dry_run || new.is_empty() {
            return Ok(());
        }
        submit::make_room(self.relay, &new).await?;
        submit::publish(self.relay, new.into_iter().map(submit::due).collect()).await?;
        Ok(())
    }

    fn note_job(&mut self, job_id: JobId, fate: Fate) {
        self.report.note(Kind::Job, &job_id.to_string(), &fate);
    }

    async fn messages(&mut self) -> anyhow::Result<()> {
        let mut walk = self.relay.broker.walk_dead_letters().await.context("reading harness.dead")?;
        let done = self.walk(&mut walk).await;
        // Also after an error: what was published must be removed.
        let closed = walk.close().await.context("removing letters from harness.dead");
        done.and(closed)
    }

    async fn walk(&mut self, walk: &mut DeadWalk) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let mut more = true;
        while more {
            self.check_stop().await?;
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
                let Some(held) = walk.next().await.context("reading harness.dead")? else {
                    more = false;
                    break;
                };
                let seen = Seen::new(held, self.which, now);
                // One that nobody asked for is looked at only because its job may have been settled.
                if seen.is_wanted || seen.glimpse.job_id.is_some() {
                    bytes += seen.held.letter.body.len();
                    chunk.push(seen);
                }
                if self.which.filter.takes(Kind::Message) {
                    self.report.progress.advance(1);
                }
            }
            self.settle_letters(walk, chunk).await?;
        }
        Ok(())
    }

    async fn settle_letters(&mut self, walk: &mut DeadWalk, chunk: Vec<Seen>) -> anyhow::Result<()> {
        let standing = standing(&self.relay.store, chunk.iter().map(|seen| &seen.glimpse)).await?;
        let limits = self.yardstick.limits();
        let mut publishing = FuturesUnordered::new();
        for seen in chunk {
            let letter = &seen.held.letter;
            if seen.is_wanted {
                let ids = self.which.ids.iter().filter(|id| is_called(letter, id));
                self.found.extend(ids.cloned());
            }
            let step = step(&self.act, letter, &seen.glimpse, of(&standing, &seen.glimpse), &limits);
            match step {
                Step::Clear => self.clear(walk, seen),
                Step::AsJob(job_id) if seen.is_wanted && !self.which.all && self.jobs.insert(job_id) => {
                    let jobs = failed(&self.relay.store, &[job_id]).await?;
                    self.settle(jobs).await?;
                    let after = self.relay.store.standing(&[job_id]).await.context("asking for a job")?;
                    if after.iter().all(|standing| !standing.open) {
                        self.clear(walk, seen);
                    }
                }
                // A job's letter, which goes when the job is settled.
                Step::AsJob(_) => {}
                _ if !seen.is_wanted => {}
                Step::Keep(why) => self.note(&seen, Fate::Kept(why)),
                Step::Remove => {
                    self.note(&seen, Fate::Dropped);
                    self.remove(walk, seen);
                }
                Step::Publish(queue) if self.which.dry_run => self.note(&seen, Fate::Returned(queue)),
                Step::Publish(queue) => {
                    let publisher = &self.relay.publisher;
                    publishing.push(async move {
                        let published = publisher.revive(&seen.held, &queue).await;
                        (seen, queue, published)
                    });
                }
            }
        }
        while let Some((seen, queue, published)) = publishing.next().await {
            match published {
                Ok(()) => {
                    self.note(&seen, Fate::Returned(queue));
                    self.remove(walk, seen);
                }
                Err(error) => self.note(&seen, Fate::Kept(error.to_string())),
            }
        }
        Ok(())
    }

    fn note(&mut self, seen: &Seen, fate: Fate) {
        self.report.note(Kind::Message, &id_of(&seen.held.letter), &fate);
    }

    fn clear(&mut self, walk: &mut DeadWalk, seen: Seen) {
        self.note(&seen, Fate::Cleared);
        self.remove(walk, seen);
    }

    fn remove(&self, walk: &mut DeadWalk, seen: Seen) {
        if !self.which.dry_run {
            walk.remove(seen.held);
        }
    }

    /// Says of ids that nothing was found for what they are instead.
    async fn tell_missing(&mut self) -> anyhow::Result<()> {
        for id in self.which.ids.iter().filter(|id| !self.found.contains(*id)) {
            let state = match id.parse::<JobId>() {
                Ok(job_id) => self.relay.store.jobs(&[job_id]).await.context("reading a job")?.pop(),
                Err(_) => None,
            };
            match state {
                Some(view) => self.report.missing(id, &format!("it has not failed: {}", view.state)),
                None => self.report.missing(id, "no such dead letter"),
            }
        }
        Ok(())
    }
}

/// A letter in our hands, and what is known of it.
struct Seen {
    held: HeldLetter,
    glimpse: Glimpse,
    /// Whether it was asked for.
    is_wanted: bool,
}

impl Seen {
    fn new(held: HeldLetter, which: &Which, now: SystemTime) -> Seen {
        let glimpse = glimpse(&held.letter);
        let is_wanted = match which.all {
            true => which.filter.passes(&held.letter, &glimpse, now),
            false => which.ids.iter().any(|id| is_called(&held.letter, id)),
        };
        Seen { held, glimpse, is_wanted }
    }
}

/// What has been done about a failed job already.
fn settled(job: &FailedJob) -> Option<String> {
    match (job.redriven_as, &job.dismissed_at) {
        (Some(new), _) => Some(format!("was redriven before, as {new}")),
        (None, Some(at)) => Some(format!("was dropped before, at {at}")),
        (None, None) => None,
    }
}
