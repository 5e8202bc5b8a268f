//! Runs a user's program: one process for each attempt at a job. This page is the contract `harness.command.v1`.
//!
//! The program can be written in any language; `examples/reader.py` is a template. This crate knows processes, pipes
//! and JSON lines. It does not know what a program does.
//!
//! # What the program is given
//!
//! **stdin** holds exactly one line of JSON and is then closed:
//!
//! ```json
//! {"protocol": "harness.command.v1",
//!  "job": {"job_id": "0198…", "tenant": "default", "session_id": "…", "agent_id": "…", "user_id": null,
//!          "labels": {}, "input": …, "attempt": 1, "epoch": 7},
//!  "session": {"memory": {}, "context_window": [], "feature_progress": {}, "iteration_count": 0,
//!              "cost_usd": 0.0, "input_tokens": 0, "output_tokens": 0},
//!  "answers": {"toolu_01A": {"approve": true, "by": "Ada"}},
//!  "workspace": "/var/lib/harness/<session_id>"}
//! ```
//!
//! `answers` says what became of each call that an earlier attempt at the job has asked a person (`ask`, below):
//! `{"answer": …}` or `{"approve": …}`, with `by` if somebody is named, or `{"timed_out": true}`. It is missing if there is
//! none.
//!
//! Each tenant has sessions of its own, and two tenants may use the same `session_id`. A program that keeps something
//! by session outside of its workspace keeps it by `tenant` and `session_id`.
//!
//! `input` is the JSON value that the job's caller gave. `attempt` is 1 for the first attempt. `epoch` is a fencing
//! token: it is higher in every later run of the session. Later versions may add fields; ignore those you do not know.
//!
//! Because stdin is closed, `json.load(sys.stdin)`, `jq` and `cat` work as usual, and a program that never reads it
//! cannot hang. No second channel has to be kept in step with the first: a stop is a signal, and a checkpoint needs
//! no answer. While the worker commits a checkpoint it reads nothing more, so a program that goes on writing waits on
//! the full pipe. A program can be ahead of its commits by what fits into a pipe, 64 KiB. If the *worker* dies,
//! whatever was not committed is lost, and the next attempt does it again.
//!
//! `session` is the state after the last checkpoint, whichever worker and attempt wrote it. **Look there first for
//! work that is already done.** By convention a program keeps its progress on a job in `feature_progress[<job_id>]`.
//! Leave the entry there when the job is finished: the worker may die after the last checkpoint and before it has
//! recorded the job's end, and then the job starts again.
//!
//! The **environment** holds
//! - `PATH`, `LANG`, `LC_ALL` and `TZ` as the worker has them;
//! - the variables that the agent's settings name (`env_allow`, `env`);
//! - `HARNESS_JOB_ID`, `HARNESS_TENANT`, `HARNESS_SESSION_ID`, `HARNESS_WORKSPACE` and `HARNESS_EPOCH`;
//! - where the agent's settings name `models`: `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY`, `OPENAI_BASE_URL` and
//!   `OPENAI_API_KEY`, which lead any SDK to the worker's gateway for model calls, and `HARNESS_GATEWAY_URL` and
//!   `HARNESS_GATEWAY_TOKEN` with the same for other programs. The token dies with the attempt, and the real keys stay
//!   with the worker. What the gateway metered is the job's usage, and `cost_usd`, `input_tokens` and `output_tokens`
//!   that the program reports are ignored. Traffic is a sign of life like a line on stdout;
//! - `TRACEPARENT` (W3C Trace Context). Spans that the program makes belong below it, so that they are found with the
//!   job;
//! - `HOME`, which is the workspace unless the settings name another, so that each session's tools have their own
//!   dotfiles; in a sandbox that bounds files `TMPDIR` as well.
//!
//! The **working directory** is the workspace. Each session has one folder, with mode 0700: `<session_id>` for
//! the tenant `default`, and `~<tenant>/<session_id>` for another. It is kept between jobs,
//! but not between machines unless `WORKSPACE_DIR` is shared. A program may open as many files as the worker was
//! allowed at its start (the soft limit), even if the worker has raised its own limit since.
//!
//! # What the program cannot see, and what is not isolated
//!
//! The worker's secrets (`DATABASE_URL`, `AMQP_URL`, …) are in no program's environment, and an agent whose `env_allow`
//! names one is refused. Only root can open the worker's own `/proc/PID/environ` and `/proc/PID/mem`.
//!
//! A program runs in a sandbox, which holds for all processes that it starts. It needs neither root nor a container.
//! On Linux 6.12 and newer no program can signal, trace or read the worker and other programs, and so none finds
//! another attempt's token in `/proc`; from 5.13 on it can still signal them. On any kernel it gets no raw sockets,
//! `ptrace`, mounts, keyrings, BPF and `io_uring`. More is bounded where the agent's table `sandbox` says so:
//! - `files = "workspace"`: the program changes its session's workspace and the paths in `write`, and reads those in
//!   `read`, the files that its command names, and the system's programs and libraries. Unless this is set, it can read
//!   and write **other sessions' workspaces**, and any file that the worker may read, including the file of a `…_FILE`
//!   secret;
//! - `network = "gateway"`: it reaches the worker's gateway for model calls alone. The kernel knows the gateway by its
//!   port, so the same port of another machine can be reached as well. `network = "none"`: it reaches nothing. Neither
//!   allows Unix sockets, which lead to daemons of this machine (`socketpair` makes pairs all the same): `socket` fails with
//!   `EPERM`, and a program that needs one needs `network = "all"`.
//!
//! A program of a worker that runs as root is root, but without the capabilities that reach past this.
//! With `level = "required"` the worker does not start on a kernel that cannot keep all of this; `level = "off"` is no
//! sandbox, for programs that trace others.
//!
//! # What the program may write
//!
//! **stdout** takes one JSON object per line. Flush after each line. A field that is not named here is refused, because
//! a misspelt field would otherwise lose state without any sign of it. Blank lines are ignored.
//!
//! | `type` | fields (default) | meaning |
//! |---|---|---|
//! | `checkpoint` | `memory`, `feature_progress` (none): JSON merge patches, RFC 7396; `context_window` (`[]`): entries to append; `replace_context` (false): they replace the window; `iterations` (1); `cost_usd`, `input_tokens`, `output_tokens` (0) | saves progress; durable before the worker looks at the next line |
//! | `cost` | `cost_usd`, `input_tokens`, `output_tokens` (0) | usage since the last `cost` or `checkpoint`; added to the next checkpoint, or to a last one at the end, however the attempt ends |
//! | `event` | `name`; `data` (null) | shown to those who watch the job; not kept |
//! | `text` | `text` | streamed to those who follow the job, if the worker's `ENABLE_STREAMING` is on, as it is written; not kept, and what is more than 64 KiB within 25 ms may be dropped |
//! | `ask` | `call_id`: 1 to 128 visible characters of ASCII; `kind` (`question`): `question` takes any JSON as its answer, `approval` yes or no; `question`: any JSON of at most 64 KiB; `timeout_s` (none) | a question to a person |
//! | `result` | `output` (null) | the last word: the job's output |
//! | `error` | `message`; `retryable` (false) | the last word: the attempt failed |
//!
//! A program that **asks** writes one `ask` or several (at most 32), and exits with 0 and without a last word. The attempt is
//! not spent. The job waits without a worker until each of its questions is answered or its time is over, and its next
//! attempt finds that in `answers`. A job uses each `call_id` once: asking again what was answered is `protocol`.
//!
//! After its **last word** a program has `stop_grace_ms` to exit. Whatever it still writes is ignored, with a warning
//! in the log. Its exit code is ignored as well: the result is there, and running the job again would gain nothing.
//!
//! **stderr** goes to the log, with the target `harness::command::stderr` and the job's ids. Its last 20 lines are
//! quoted when the program fails. Do not write secrets to it.
//!
//! # How the program is stopped
//!
//! When the worker drains, when the job is cancelled, and when a time limit is over, the program's process group gets
//! SIGTERM. The program has `stop_grace_ms` to write a checkpoint and exit; then SIGKILL follows. Checkpoints are
//! accepted until the end. A `result` counts only if the worker was draining: there is no reason to do finished work
//! again elsewhere. When the session's lease is lost, SIGKILL comes at once and nothing more is accepted. When a later
//! job of the session interrupts this one (`on_busy: interrupt`), the program is killed after its next checkpoint,
//! which still counts.
//!
//! The group is killed whenever an attempt ends, however it ends, even if the run's future is dropped. **Whatever a
//! program leaves running dies with it.** Only a process that leaves the group with `setsid` escapes; let its container
//! be its limit. If the worker itself is killed, the program's first process dies at once (`PR_SET_PDEATHSIG`), and its
//! group with it: a shell beside the worker (`harness-guard`) kills what the worker leaves. The program cannot gain privileges
//! (`no_new_privs`: no `sudo`), because a process that gains them no longer gets that signal.
//!
//! # How it can fail
//!
//! | what happened | code | another attempt? |
//! |---|---|---|
//! | an `error` line | `harness_error` | as the line says |
//! | a line that is not a JSON object, has an unknown `type` or a wrong field; exit code 0, or stdout closed, without a last word | `protocol` | no: the program is wrong |
//! | a string with `\u0000` or half a surrogate pair; a number or nesting beyond what Postgres holds; in memory and progress, a number beyond the range of a double, or one of more than 17 digits that is not a 64-bit integer | `unstorable` | no |
//! | a line over `max_line_bytes`; stdout over `max_output_bytes`; a checkpoint over 4 MiB, or one that makes the session larger than `MAX_SESSION_BYTES` (the usage that it reports counts all the same) | `output_limit` | no |
//! | an exit code other than 0, or a signal, before a last word (most programs that reach `memory_limit_mb` end this way) | `crashed` | yes, from the last checkpoint |
//! | as many iterations in a row as the job's `max_stalled_iterations` left `memory` and `feature_progress` unchanged | `no_progress` | no |
//! | no line for `idle_timeout_ms` | `idle_timeout` | yes |
//! | a run longer than `timeout_ms` | `timeout` | yes |
//! | the program cannot be started, or its workspace is not a folder | `start_failed` | yes: another worker may be able to |
//!
//! If the *machine* lacks something (open files, processes or memory; or its disk is full or cannot be written), the
//! job has not begun. It is handed back without spending an attempt, and the worker takes no jobs until the machine
//! has what it needs again.
//!
//! After a broken line or an exceeded limit, nothing that follows can be trusted, so SIGKILL comes without any grace.
//! A last line without a newline counts if it is complete. If it is not, it was torn: a crash is then reported as
//! `crashed`, and after exit code 0 the torn line itself is the failure.

