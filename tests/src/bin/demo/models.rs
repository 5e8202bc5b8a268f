//! The third act: agents with a tool call a model through the gateways of two workers, one worker is killed
//! between and within their calls, and the ledger is laid beside the provider's own bill. Meanwhile an agent
//! waits for a person to approve the call of a tool.
//!
//! The provider is the strict double (`provider`), so no key is needed and nothing is paid. It refuses what the real one
//! refuses, and keeps a bill of its own. The tool notes the key of each call, so that a call that ran twice is seen.

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, stderr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use job::{JobSpec, Json, Name};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tests::provider::PROVIDER_KEY;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::{interval, timeout};

use crate::display::{RED, bold};
use crate::ledger::LOOK;
use crate::programs::{Programs, show};
use crate::workers::{Setup, Worker};

const JOBS: usize = 6;
/// Calls of the tool in each job. After them the model says that it is done.
const STEPS: usize = 8;
/// The bound for the whole act.
const TIMEOUT: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(100);

/// Each answer takes about half a second.
const SCRIPT: &str = r#"{"pause_ms": 40, "plays": {"notes": [
    {"times": 8, "thinking": "Step {turn} is next.", "tools": [{"name": "note", "input": {"text": "step {turn}"}}]},
    {"text": "All steps are noted."}], "pays": [
    {"thinking": "Somebody has to agree.", "tools": [{"name": "pay", "input": {"amount": 120.50}}]},
    {"text": "It is paid."}]}}"#;

/// Answers of the job whose tool a person approves.
const ANSWERS_OF_PAYER: usize = 2;

/// Neither tool is declared safe to repeat.
const AGENTS: &str = r#"
[agents.payer]
harness = "agent"
models = ["claude-opus-5-5"]
system = "Pay what is due."

[agents.payer.tools.pay]
command = ["/bin/sh", "-c", "cat > /dev/null; echo \"$HARNESS_CALL_KEY\" >> payments; echo paid"]
description = "Pays an amount."
input_schema = { type = "object", properties = { amount = { type = "number" } }, required = ["amount"] }
approve = true

[agents.clerk]
harness = "agent"
models = ["claude-opus-5-5"]
system = "Note each step."

[agents.clerk.tools.note]
command = ["/bin/sh", "-c", "cat > /dev/null; echo \"$HARNESS_CALL_KEY\" >> notes; sleep 0.2; echo noted"]
description = "Notes a step."
input_schema = { type = "object", properties = { text = { type = "string" } }, required = ["text"] }
"#;

const WORKERS: &str = "SELECT count(*) FROM harness_workers WHERE pool = $1 AND state = 'alive'";

/// Which worker runs how many jobs, and how many have ended.
const RUNNING: &str = "
    SELECT w.pod_name, count(*) FROM harness_jobs j JOIN harness_workers w ON w.worker_id = j.worker_id
     WHERE j.pool = $1 AND j.state = 'running' GROUP BY 1 ORDER BY 2 DESC";
const ENDED: &str = "SELECT count(*) FROM harness_results WHERE pool = $1";

const CALLS: &str = "
    SELECT c.state, count(*), coalesce(sum(c.cost_microusd), 0)::bigint FROM harness_calls c
      JOIN harness_results r ON r.job_id = c.job_id WHERE r.pool = $1 GROUP BY 1";

const SUCCEEDED: &str = "
    SELECT count(*) FILTER (WHERE agent_id = 'clerk'), count(*) FILTER (WHERE agent_id = 'payer')
      FROM harness_results WHERE pool = $1 AND state = 'succeeded'";

/// What jobs ask persons, and nobody has answered.
const ASKED: &str = "
    SELECT i.job_id::text, i.call_id, i.question::text FROM harness_inputs i JOIN harness_jobs j USING (job_id)
     WHERE j.pool = $1 AND i.outcome IS NULL AND j.state = 'awaiting_input'";

