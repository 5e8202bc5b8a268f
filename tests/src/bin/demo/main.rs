//! `make demo`: two real workers, several hundred real jobs, and a SIGKILL in the middle of them; then a burst for an
//! autoscaler, and agents that call a model.
//!
//! It declares a workload, submits it over HTTP with `producer`, kills a worker half-way and watches the other one continue. At
//! the end it compares every job and every session in the ledger with what was declared. Exit codes: 0 all promises
//! were kept, 1 one was broken or something failed, 130 and 143 interrupted. Needs `AMQP_URL` and `DATABASE_URL`, which
//! `ops/dev/demo` provides.
//!
//! A run has its own pool, queue and sessions, so that any number of runs may share a broker and a ledger.

mod documents;
mod workload;
mod programs;
mod door;
mod workers;
mod ledger;
mod crash;
mod display;
mod check;
mod report;
mod scaling;
mod models;

use std::io::stderr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{interval, timeout};

use crash::Crash;
use display::{Display, RED, bold};
use door::Door;
use ledger::{LOOK, LedgerReader};
use models::Models;
use programs::{Programs, python_is_there, short};
use report::Report;
use scaling::Scaling;
use workers::{Setup, Worker};
use workload::Workload;

/// Two workers, several hundred jobs, and a SIGKILL in the middle of them; then every job is checked.
#[derive(Parser)]
#[command(name = "demo")]
struct Args {
    /// Number of jobs
    #[arg(long, default_value_t = 320, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    jobs: u64,
    /// Number of sessions; each runs its jobs one after the other
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(2..=1_000))]
    sessions: u64,
    /// The workers' lease in seconds: how long after its last heartbeat a worker counts as dead
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=60))]
    lease_s: u64,
    /// The folder for logs and the sessions' folders
    #[arg(long, env = "HARNESS_DEV_DIR", default_value = ".dev")]
    dev_dir: PathBuf,
    /// Address of RabbitMQ
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    /// Address of Postgres
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
}

/// The interval between reads of the ledger.
const TICK: Duration = Duration::from_millis(200);
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// After this many seconds plus a lease without any change, the run is given up.
const STUCK_TIMEOUT_S: u64 = 30;
/// A worker has a slot for each session up to this limit, so that the survivor can continue all of them at once.
const MOST_SLOTS: u32 = 64;
const RESUMPTIONS_TOLD: usize = 4;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut demo = match Demo::new(Args::parse()) {
        Ok(demo) => demo,
        Err(error) => return fail(&error),
    };
    let result = tokio::select! {
        biased;
        code = interrupted() => Err(code),
        result = demo.run() => Ok(result),
    };
    match result {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            demo.kill_workers().await;
            eprintln!("The workers' logs are in {}", demo.folder.display());
            fail(&error)
        }
        Err(code) => {
            demo.abandon().await;
            code
        }
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("{} {error:#}", bold(&stderr(), RED, "demo:"));
    ExitCode::FAILURE
}

