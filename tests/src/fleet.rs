//! A fleet for one test: a database, a vhost, a folder, and the commands.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use job::{JobId, JobSpec, JobState};
use postgres::SetBy;
use producer::SessionNow;
use store::{JobView, Store};
use tempfile::TempDir;

use crate::database::RETENTION;
use crate::worker::binary;
use crate::{Database, Launch, Vhost, until_ok};

/// What a worker and a producer need; workers are started one by one. Declare it before them, so that it is dropped
/// last.
pub struct Fleet {
    /// A handle on the ledger.
    pub store: Store,
    /// The database.
    pub database: Database,
    /// The vhost.
    pub vhost: Vhost,
    /// For files.
    pub folder: TempDir,
}

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

impl Fleet {
    /// Creates a fleet without workers and jobs.
    pub async fn new() -> Fleet {
        Fleet::on(Database::new().await)
    }

    /// Creates a fleet on this database.
    pub fn on(database: Database) -> Fleet {
        let folder = TempDir::new().expect("a folder");
        Fleet { store: database.store(), database, vhost: Vhost::new(), folder }
    }

    /// A worker to be started, with four slots and the agents `echo` and `scripted`.
    pub fn worker(&self, name: &str) -> Launch {
        let mut environment = self.environment();
        let workspaces = self.folder.path().join("workspaces");
        for (name, value) in [
            ("ADMIN_ADDR", "127.0.0.1:0"),
            ("WORKER_SLOTS", "4"),
            ("WORKSPACE_DIR", &workspaces.to_string_lossy()),
        ] {
            environment.insert(name.to_owned(), value.to_owned());
        }
        Launch::new(name, environment)
    }

    /// `producer relay` to be started.
    pub fn relay(&self, name: &str) -> Launch {
        self.worker(name).program("producer", &["relay"])
    }

    /// `producer serve` to be started, on a free port of this machine.
    pub fn door(&self, name: &str) -> Launch {
        self.worker(name)
            .program("producer", &["serve"])
            .set("API_ADDR", "127.0.0.1:0")
            .set("API_ANSWER_WITHIN_MS", 15_000)
    }