mod config;
mod attempt;
mod outcome;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_trait::async_trait;
use harness::{ConfigError, Harness, Run, RunError, Shortage, Task};
use job::{Failure, FailureCode, Json, SessionKey};
use nix::errno::Errno;
use process::{Limits, Stderr};
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio_util::task::AbortOnDropHandle;

pub use config::CommandConfig;
pub use process::{SandboxConfig, WITHHELD, limit_open_files};

use attempt::Attempt;
use config::Settings;

/// Runs one program for each attempt.
pub struct Command {
    settings: Settings,
}

#[async_trait]
impl Harness for Command {
    async fn run(&self, run: &mut Run) -> Result<Json, RunError> {
        let signal = run.stop_signal();
        // Dropping the attempt kills the process group and abandons a checkpoint that is under way.
        signal.unless_lease_lost(self.attempt(run)).await
    }
}

impl CommandConfig {
    /// Checks the settings against this machine. Session folders are made below `workspace_dir`. The error lists
    /// everything that is wrong.
    pub fn build(self, workspace_dir: &Path) -> Result<Command, Vec<ConfigError>> {
        Ok(Command { settings: self.check(workspace_dir)? })
    }
}

impl Command {
    async fn attempt(&self, run: &mut Run) -> Result<Json, RunError> {
        if let Some(stop) = run.stop_requested() {
            return Err(stop.into());
        }
        let session = SessionKey::new(&run.task().tenant, &run.task().session_id);
        let workspace = self.settings.workspace_dir.join(session.as_str());
        let order = lines::order(run, Some(&workspace))
            .map_err(|error| start_failed(format!("the job cannot be written down: {error}")))?;
        prepare_workspace(&self.settings.workspace_dir, &session).await?;
        let mut process = self.process(run.task(), &workspace);
        let meter = run.meter();
        process.envs(meter.map(|meter| meter.environment()).unwrap_or_default());
        let sandbox = self.settings.sandbox.as_ref();
        let sandbox = sandbox.map(|sandbox| sandbox.enter(&workspace, meter.map(|meter| meter.port())));
        let sandbox = sandbox.transpose().map_err(|error| self.not_started(&error))?;
        let limits = Limits { memory_mb: self.settings.memory_limit_mb, file_mb: None };
        let mut group =
            process::spawn(process, limits, sandbox).await.map_err(|error| self.not_started(&error))?;
        let pipes = group.take_pipes();
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(start_failed("the program has no pipes".to_owned()).into());
        };
        let stderr =
            Stderr::follow(stderr, |line| tracing::info!(target: "harness::command::stderr", "{line}"));
        let _order = give(stdin, order);
        Attempt { settings: &self.settings, run, group, stderr }.run(stdout).await
    }

    /// Decides whether a failed start is the machine's fault or the program's. A lack of memory is the program's own
    /// if `memory_limit_mb` is set.
    fn not_started(&self, error: &io::Error) -> RunError {
        let problem = format!("{}: {error}", self.settings.program.path.display());
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN) => Shortage::Resources(problem).into(),
            Some(Errno::ENOMEM) if self.settings.memory_limit_mb.is_none() => {
                Shortage::Resources(problem).into()
            }
            _ => start_failed(problem).into(),
        }
    }

    fn process(&self, task: &Task, workspace: &Path) -> tokio::process::Command {
        let mut process = tokio::process::Command::new(&self.settings.program.path);
        process
            .args(&self.settings.program.args)
            .current_dir(workspace)
            .env_clear()
            .env("HOME", workspace)
            .envs(
                self.settings
                    .sandbox
                    .as_ref()
                    .filter(|sandbox| sandbox.bounds_files())
                    .map(|_| ("TMPDIR", workspace)),
            )
            .envs(&self.settings.program.env)
            .env("HARNESS_JOB_ID", task.job_id.to_string())
            .env("HARNESS_TENANT", task.tenant.as_str())
            .env("HARNESS_SESSION_ID", task.session_id.as_str())
            .env("HARNESS_WORKSPACE", workspace)
            .env("HARNESS_EPOCH", task.epoch.to_string())
            .envs(task.traceparent.map(|place| ("TRACEPARENT", place.to_string())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        process
    }
}

/// Writes the order in a task of its own, because a program may write before it reads, or never read at all.
fn give(mut stdin: ChildStdin, order: String) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = stdin.write_all(order.as_bytes()).await {
            // A program may do that. Only what it writes decides what becomes of the job.
            tracing::debug!(cause = %error, "a program did not read its order to the end");
        }
    }))
}

async fn prepare_workspace(dir: &Path, session: &SessionKey) -> Result<(), RunError> {
    let (folder, name) = (dir.to_owned(), PathBuf::from(session.as_str()));
    let made = tokio::task::spawn_blocking(move || process::make_workspace(&folder, &name)).await;
    let named = |problem: &dyn Display| {
        let path = dir.join(session.as_str());
        format!("the workspace of session {session}, {}: {problem}", path.display())
    };
    match made.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(_) => Ok(()),
        Err(error) if process::is_of_the_session(&error) => Err(start_failed(named(&error)).into()),
        Err(error) => Err(Shortage::Workspace(named(&error)).into()),
    }
}

fn start_failed(problem: String) -> Failure {
    Failure::retryable(FailureCode::StartFailed, problem)
}
