//! `producer enqueue --file`: jobs from JSON lines, in batches as lines arrive.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use dispatch::Dispatch;
use harness_fleet::{Batch, Client};
use job::{JobId, JobSpec, Limits, ReplyRule};
use service::{note, printed};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::enqueue::in_words;
use super::lines::{BadLine, Line, Lines, Room};
use super::progress::Progress;
use crate::intake_limits::IntakeLimits;
use crate::submit::{Submitted, submit};

/// Jobs per transaction.
const BATCH: usize = 500;
/// Jobs that may be in publishing while more are accepted, so that a line that arrives alone need not wait for the
/// confirms of earlier lines.
const PUBLISHING: usize = 4 * BATCH;

/// Where jobs go.
pub enum Intake<'a> {
    /// Into the ledger, and from there to the broker.
    Ledger { limits: &'a IntakeLimits, dispatch: &'a Dispatch },
    /// To the HTTP API. It says itself how old an id may be, and where replies may go.
    Api { client: &'a Client, max_bytes: usize },
}

/// What became of jobs.
struct Taken {
    new: Vec<JobId>,
    refused: Vec<(JobId, String)>,
    accepted_before: usize,
    /// What is left to be published here.
    publish: Option<Submitted>,
    /// Why the rest has no answer.
    error: Option<anyhow::Error>,
}

impl Intake<'_> {
    fn limits(&self) -> Limits {
        match self {
            Intake::Ledger { limits, .. } => limits.current(),
            Intake::Api { max_bytes, .. } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let now_unix_ms = since.as_millis() as u64;
                Limits { max_bytes: *max_bytes, retention: since, now_unix_ms, replies: ReplyRule::default() }
            }
        }
    }

    async fn take(&self, jobs: Vec<JobSpec>) -> anyhow::Result<Taken> {
        match self {
            Intake::Ledger { dispatch, .. } => {
                let mut submitted = submit(dispatch, jobs, &self.limits()).await?;
                let refused = std::mem::take(&mut submitted.refused);
                let (new, accepted_before) = (submitted.new.clone(), submitted.accepted_before);
                Ok(Taken { new, refused, accepted_before, publish: Some(submitted), error: None })
            }
            Intake::Api { client, .. } => {
                let Batch { answers, error } = client.submit_all(&jobs).await;
                let (mut new, mut refused, mut accepted_before) = (Vec::new(), Vec::new(), 0);
                for (job, answer) in jobs.iter().zip(answers) {
                    match answer.problem {
                        Some(problem) => refused.push((job.job_id, in_words(problem))),
                        None if answer.status == 200 => accepted_before += 1,
                        None => new.push(job.job_id),
                    }
                }
                Ok(Taken { new, refused, accepted_before, publish: None, error: error.map(Into::into) })
            }
        }
    }
}

pub struct Bulk<'a> {
    pub intake: Intake<'a>,
    /// Stop at the first refused line.
    pub strict: bool,
    /// Print the ids of all accepted jobs.
    pub print_ids: bool,
}

/// What became of the lines so far.
#[derive(Default)]
struct Sums {
    accepted: usize,
    duplicates: usize,
    refused: usize,
    unconfirmed: usize,
    /// The number of the last line that was handled.
    last_line: u64,
}

