//! `producer enqueue`: one job from flags, or many from JSON lines.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{JobId, JobSpec, Json, Name, OnBusy};
use relay::Relay;
use tokio::sync::mpsc;

use super::context::{Context, Yardstick};
use super::progress::Progress;
use crate::sends::Sends;
use crate::submit::{self, Taken};

/// Jobs per transaction.
const BATCH: usize = 500;
/// Batches that are being published while the next is accepted.
const PUBLISHING: usize = 4;

/// Enqueue one job from flags, or many from JSON lines.
///
/// Prints the ids of the accepted jobs (with --file: only a summary, unless --print-ids). A line is a JSON object such
/// as {"session_id":"s-1","agent_id":"echo","input":{"any":"thing"}}; further fields: job_id, user_id, pool, retry
/// {max_attempts, base_delay_ms, max_delay_ms}, timeout_ms, deadline_ms, max_stalled_iterations, on_busy, reply_to,
/// correlation_id, traceparent. A job_id that was accepted before is the same job and is not run again.
///
/// Exit codes: 0 all jobs are accepted, 1 something failed, 2 wrong arguments, 3 some lines were refused.
#[derive(Debug, Args)]
pub struct Enqueue {
    /// The session to continue; it is made when it does not exist
    #[arg(long, required_unless_present = "file")]
    session: Option<Name>,
    /// The agent, as named in the workers' agents.toml
    #[arg(long, required_unless_present = "file")]
    agent: Option<Name>,
    /// What the agent is given, as JSON
    #[arg(long, default_value = "null")]
    input: String,
    /// On whose behalf
    #[arg(long)]
    user: Option<String>,
    /// The pool of workers
    #[arg(long, default_value = "default")]
    pool: Name,
    /// An id of your own, a UUID of version 7
    #[arg(long)]
    job_id: Option<JobId>,
    /// Attempts in all, the first included
    #[arg(long, default_value_t = 3)]
    max_attempts: u32,
    /// Wall-clock limit of an attempt
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Milliseconds within which the job must have ended, all attempts and waits included
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// Iterations in a row that may change neither memory nor progress
    #[arg(long)]
    max_stalled_iterations: Option<u32>,
    /// What to do when the session is busy: enqueue (wait), reject (fail), interrupt (stop the running job at its next
    /// checkpoint), rollback (stop it now and undo it)
    #[arg(long, default_value = "enqueue")]
    on_busy: OnBusy,
    /// A file of JSON lines, - for stdin
    #[arg(long, conflicts_with_all = ["session", "agent", "input", "user", "pool", "job_id", "max_attempts", "timeout_ms",
          "deadline_ms", "max_stalled_iterations", "on_busy"])]
    file: Option<PathBuf>,
    /// Stop at the first line that is refused; the lines before it stay accepted
    #[arg(long, requires = "file")]
    strict: bool,
    /// Print the id of every accepted job, one a line
    #[arg(long, requires = "file")]
    print_ids: bool,
}

impl Enqueue {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (yardstick, relay) = context.relay("producer enqueue").await?;
        let result = match &self.file {
            Some(file) => {
                Bulk { yardstick: &yardstick, relay: &relay, args: &self }.run(file.clone(), &context).await
            }
            None => self.one(&yardstick, &relay).await,
        };
        relay.broker.close().await;
        result
    }

    async fn one(&self, yardstick: &Yardstick, relay: &Relay) -> anyhow::Result<ExitCode> {
        let (Some(session_id), Some(agent_id)) = (self.session.clone(), self.agent.clone()) else {
            bail!("--session and --agent are needed");
        };
        let input = match Json::parse(&self.input) {
            Ok(input) => input,
            Err(error) => return Ok(refuse(&format!("--input: {error}"))),
        };
        let mut spec = JobSpec::new(session_id, agent_id, input);
        spec.job_id = self.job_id.unwrap_or(spec.job_id);
        spec.user_id = self.user.clone();
        spec.pool = self.pool.clone();
        spec.retry.max_attempts = self.max_attempts;
        spec.timeout_ms = self.timeout_ms;
        spec.deadline_ms = self.deadline_ms;
        spec.max_stalled_iterations = self.max_stalled_iterations;
        spec.on_busy = self.on_busy;
        // The same measure as at the other end of the queue, the size included.
        if let Err(error) = job::decode(job::encode(&spec).as_bytes(), None, &yardstick.limits()) {
            return Ok(refuse(&error.to_string()));
        }
        let mut sends = Sends::begin(std::slice::from_mut(&mut spec), &yardstick.limits());
        let Taken { due, refused } = submit::accept(relay, std::slice::from_ref(&spec)).await?;
        sends.accepted(&due, &refused);
        if let Some((_, reason)) = refused.first() {
            return Ok(refuse(reason));
        }
        if due.is_empty() {
            eprintln!("{} was accepted before", spec.job_id);
        } else if submit::publish(relay, due).await? == 0 {
            eprintln!("{} is accepted; its message follows when the broker takes it", spec.job_id);
        }
        println!("{}", spec.job_id);
        Ok(ExitCode::SUCCESS)
    }
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("not accepted: {problem}");
    ExitCode::from(2)
}

/// What became of a file.
#[derive(Default)]
struct Sums {
    accepted: usize,
    duplicates: usize,
    refused: usize,
    unconfirmed: usize,
}