    /// `autoscaler run` to be started, with these pools (TOML); its workers have four slots and the same agents.
    pub fn autoscaler(&self, name: &str, pools: &str) -> Launch {
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, pools).expect("written");
        let processes = self.processes();
        let (path, processes) = (path.to_string_lossy(), processes.to_string_lossy());
        self.worker(name).program("autoscaler", &["run", "--pools", &path, "--process-dir", &processes])
    }

    /// The folder where autoscalers keep what they know of their worker processes, with a subfolder for each pool.
    pub fn processes(&self) -> PathBuf {
        self.folder.path().join("processes")
    }

    /// Writes an `agents.toml` whose agent `reader` is `examples/reader.py` on this fleet's folder; returns its path.
    pub fn reader(&self) -> String {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/reader.py");
        let program = program.canonicalize().expect("examples/reader.py");
        let toml = format!(
            "[agents.reader]\nharness = \"command\"\ncommand = [{program:?}]\nenv = {{ READER_ROOT = {:?} }}\n",
            self.folder.path()
        );
        let path = self.folder.path().join("agents.toml");
        std::fs::write(&path, toml).expect("written");
        path.to_string_lossy().into_owned()
    }

    /// Writes a program; returns its path.
    pub fn program(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a file of ours");
        path.to_string_lossy().into_owned()
    }

    /// Writes an `agents.toml` of programs, by name. An agent without a path is the built-in harness of that name.
    /// Returns the file's path.
    pub fn agents(&self, agents: &[(&str, &str)]) -> String {
        let agent = |(name, program): &(&str, &str)| match *program {
            "" => format!("[agents.{name}]\nharness = {name:?}\n"),
            path => format!("[agents.{name}]\nharness = \"command\"\ncommand = [{path:?}]\n"),
        };
        let path = self.folder.path().join("agents.toml");
        std::fs::write(&path, agents.iter().map(agent).collect::<String>()).expect("written");
        path.to_string_lossy().into_owned()
    }

    /// Runs a command of `producer`.
    pub async fn producer(&self, arguments: &[&str]) -> Ran {
        self.producer_with_input("", arguments).await
    }

    /// A command of `producer`, to be started.
    pub fn producer_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("producer"));
        command.args(arguments).env_clear().envs(self.environment()).current_dir(self.folder.path());
        command
    }

    /// Runs a command of `producer` with this input on stdin.
    pub async fn producer_with_input(&self, input: &str, arguments: &[&str]) -> Ran {
        let command = self.producer_command(arguments);
        Ran::of(command, input).await
    }

    /// Runs a program of ops/, such as `backup/backup`, in this fleet's environment and with these additional
    /// variables.
    pub async fn ops(&self, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
        let mut command = self.ops_command(program);
        command.args(arguments).envs(environment.iter().copied());
        Ran::of(command, "").await
    }

    /// A program of ops/, to be started.
    pub fn ops_command(&self, program: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops").join(program));
        command.env_clear().envs(self.environment()).env("PRODUCER", binary("producer"));
        command
    }

    /// A command of `autoscaler`, to be started.
    pub fn autoscaler_command(&self, arguments: &[&str]) -> Command {
        let mut command = autoscaler_command(arguments);
        command.envs(self.environment()).current_dir(self.folder.path());
        command
    }

    /// Runs a command of `autoscaler`.
    pub async fn run_autoscaler(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.autoscaler_command(arguments), "").await
    }

    /// Enqueues jobs, in order, and expects that all are accepted.
    pub async fn enqueue(&self, jobs: &[JobSpec]) {
        let lines: Vec<String> = jobs.iter().map(job::encode).collect();
        let ran = self.producer_with_input(&lines.join("\n"), &["enqueue", "--file", "-"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// Gives a pool a line.
    pub async fn line(&self, pool: &str) {
        let ran = self.producer(&["pools", "line", pool, "on"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// Waits until this many workers are alive.
    pub async fn workers_alive(&self, count: i64) {
        let alive = "SELECT count(*) FROM harness_workers WHERE state = 'alive'";
        let look = async || match self.database.count(alive).await {
            alive if alive == count => Ok(()),
            alive => Err(alive),
        };
        until_ok(&format!("{count} workers live"), look).await;
    }

    /// Waits for the jobs' ends. All must have succeeded at their first attempt.
    pub async fn undisturbed(&self, jobs: &[JobSpec]) {
        for spec in jobs {
            let view = self.ended(spec.job_id).await;
            assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
        }
    }

    /// A job's record, once the ledger knows it.
    pub async fn view(&self, job_id: JobId) -> Option<JobView> {
        self.store.jobs(&[job_id]).await.expect("the ledger").into_iter().next()
    }

    /// Waits until a job has this many iterations in the ledger.
    pub async fn iterated(&self, job_id: JobId, iterations: i64) -> JobView {
        let look = async || match self.view(job_id).await {
            Some(view) if view.iterations >= iterations => Ok(view),
            other => Err(other),
        };
        until_ok(&format!("{job_id} has {iterations} iterations"), look).await
    }

    /// A job's record when it stands still: the last checkpoint of a worker that was killed may still be on its way.
    pub async fn left(&self, job_id: JobId) -> JobView {
        let mut before = None;
        loop {
            let view = self.view(job_id).await.expect("a job that the ledger knows");
            if before.replace(view.iterations) == Some(view.iterations) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits for a job's end.
    pub async fn ended(&self, job_id: JobId) -> JobView {
        let look = async || match self.view(job_id).await {
            Some(view) if view.state.is_end() => Ok(view),
            other => Err(other),
        };
        until_ok(&format!("{job_id} ends"), look).await
    }

    /// Returns the ids of two jobs of the session `s`: one has succeeded, the other has failed because no worker has
    /// its agent. The worker that ran them is gone.
    pub async fn after_one_success_and_one_failure(&self) -> [String; 2] {
        let mut worker = self.worker("worker").start().await;
        let jobs = [crate::job("s", "echo", "said".into()), crate::job("s", "nobody", 1.into())];
        self.enqueue(&jobs).await;
        for spec in &jobs {
            self.ended(spec.job_id).await;
        }
        worker.terminate();
        worker.exit().await;
        jobs.map(|spec| spec.job_id.to_string())
    }

    /// Returns a session, which must exist.
    pub async fn session(&self, name: &str) -> SessionNow {
        let key: job::Name = name.parse().expect("a name");
        let found = SessionNow::read(&self.store, &key.into()).await.expect("the ledger");
        found.unwrap_or_else(|| panic!("no session {name}"))
    }

    /// Takes over only `PATH` from the caller's environment, which could hold settings of ours.
    fn environment(&self) -> BTreeMap<String, String> {
        let retention_days = RETENTION.as_secs() / 86_400;
        let set_by = match self.database.set_by {
            SetBy::Connection => "connection",
            SetBy::Role => "role",
        };
        [
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("DATABASE_URL", self.database.url.clone()),
            ("DATABASE_SETTINGS", set_by.to_owned()),
            ("DATABASE_POOL_SIZE", "6".to_owned()),
            ("AMQP_URL", self.vhost.url.clone()),
            ("RETENTION_DAYS", retention_days.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// A command of `autoscaler` that needs no services, to be started.
pub fn autoscaler_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("autoscaler"));
    command.args(arguments).env_clear();
    command
}

impl Ran {
    /// Runs a command with this input on stdin.
    pub async fn of(mut command: Command, input: &str) -> Ran {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        // On another thread, so that the test's runtime is not blocked.
        let run = tokio::task::spawn_blocking(move || -> std::io::Result<Output> {
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take().expect("its stdin");
            let writer = std::thread::spawn(move || {
                // The pipe breaks if the command does not read it.
                let _ = stdin.write_all(input.as_bytes());
            });
            let output = child.wait_with_output();
            let _ = writer.join();
            output
        });
        let output = run.await.expect("a thread").expect("a process");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ran {
            code: output.status.code().expect("an exit code"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The lines of stdout as JSON.
    pub fn json(&self) -> Vec<serde_json::Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}