impl Bulk<'_> {
    /// Accepts jobs in the order of the lines, which is the order within each session; publishes behind.
    pub async fn run(&self, file: PathBuf, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
        let mut lines = Lines::read(file, BATCH, self.intake.limits().max_bytes);
        // A pipe opens only once its other end is opened.
        let total = stop.run_until_cancelled(lines.total()).await.flatten();
        let progress = Progress::new(total);
        let mut sums = Sums::default();
        let result = self.submit(&mut lines, stop, &progress, &mut sums).await;
        progress.finish();
        let seconds = progress.elapsed().as_secs_f64();
        note!(
            "{} jobs accepted, {} accepted before, {} lines refused, in {seconds:.1} s ({:.0} jobs/s)",
            sums.accepted,
            sums.duplicates,
            sums.refused,
            sums.accepted as f64 / seconds.max(1e-3)
        );
        if sums.unconfirmed > 0 {
            note!(
                "{} of them are not yet confirmed by the broker; a relay sends them again",
                sums.unconfirmed
            );
        }
        result?;
        if stop.is_cancelled() && !lines.at_end() {
            note!("stopped by a signal after line {}; later lines were not sent", sums.last_line);
            return Ok(ExitCode::from(130));
        }
        Ok(if sums.refused > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }

    async fn submit(
        &self,
        lines: &mut Lines,
        stop: &CancellationToken,
        progress: &Progress,
        sums: &mut Sums,
    ) -> anyhow::Result<()> {
        let mut publishing = Publishing::default();
        let mut refused_one = false;
        while !(refused_one && self.strict) {
            let come = match stop.run_until_cancelled(lines.next(BATCH)).await {
                Some(come) => come?,
                // What was already read is still sent.
                None => {
                    lines.stop();
                    lines.next(BATCH).await?
                }
            };
            if come.is_empty() {
                break;
            }
            let before = sums.refused;
            let read = come.len() as u64;
            let (batch, room) = self.decode(come, progress, sums);
            self.accept(batch, room, progress, sums, &mut publishing).await?;
            // If the reader of stdout stalls, only later lines wait.
            printed(stop).await;
            sums.unconfirmed += publishing.settle(PUBLISHING).await?;
            refused_one = sums.refused > before;
            progress.advance(read);
        }
        sums.unconfirmed += publishing.settle(0).await?;
        if refused_one && self.strict {
            bail!("stopped at the first refused line (--strict); the lines before it are accepted");
        }
        Ok(())
    }

    /// Returns the jobs of these lines and the room that they take. With `strict`, it ends at the first refused line.
    fn decode(&self, lines: Vec<Line>, progress: &Progress, sums: &mut Sums) -> (Vec<JobSpec>, Vec<Room>) {
        let limits = self.intake.limits();
        let mut batch = Vec::with_capacity(lines.len());
        let mut room = Vec::with_capacity(lines.len());
        for line in lines {
            sums.last_line = line.number;
            match self.decode_line(&line, &limits).and_then(|spec| self.of_key(spec)) {
                Ok(spec) => {
                    batch.push(spec);
                    room.push(line.room);
                }
                Err(problem) => {
                    sums.refused += 1;
                    progress.say(&format!("line {}: {problem}", line.number));
                    if self.strict {
                        break;
                    }
                }
            }
        }
        (batch, room)
    }

    /// Decodes a line. A problem with the whole line is shown without the field name `body`, which means nothing for a
    /// line. Over the HTTP API a job without a session has one of its own, as the API has it.
    fn decode_line(&self, line: &Line, limits: &Limits) -> Result<JobSpec, String> {
        let text = line.text.as_ref().map_err(|bad| match bad {
            BadLine::TooLong { .. } => format!("{bad} (MAX_MESSAGE_BYTES)"),
            BadLine::NotUtf8 { .. } => bad.to_string(),
        })?;
        let own_session = matches!(self.intake, Intake::Api { .. });
        job::decode_loose(text, own_session, limits).map_err(|error| match error.field.as_str() {
            "body" => error.problem,
            _ => error.to_string(),
        })
    }

    /// Over the HTTP API the tenant is the key's.
    fn of_key(&self, spec: JobSpec) -> Result<JobSpec, String> {
        match (&self.intake, spec.tenant.unless_default()) {
            (Intake::Api { .. }, Some(tenant)) => {
                Err(format!("tenant: got \"{tenant}\", but over the HTTP API it is that of the key"))
            }
            _ => Ok(spec),
        }
    }

    async fn accept(
        &self,
        batch: Vec<JobSpec>,
        room: Vec<Room>,
        progress: &Progress,
        sums: &mut Sums,
        publishing: &mut Publishing,
    ) -> anyhow::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let taken = self.intake.take(batch).await?;
        let count = taken.new.len();
        sums.accepted += count;
        sums.duplicates += taken.accepted_before;
        sums.refused += taken.refused.len();
        for (job_id, reason) in &taken.refused {
            progress.say(&format!("job {job_id}: {reason}"));
        }
        let ids: Vec<String> = taken.new.iter().filter(|_| self.print_ids).map(ToString::to_string).collect();
        if let Some(submitted) = taken.publish {
            publishing.jobs += count;
            publishing.batches.spawn(async move {
                let confirmed = submitted.publish().await?;
                drop(room);
                Ok(Published { jobs: count, unconfirmed: count - confirmed })
            });
        }
        if !ids.is_empty() {
            progress.print(&ids.join("\n"));
        }
        taken.error.map_or(Ok(()), Err)
    }
}

/// Batches on their way to the broker.
#[derive(Default)]
struct Publishing {
    batches: JoinSet<anyhow::Result<Published>>,
    jobs: usize,
}

struct Published {
    jobs: usize,
    unconfirmed: usize,
}

impl Publishing {
    /// Waits until at most this many jobs are in publishing. Returns how many of the others were not confirmed.
    async fn settle(&mut self, most: usize) -> anyhow::Result<usize> {
        let mut unconfirmed = 0;
        loop {
            let over =
                if self.jobs > most { self.batches.join_next().await } else { self.batches.try_join_next() };
            let Some(published) = over else { return Ok(unconfirmed) };
            let published = published.context("publishing has panicked")??;
            self.jobs -= published.jobs;
            unconfirmed += published.unconfirmed;
        }
    }
}