/// What the ledger has of a call's state.
#[derive(Default)]
struct Calls {
    settled: (i64, i64),
    unknown: (i64, i64),
    others: i64,
}

/// The provider, its workers, and a reader of the ledger.
pub struct Models<'a> {
    programs: &'a Programs,
    pool: Name,
    folder: PathBuf,
    _provider: Child,
    url: String,
    workers: Vec<Worker>,
    tables: PgConnection,
}

impl<'a> Models<'a> {
    /// Starts the provider and two workers.
    pub async fn start(
        programs: &'a Programs,
        run: &Name,
        folder: &Path,
        lease_s: u64,
    ) -> anyhow::Result<Models<'a>> {
        let pool: Name = format!("{run}-models").parse()?;
        let (script, agents) = (folder.join("provider.json"), folder.join("models.toml"));
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
        };
        write(&script, SCRIPT)?;
        write(&agents, AGENTS)?;
        let log = folder.join("provider.log");
        let mut command = tokio::process::Command::new(&programs.provider);
        command.arg("--script").arg(&script).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(&log)?).process_group(0).kill_on_drop(true);
        let mut provider =
            command.spawn().with_context(|| format!("starting {}", programs.provider.display()))?;
        let mut lines = BufReader::new(provider.stdout.take().context("its stdout")?).lines();
        let url = timeout(TIMEOUT, lines.next_line()).await.context("the provider does not start")??;
        let url = url.with_context(|| format!("the provider ended by itself, see {}", log.display()))?;
        show(&format!("{} --script {}  ({url})", programs.provider.display(), script.display()));
        let environment = [
            ("ANTHROPIC_API_KEY", PROVIDER_KEY.to_owned()),
            ("ANTHROPIC_BASE_URL", url.clone()),
            ("BUDGET_DAILY", "1000000".to_owned()),
        ];
        let setup = Setup {
            programs,
            pool: &pool,
            slots: JOBS as u32,
            lease_s,
            folder,
            agents: &agents,
            environment: &environment,
        };
        let workers =
            ['C', 'D'].map(|name| Worker::start(name, &setup)).into_iter().collect::<anyhow::Result<_>>()?;
        let tables = PgConnection::connect(&programs.database_url).await.context("connecting to Postgres")?;
        Ok(Models { programs, pool, folder: folder.to_owned(), _provider: provider, url, workers, tables })
    }

    /// Runs the jobs, kills a worker half-way, and compares. Returns what went wrong.
    pub async fn play(&mut self, door: &str) -> anyhow::Result<Vec<String>> {
        let file = self.folder.join("models.jsonl");
        self.write_jobs(&file)?;
        let starting = Instant::now();
        while self.one(WORKERS).await?.get::<i64, _>(0) < self.workers.len() as i64 {
            self.workers.iter_mut().try_for_each(Worker::check)?;
            ensure!(starting.elapsed() < TIMEOUT, "a worker did not start within {} s", TIMEOUT.as_secs());
            tokio::time::sleep(TICK).await;
        }
        self.programs.submit(door, &file).await?;
        let (started, mut tick, mut killed) = (Instant::now(), interval(TICK), None);
        loop {
            tick.tick().await;
            self.workers.iter_mut().try_for_each(Worker::check)?;
            self.approve().await?;
            let ended: i64 = self.one(ENDED).await?.get(0);
            if ended > JOBS as i64 {
                break;
            }
            ensure!(started.elapsed() < TIMEOUT, "the models' act took longer than {} s", TIMEOUT.as_secs());
            let charged = self.report().await?["charged"].as_u64().unwrap_or_default();
            if killed.is_none() && charged as usize >= JOBS * (STEPS + 1) / 2 {
                killed = Some(self.kill(charged).await?);
            }
        }
        let problems = self.compare(killed.unwrap_or_default()).await?;
        for worker in &mut self.workers {
            if !worker.stop().await? {
                return Ok(
                    [problems, vec![format!("worker {} did not end in good order", worker.name)]].concat()
                );
            }
        }
        self.programs.delete_queue(&self.pool).await;
        Ok(problems)
    }

    /// Approves what a job asks.
    async fn approve(&mut self) -> anyhow::Result<()> {
        let rows = sqlx::query(ASKED).bind(self.pool.as_str()).fetch_all(&mut self.tables);
        for row in timeout(LOOK, rows).await.context("the ledger does not answer")?? {
            let (job, call, question): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            eprintln!("    a job waits for a person, without a slot: {question}");
            self.programs.produce(&["answer", &job, "--call", &call, "--approve", "--by", "demo"]).await?;
        }
        Ok(())
    }

    /// Kills the worker that runs most. Returns how many jobs it ran.
    async fn kill(&mut self, charged: u64) -> anyhow::Result<i64> {
        let row = self.one(RUNNING).await?;
        let (pod, held): (String, i64) = (row.get(0), row.get(1));
        let victim = self.workers.iter_mut().find(|worker| pod.ends_with(worker.name));
        let victim = victim.with_context(|| format!("{pod} is no worker of this act"))?;
        victim.kill().await?;
        eprintln!(
            "    {} to worker {} (pid {}) after {charged} calls; it was running {held} agents",
            bold(&stderr(), RED, "SIGKILL"),
            victim.name,
            victim.pid
        );
        Ok(held)
    }

    /// Lays the ledger beside the provider's bill.
    async fn compare(&mut self, held: i64) -> anyhow::Result<Vec<String>> {
        let report = self.report().await?;
        let number = |name: &str| report[name].as_u64().unwrap_or_default() as i64;
        let (charged, again, bill) = (number("charged"), number("charged_again"), number("bill_microusd"));
        let calls = self.calls().await?;
        let row = self.one(SUCCEEDED).await?;
        let (succeeded, approved): (i64, i64) = (row.get(0), row.get(1));
        let counted = calls.settled.1 + calls.unknown.1;
        let noted = self.noted()?;
        let paid = self.keys("payments", &self.session(JOBS))?.len();
        let tools = noted.iter().collect::<HashSet<_>>().len();
        let dollars = |micros: i64| format!("${}.{:06}", micros / 1_000_000, micros % 1_000_000);
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["", "provider's bill", "in the ledger", ""]);
        for at in [1, 2] {
            table.column_mut(at).expect("there are four").set_cell_alignment(CellAlignment::Right);
        }
        let answers = (JOBS * (STEPS + 1) + ANSWERS_OF_PAYER) as i64;
        let rows = [
            (
                "answers",
                String::new(),
                format!("{answers}"),
                format!("in {} of {} jobs", succeeded + approved, JOBS + 1),
            ),
            ("calls", format!("{charged}"), format!("{}", calls.settled.0), "paid as reported".to_owned()),
            (
                "  cut off",
                format!("{}", charged - calls.settled.0),
                format!("{}", calls.unknown.0),
                format!("by the kill, of {held} agents; counted in full"),
            ),
            ("cost", dollars(bill), dollars(counted), format!("{} as reported", dollars(calls.settled.1))),
            ("tools run", String::new(), format!("{tools}"), format!("{} twice", noted.len() - tools)),
            ("approvals", String::new(), format!("{approved}"), format!("given from the shell; {paid} paid")),
        ];
        rows.into_iter().for_each(|(what, provider, ledger, note)| {
            table.add_row([what.to_owned(), provider, ledger, note]);
        });
        println!("\n{table}");
        let mut problems = Vec::new();
        let mut expect = |kept: bool, problem: String| {
            if !kept {
                problems.push(problem);
            }
        };
        expect(
            succeeded == JOBS as i64,
            format!("{succeeded} of {JOBS} jobs that call a model have succeeded"),
        );
        expect(held > 0, "no worker was killed while programs called a model".to_owned());
        expect(
            bill <= counted,
            format!("the provider bills {}, the ledger counts {}", dollars(bill), dollars(counted)),
        );
        expect(
            calls.settled.0 == answers,
            format!("{} calls are settled for {answers} answers", calls.settled.0),
        );
        expect(noted.len() == tools, format!("{} calls of the tool ran twice", noted.len() - tools));
        let most = JOBS * STEPS;
        let least = most.saturating_sub(held.unsigned_abs() as usize);
        expect(
            (least..=most).contains(&tools),
            format!("{tools} calls of the tool ran, expected {least} to {most}"),
        );
        expect(approved == 1, "the job that waits for an approval has not succeeded".to_owned());
        expect(paid <= 1, format!("what was approved once was paid {paid} times"));
        let once = charged - answers <= held && again <= held;
        expect(once, format!("{charged} calls for {answers} answers, though only {held} were in flight"));
        expect(calls.others == 0, format!("{} calls are neither settled nor counted in full", calls.others));
        let found = report["findings"].as_array().map_or(0, Vec::len);
        expect(found == 0, format!("the provider found: {}", report["findings"]));
        Ok(problems)
    }

    /// Returns the keys that the tool has noted in all sessions.
    fn noted(&self) -> anyhow::Result<Vec<String>> {
        let mut keys = Vec::new();
        for at in 0..JOBS {
            keys.extend(self.keys("notes", &self.session(at))?);
        }
        Ok(keys)
    }

    /// Returns the keys that a tool has noted in a session.
    fn keys(&self, file: &str, session: &str) -> anyhow::Result<Vec<String>> {
        let file = self.folder.join("workspaces").join(session).join(file);
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        }
    }

    fn session(&self, at: usize) -> String {
        format!("{}-{at:02}", self.pool)
    }

    async fn calls(&mut self) -> anyhow::Result<Calls> {
        let rows = sqlx::query(CALLS).bind(self.pool.as_str()).fetch_all(&mut self.tables);
        let rows = timeout(LOOK, rows).await.context("the ledger does not answer")??;
        let mut calls = Calls::default();
        for row in rows {
            let (count, micros): (i64, i64) = (row.get(1), row.get(2));
            match row.get::<&str, _>(0) {
                "settled" => calls.settled = (count, micros),
                "unknown" => calls.unknown = (count, micros),
                _ => calls.others += count,
            }
        }
        Ok(calls)
    }

    async fn one(&mut self, query: &'static str) -> anyhow::Result<sqlx::postgres::PgRow> {
        let row = sqlx::query(query).bind(self.pool.as_str()).fetch_one(&mut self.tables);
        Ok(timeout(LOOK, row).await.context("the ledger does not answer")??)
    }

    /// Returns what the provider says of itself.
    async fn report(&self) -> anyhow::Result<Value> {
        let url = format!("{}/double", self.url);
        let answer = tokio::task::spawn_blocking(move || tests::http::get(&url)).await?;
        let (status, body) = answer.context("asking the provider")?;
        ensure!(status == 200, "the provider said {status}");
        Ok(serde_json::from_str(&body)?)
    }

    fn write_jobs(&self, path: &Path) -> anyhow::Result<()> {
        let mut lines = String::new();
        let mut add = |session: String, agent: &str, input: Value| -> anyhow::Result<()> {
            let mut spec = JobSpec::new(session.parse()?, agent.parse()?, Json::from_value(&input)?);
            spec.pool = self.pool.clone();
            lines.push_str(&serde_json::to_string(&spec)?);
            lines.push('\n');
            Ok(())
        };
        for at in 0..JOBS {
            add(self.session(at), "clerk", json!(format!("Note the steps of file {at}. play:notes")))?;
        }
        add(self.session(JOBS), "payer", json!("Pay the bill of the printer. play:pays"))?;
        std::fs::write(path, lines).with_context(|| format!("writing {}", path.display()))
    }
}
