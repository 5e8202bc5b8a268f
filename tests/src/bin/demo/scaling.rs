//! The second act: a burst, and an autoscaler that grows and shrinks a pool of worker processes.

use std::io::stderr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use job::{JobSpec, Json, Name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sqlx::{Connection, PgConnection, Row};
use tokio::process::Child;
use tokio::time::{interval, timeout};

use crate::display::{GREEN, bold};
use crate::programs::{Programs, show};

/// Jobs of the burst. Each has its own session and takes a slot for some seconds.
const JOBS: usize = 24;
const SLOTS: u32 = 2;
const MIN: u32 = 1;
const MAX: u32 = 5;
/// The bound for the whole act.
const TIMEOUT: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(200);

/// An autoscaler with its own pool.
pub struct Scaling<'a> {
    programs: &'a Programs,
    pool: Name,
    folder: PathBuf,
    autoscaler: Child,
    tables: PgConnection,
}

/// What the ledger shows of the pool.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    workers: i64,
    draining: i64,
    waiting: i64,
    running: i64,
    ended: i64,
}

const SEEN: &str = "
    SELECT (SELECT count(*) FROM harness_workers WHERE pool = $1 AND state = 'alive'),
           (SELECT count(*) FROM harness_workers WHERE pool = $1 AND state = 'alive' AND drain_until > now()),
           (SELECT count(*) FROM harness_jobs WHERE pool = $1 AND state <> 'running'),
           (SELECT count(*) FROM harness_jobs WHERE pool = $1 AND state = 'running'),
           (SELECT count(*) FROM harness_results WHERE pool = $1)";

/// Jobs that did not succeed at the first attempt.
const TROUBLED: &str =
    "SELECT count(*) FROM harness_results WHERE pool = $1 AND (state <> 'succeeded' OR attempts <> 1)";