/// Resolves with an exit code when a signal asks this program to end.
async fn interrupted() -> ExitCode {
    let listen = |kind| signal(kind).expect("signals can be listened for");
    let (mut hangup, mut interrupt, mut terminate) =
        (listen(SignalKind::hangup()), listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    let number = tokio::select! {
        _ = hangup.recv() => 1,
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
    };
    ExitCode::from(128 + number)
}

struct Demo {
    programs: Programs,
    workload: Workload,
    lease_s: u64,
    /// The folder of this run: logs, jobs, workspaces, documents.
    folder: PathBuf,
    workers: Vec<Worker>,
}

impl Demo {
    fn new(args: Args) -> anyhow::Result<Demo> {
        let root = std::env::current_dir().context("finding the current folder")?;
        ensure!(root.join("ops/dev/agents.toml").is_file(), "expected to run in the repository's folder");
        let (jobs, sessions) = (args.jobs, args.sessions);
        ensure!(
            jobs >= sessions,
            "--jobs: got {jobs}, expected at least one for each of the {sessions} sessions"
        );
        let programs = Programs::find(&root, args.amqp_url, args.database_url)?;
        let run = uuid::Uuid::new_v4().simple().to_string()[..4].to_owned();
        let folder = args.dev_dir.join("demo").join(&run);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let documents = match python_is_there() {
            true => documents::copy(&root, &folder.join("documents"))?,
            false => Vec::new(),
        };
        let workload = Workload::new(&run, sessions as usize, jobs as usize, &documents)?;
        let folder = short(&root, &folder);
        Ok(Demo { programs, workload, lease_s: args.lease_s, folder, workers: Vec::new() })
    }

    /// Runs the whole demo. Returns false if a promise was broken.
    async fn run(&mut self) -> anyhow::Result<bool> {
        self.print_heading();
        let hint = "if an older build made the ledger, `ops/dev/services stop --wipe` removes it";
        self.programs.produce(&["migrate"]).await.context(hint)?;
        let sessions = self.workload.session_ids();
        let mut ledger =
            LedgerReader::connect(&self.programs.database_url, &self.workload.pool, sessions).await?;
        let mut door = Door::start(&self.programs, &self.folder)?;
        self.start_workers(&mut ledger).await?;
        let url = door.url().await?;
        let file = self.folder.join("jobs.jsonl");
        self.workload.write(&file)?;
        let started = Instant::now();
        self.programs.submit(&url, &file).await?;
        let crash = self.watch(&mut ledger, started).await?;
        let seconds = started.elapsed().as_secs_f64();
        let mut problems = self.stop_workers().await?;
        let scaled = self.scale(&url).await?;
        problems.extend(scaled);
        problems.extend(self.call_models(&url).await?);
        problems.extend(door.stop().await?);
        let kept = self.judge(&ledger, crash.as_ref(), seconds, problems).await?;
        if kept {
            self.programs.delete_queue(&self.workload.pool).await;
            for of_no_more_use in ["documents", "workspaces"] {
                let _ = std::fs::remove_dir_all(self.folder.join(of_no_more_use));
            }
        }
        Ok(kept)
    }

    /// The second act: an autoscaler follows a burst. Returns what went wrong.
    async fn scale(&self, url: &str) -> anyhow::Result<Vec<String>> {
        eprintln!("\n==> a burst for another pool, which an autoscaler grows and shrinks");
        let mut scaling = Scaling::start(&self.programs, &self.workload.pool, self.folder.clone()).await?;
        let played = scaling.play(url).await;
        let stopped = scaling.stop().await?;
        Ok(played?.into_iter().chain(stopped).collect())
    }

    /// The third act: agents call a model, and one worker is killed. Returns what went wrong.
    async fn call_models(&self, url: &str) -> anyhow::Result<Vec<String>> {
        eprintln!("\n==> agents with a tool call a model; half-way, one of their two workers is killed");
        let mut models =
            Models::start(&self.programs, &self.workload.pool, &self.folder, self.lease_s).await?;
        models.play(url).await
    }

    fn print_heading(&self) {
        let (jobs, sessions) = (self.workload.jobs().count(), self.workload.sessions.len());
        eprintln!(
            "\n==> {jobs} jobs in {sessions} sessions for two workers; half-way, one of them is killed"
        );
        eprintln!("    lease: {} s (10 s by default); logs: {}", self.lease_s, self.folder.display());
        if !self.workload.sessions.iter().any(|session| session.agent.as_str() == "reader") {
            eprintln!("    no python3, or too few sessions: all sessions play scripts, none reads documents");
        }
    }

    /// Starts both workers and waits until the ledger knows them.
    async fn start_workers(&mut self, ledger: &mut LedgerReader) -> anyhow::Result<()> {
        let setup = Setup {
            programs: &self.programs,
            pool: &self.workload.pool,
            slots: self.slots(),
            lease_s: self.lease_s,
            folder: &self.folder,
            agents: Path::new("ops/dev/agents.toml"),
            environment: &[],
        };
        let names = ['A', 'B'];
        for name in names {
            self.workers.push(Worker::start(name, &setup)?);
        }
        let deadline = Instant::now() + START_TIMEOUT;
        while !bounded(ledger.knows(&names)).await? {
            self.workers.iter_mut().try_for_each(Worker::check)?;
            ensure!(Instant::now() < deadline, "a worker did not start within {} s", START_TIMEOUT.as_secs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn slots(&self) -> u32 {
        (self.workload.sessions.len() as u32).min(MOST_SLOTS)
    }

    /// Watches until all jobs have ended or nothing moves any more, and kills a worker half-way.
    async fn watch(&mut self, ledger: &mut LedgerReader, started: Instant) -> anyhow::Result<Option<Crash>> {
        let (total, half) = (self.workload.job_ids().len() as i64, self.workload.iterations() as i64 / 2);
        let mut display = Display::new(&self.workload, &self.workers, self.slots());
        let mut crash: Option<Crash> = None;
        let mut tick = interval(TICK);
        let (mut before, mut moved) = (0, Instant::now());
        loop {
            tick.tick().await;
            self.workers.iter_mut().try_for_each(Worker::check)?;
            let now = bounded(ledger.snapshot()).await?;
            if let Some(crash) = &mut crash {
                follow(crash, ledger, &display).await?;
            } else if now.all_iterations() >= half
                && let Some(victim) = self.workers.iter_mut().max_by_key(|w| now.running_on(w.name))
                && now.running_on(victim.name) > 0
            {
                let caused = bounded(Crash::cause(victim, ledger, started.elapsed().as_secs_f64())).await?;
                display.say("");
                display.say(&format!(
                    "{} to worker {} (pid {}) after {:.1} s; it was running {} jobs",
                    bold(&stderr(), RED, "SIGKILL"),
                    caused.worker,
                    caused.pid,
                    caused.after_s,
                    caused.held.len()
                ));
                crash = Some(caused);
            }
            display.show(&now, &self.workload, &self.workers, crash.as_ref());
            let sum = now.all_iterations() + now.ended();
            if sum != before {
                (before, moved) = (sum, Instant::now());
            }
            let stuck_s = moved.elapsed().as_secs();
            if stuck_s > STUCK_TIMEOUT_S + self.lease_s {
                display.say(&format!("nothing has moved for {stuck_s} s"));
            } else if now.ended() < total {
                continue;
            }
            display.finish();
            return Ok(crash);
        }
    }

    /// Compares the ledger with the workload and prints the findings. Returns false if a promise was broken.
    async fn judge(
        &self,
        ledger: &LedgerReader,
        crash: Option<&Crash>,
        seconds: f64,
        mut problems: Vec<String>,
    ) -> anyhow::Result<bool> {
        let jobs = bounded(ledger.jobs(&self.workload.job_ids())).await?;
        let mut sessions = Vec::with_capacity(self.workload.sessions.len());
        for session in &self.workload.sessions {
            sessions.push(bounded(ledger.session(&session.id)).await?);
        }
        let mut findings = check::check(&self.workload, &jobs, &sessions, crash);
        let strays: Vec<String> = self.workload.strays.iter().map(|spec| spec.job_id.to_string()).collect();
        let dead_letters = self.programs.dead_letters(&strays).await?;
        let (found, expected) = (dead_letters.len(), strays.len());
        if found != expected {
            problems.push(format!(
                "{found} dead letters, expected {expected}: one for each job without an agent"
            ));
        }
        if crash.is_none() {
            problems.push("no worker was killed: the jobs ended too soon".to_owned());
        }
        findings.problems.append(&mut problems);
        let report = Report {
            workload: &self.workload,
            findings: &findings,
            crash,
            dead_letters: &dead_letters,
            seconds,
            lease_s: self.lease_s,
            folder: &self.folder,
            producer: &self.programs.producer,
        };
        report.print();
        Ok(findings.problems.is_empty())
    }

    /// Sends SIGTERM to the workers that live. Returns what was wrong with their ends.
    async fn stop_workers(&mut self) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        for worker in &mut self.workers {
            if !worker.stop().await? {
                problems.push(format!("worker {} did not end in good order on SIGTERM", worker.name));
            }
        }
        Ok(problems)
    }

    async fn kill_workers(&mut self) {
        for worker in &mut self.workers {
            if let Err(error) = worker.kill().await {
                eprintln!("demo: {error:#}");
            }
        }
    }

    /// Cleans up after a signal. No process stays, and no job that relays would publish for ever.
    async fn abandon(&mut self) {
        let started = !self.workers.is_empty();
        self.kill_workers().await;
        eprintln!("\ndemo: interrupted; the workers have been stopped");
        if !started {
            return;
        }
        let tidy = async {
            let url = &self.programs.database_url;
            LedgerReader::connect(url, &self.workload.pool, Vec::new()).await?.forget_unfinished().await
        };
        match timeout(Duration::from_secs(3), tidy).await {
            Ok(Ok(jobs)) => eprintln!("demo: its {jobs} unfinished jobs were removed from the ledger"),
            Ok(Err(error)) => eprintln!("demo: its unfinished jobs stay in the ledger: {error:#}"),
            Err(_) => eprintln!("demo: its unfinished jobs stay in the ledger: Postgres does not answer"),
        }
        self.programs.delete_queue(&self.workload.pool).await;
    }
}

/// Bounds a read of the ledger.
async fn bounded<T>(look: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(LOOK, look).await.context("the ledger does not answer")?
}

/// Looks for jobs of the killed worker that have resumed, and reports the first ones.
async fn follow(crash: &mut Crash, ledger: &mut LedgerReader, display: &Display) -> anyhow::Result<()> {
    let text = crash.resumed.len();
    if bounded(crash.look(ledger)).await? == 0 {
        return Ok(());
    }
    for resumed in crash.resumed.iter().take(RESUMPTIONS_TOLD).skip(text) {
        if let Some(held) = crash.held_job(resumed.job_id) {
            display.say(&format!("  {}", crash.report(held, resumed)));
        }
    }
    if crash.all_resumed()
        && let Some((_, last_s)) = crash.recoveries_s()
        && crash.held.len() > RESUMPTIONS_TOLD
    {
        let more = crash.held.len() - RESUMPTIONS_TOLD;
        display.say(&format!("  and {more} more: all {} had resumed after {last_s:.1} s", crash.held.len()));
    }
    Ok(())
}