struct Bulk<'a> {
    yardstick: &'a Yardstick,
    relay: &'a Relay,
    args: &'a Enqueue,
}

impl Bulk<'_> {
    /// Accepts in the order of the lines, which is the order within each session; publishes behind.
    async fn run(&self, file: PathBuf, context: &Context) -> anyhow::Result<ExitCode> {
        let (lines, total) = read_lines(file)?;
        let progress = Progress::new(total);
        let mut sums = Sums::default();
        let result = self.submit(lines, context, &progress, &mut sums).await;
        progress.finish();
        let seconds = progress.elapsed().as_secs_f64();
        eprintln!(
            "{} jobs accepted, {} accepted before, {} lines refused, in {seconds:.1} s ({:.0} jobs/s)",
            sums.accepted,
            sums.duplicates,
            sums.refused,
            sums.accepted as f64 / seconds.max(1e-3)
        );
        if sums.unconfirmed > 0 {
            eprintln!(
                "{} of them were not confirmed by the broker yet; a relay sends them again",
                sums.unconfirmed
            );
        }
        result?;
        Ok(if sums.refused > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }

    async fn submit(
        &self,
        mut lines: Chunks,
        context: &Context,
        progress: &Progress,
        sums: &mut Sums,
    ) -> anyhow::Result<()> {
        let mut publishing = FuturesUnordered::new();
        let mut stopped = false;
        while let Some(chunk) = lines.recv().await {
            let chunk = chunk.context("reading the lines")?;
            let read = chunk.len() as u64;
            let mut batch = Vec::with_capacity(chunk.len());
            for line in chunk {
                match job::decode_loose(&line.text, &self.yardstick.limits()) {
                    Ok(spec) => batch.push(spec),
                    Err(error) => {
                        sums.refused += 1;
                        progress.say(&format!("line {}: {error}", line.number));
                        stopped = self.args.strict;
                        if stopped {
                            break;
                        }
                    }
                }
            }
            let mut sends = Sends::begin(&mut batch, &self.yardstick.limits());
            let Taken { due, refused } = submit::accept(self.relay, &batch).await?;
            sends.accepted(&due, &refused);
            sums.accepted += due.len();
            sums.duplicates += batch.len() - due.len() - refused.len();
            sums.refused += refused.len();
            for (job_id, reason) in &refused {
                progress.say(&format!("job {job_id}: {reason}"));
                stopped = stopped || self.args.strict;
            }
            if self.args.print_ids {
                due.iter().for_each(|job| println!("{}", job.job_id));
            }
            let count = due.len();
            publishing.push(async move {
                // They end with the broker's confirms.
                let _sends = sends;
                submit::publish(self.relay, due).await.map(|done| count - done)
            });
            if publishing.len() >= PUBLISHING
                && let Some(unconfirmed) = publishing.next().await
            {
                sums.unconfirmed += unconfirmed?;
            }
            progress.advance(read);
            if stopped || context.stop.is_cancelled() {
                break;
            }
        }
        while let Some(unconfirmed) = publishing.next().await {
            sums.unconfirmed += unconfirmed?;
        }
        if stopped {
            bail!("stopped at the first refused line (--strict); the lines before it are accepted");
        }
        if context.stop.is_cancelled() {
            bail!("interrupted; what was accepted stays accepted");
        }
        Ok(())
    }
}

struct Line {
    /// From 1.
    number: u64,
    text: String,
}

/// Chunks of lines, as they are read.
type Chunks = mpsc::Receiver<std::io::Result<Vec<Line>>>;

/// Reads on a thread of its own, in chunks; says how many lines there are when that can be known beforehand.
fn read_lines(file: PathBuf) -> anyhow::Result<(Chunks, Option<u64>)> {
    let open = || File::open(&file).with_context(|| format!("opening {}", file.display()));
    let (reader, total): (Box<dyn BufRead + Send>, _) = if file.as_os_str() == "-" {
        if stdin().is_terminal() {
            eprintln!("reading JSON lines from the terminal; end with Ctrl-D");
        }
        (Box::new(BufReader::new(stdin())), None)
    } else {
        let regular = open()?.metadata().is_ok_and(|meta| meta.is_file());
        let total = if regular { Some(count_lines(open()?)?) } else { None };
        (Box::new(BufReader::new(open()?)), total)
    };
    let (sender, receiver) = mpsc::channel(2);
    std::thread::spawn(move || {
        let mut chunk = Vec::with_capacity(BATCH);
        for (number, line) in (1..).zip(reader.split(b'\n')) {
            // Not UTF-8 is that line's problem, and is told as such.
            let text = match line {
                Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
                Err(error) => return drop(sender.blocking_send(Err(error))),
            };
            if !text.is_empty() {
                chunk.push(Line { number, text });
            }
            if chunk.len() == BATCH && sender.blocking_send(Ok(std::mem::take(&mut chunk))).is_err() {
                return;
            }
        }
        // The receiver is gone when the command has stopped early.
        let _ = sender.blocking_send(Ok(chunk));
    });
    Ok((receiver, total))
}

fn count_lines(file: File) -> anyhow::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut lines = 0;
    loop {
        let block = reader.fill_buf().context("counting the lines")?;
        if block.is_empty() {
            return Ok(lines);
        }
        lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = block.len();
        reader.consume(length);
    }
}