impl<'a> Scaling<'a> {
    /// Starts the autoscaler, which starts the workers.
    pub async fn start(programs: &'a Programs, run: &Name, folder: PathBuf) -> anyhow::Result<Scaling<'a>> {
        let pool: Name = format!("{run}-burst").parse()?;
        let file = folder.join("pools.toml");
        std::fs::write(&file, pools_file(&pool)).with_context(|| format!("writing {}", file.display()))?;
        let log = std::fs::File::create(folder.join("autoscaler.log"))?;
        let mut command = programs.command(&programs.autoscaler);
        command.args(["run", "--admin-addr", "127.0.0.1:0", "--lease-name", pool.as_str()]);
        command.arg("--pools").arg(&file).arg("--process-dir").arg(folder.join("burst"));
        command.env("AGENTS_FILE", "ops/dev/agents.toml").env("WORKER_SLOTS", SLOTS.to_string());
        command.env("WORKSPACE_DIR", folder.join("workspaces")).env("DRAIN_GRACE_S", "5");
        command.env("READER_ROOT", std::path::absolute(folder.join("documents"))?);
        command.process_group(0).stdout(log.try_clone()?).stderr(log);
        show(&format!("{} run --pools {} …", programs.autoscaler.display(), file.display()));
        let autoscaler = command.spawn().context("starting the autoscaler")?;
        let tables = PgConnection::connect(&programs.database_url).await.context("connecting to Postgres")?;
        Ok(Scaling { programs, pool, folder, autoscaler, tables })
    }

    /// Plays a burst from its start to its end. Returns what went wrong.
    pub async fn play(&mut self, url: &str) -> anyhow::Result<Vec<String>> {
        let started = Instant::now();
        self.watch(started, |seen| seen.workers >= i64::from(MIN)).await?;
        let file = self.folder.join("burst.jsonl");
        self.write_jobs(&file)?;
        self.programs.submit(url, &file).await?;
        let burst = Instant::now();
        let most = self.watch(burst, |seen| seen.ended == JOBS as i64).await?;
        self.watch(burst, |seen| seen.workers == i64::from(MIN)).await?;
        let mut problems = Vec::new();
        if most <= i64::from(MIN) {
            problems.push(format!("the pool did not grow: {most} workers at most"));
        }
        let troubled: i64 =
            sqlx::query(TROUBLED).bind(self.pool.as_str()).fetch_one(&mut self.tables).await?.get(0);
        match troubled {
            0 => eprintln!("    {JOBS} jobs, up to {most} workers and back to {MIN}: none was interrupted"),
            _ => problems.push(format!("{troubled} jobs of the burst were interrupted or failed")),
        }
        self.explain().await?;
        Ok(problems)
    }

    /// Prints every change until `until` holds. Returns the greatest number of workers.
    async fn watch(&mut self, since: Instant, until: impl Fn(&Seen) -> bool) -> anyhow::Result<i64> {
        let (mut tick, mut text, mut most) = (interval(TICK), None, 0);
        loop {
            tick.tick().await;
            if let Some(status) = self.autoscaler.try_wait()? {
                let log = self.folder.join("autoscaler.log");
                anyhow::bail!("the autoscaler ended by itself ({status}), see {}", log.display());
            }
            let row = sqlx::query(SEEN).bind(self.pool.as_str()).fetch_one(&mut self.tables);
            let row = timeout(crate::ledger::LOOK, row).await.context("the ledger does not answer")??;
            let seen = Seen {
                workers: row.get(0),
                draining: row.get(1),
                waiting: row.get(2),
                running: row.get(3),
                ended: row.get(4),
            };
            most = most.max(seen.workers);
            let workers = (seen.workers, seen.draining);
            if text.replace(workers) != Some(workers) {
                let bar: String = "■".repeat((seen.workers - seen.draining).max(0) as usize)
                    + &"□".repeat(seen.draining.max(0) as usize);
                eprintln!(
                    "    {:5.1} s  {} {bar:<5} workers: {}, draining: {}; jobs: {} waiting, {} running, {} ended",
                    since.elapsed().as_secs_f64(),
                    bold(&stderr(), GREEN, "scale"),
                    seen.workers,
                    seen.draining,
                    seen.waiting,
                    seen.running,
                    seen.ended
                );
            }
            if until(&seen) {
                return Ok(most);
            }
            ensure!(
                since.elapsed() < TIMEOUT,
                "the autoscaler's act took longer than {} s",
                TIMEOUT.as_secs()
            );
        }
    }

    async fn explain(&self) -> anyhow::Result<()> {
        let autoscaler = self.programs.autoscaler.display().to_string();
        show(&format!("{autoscaler} explain {} --limit 12", self.pool));
        let mut explain = self.programs.command(&self.programs.autoscaler);
        let status = explain.args(["explain", self.pool.as_str(), "--limit", "12"]).status();
        let status = timeout(TIMEOUT, status).await.context("`autoscaler explain` did not end")??;
        ensure!(status.success(), "`autoscaler explain` failed ({status})");
        Ok(())
    }

    fn write_jobs(&self, path: &std::path::Path) -> anyhow::Result<()> {
        let mut lines = String::new();
        for at in 0..JOBS {
            let iterations: Vec<_> = (0..5)
                .map(|step| json!({"delay_ms": 500 + at * 20, "say": format!("step {}", step + 1)}))
                .collect();
            let session = format!("{}-{at:02}", self.pool).parse()?;
            let input = Json::from_value(&json!({"iterations": iterations}))?;
            let mut spec = JobSpec::new(session, "scripted".parse()?, input);
            spec.pool = self.pool.clone();
            lines.push_str(&serde_json::to_string(&spec)?);
            lines.push('\n');
        }
        std::fs::write(path, lines).with_context(|| format!("writing {}", path.display()))
    }

    /// Sends SIGTERM: the autoscaler drains its workers, then ends.
    pub async fn stop(mut self) -> anyhow::Result<Vec<String>> {
        if let Some(pid) = self.autoscaler.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let ended =
            timeout(TIMEOUT, self.autoscaler.wait()).await.context("the autoscaler did not end")??;
        self.programs.delete_queue(&self.pool).await;
        Ok(if ended.success() { vec![] } else { vec![format!("the autoscaler ended with {ended}")] })
    }
}

fn pools_file(pool: &Name) -> String {
    format!(
        "# One pool of worker processes. Windows and periods are short, so that the changes can be watched.\n\
         [pools.{pool}]\ntarget = \"process\"\n\n[pools.{pool}.policy]\nmin_replicas = {MIN}\nmax_replicas = {MAX}\n\
         mode = {{ type = \"backlog\", jobs_per_worker = {SLOTS} }}\n\
         scale_down = {{ stabilization_window_s = 3, select_policy = \"Max\", tolerance = 0.1, \
         policies = [{{ type = \"Pods\", value = 2, period_s = 2 }}] }}\n"
    )
}
