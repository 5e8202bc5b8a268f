//! A program of the user's, one process for each attempt at a job: the contract `harness.command.v1`.
//!
//! Any language will do; `examples/reader.py` is a template. This crate knows processes, pipes and JSON lines, and nothing of
//! what a program does.
//!
//! # What the program is told
//!
//! **stdin** holds exactly one line of JSON, and is then closed:
//!
//! ```json
//! {"protocol": "harness.command.v1",
//!  "job": {"job_id": "0198…", "session_id": "…", "agent_id": "…", "user_id": null, "input": …, "attempt": 1, "epoch": 7},
//!  "session": {"memory": {}, "context_window": [], "feature_progress": {}, "iteration_count": 0,
//!              "cost_usd": 0.0, "input_tokens": 0, "output_tokens": 0},
//!  "workspace": "/var/lib/harness/<session_id>"}
//! ```
//!
//! It is closed because then `json.load(sys.stdin)`, `jq` and `cat` work as anybody would write them, a program that
//! never reads it cannot hang, and no second channel has to be kept in step with the first: a stop is a signal, and
//! a checkpoint needs no answer, for the pipe itself holds a program back while we commit. (A program may be ahead of
//! its commits by what fits into a pipe, 64 KiB. What is lost of that when the *worker* dies is done again.)
//! Later versions may add fields here; ignore what you do not know.
//!
//! `session` is the state after the last checkpoint, of whichever worker and attempt: **look there first for work that
//! is already done.** By convention progress on a job is kept in `feature_progress[<job_id>]`, and left there at the
//! job's end: the worker may die between the last checkpoint and the record of the end.
//!
//! The **environment** holds `PATH`, `LANG`, `LC_ALL` and `TZ` of the worker, what the agent's settings name
//! (`env_allow`, `env`), and `HARNESS_JOB_ID`, `HARNESS_SESSION_ID`, `HARNESS_WORKSPACE`, `HARNESS_EPOCH` and
//! `TRACEPARENT` (W3C Trace Context: what the program traces itself belongs below it, so that it is found with the job).
//! `HOME` is the workspace unless the settings name it, so that the dotfiles of one session's tools are not those of
//! another's. The **working folder** is the workspace: one folder for each session, 0700, kept between jobs but not
//! between machines, unless `WORKSPACE_DIR` is shared. A program may have as many files open as the worker was given, whatever
//! the worker has raised that to for itself.
//!
//! # What it does not see, and what is no wall
//!
//! The worker's secrets (`DATABASE_URL`, `AMQP_URL`, …) are in no program's environment, and `env_allow` may not name them. The
//! worker's own `/proc/PID/environ` and `/proc/PID/mem` open for root alone. But worker and programs are one user, so a program
//! can still read and write **other sessions' workspaces** and whatever file the worker may read (that of a `…_FILE` secret, too),
//! signal the worker and other programs, and use the network as the worker does. A program that runs as root is held by none
//! of this. Run programs that you do not trust in a pool of their own, whose worker runs as a user of its own.
//!
//! # What the program may say
//!
//! **stdout** takes one JSON object per line (flush after each!). Fields not named here are refused: a misspelt one
//! would lose state without a word. Blank lines are ignored.
//!
//! | `type` | fields (default) | meaning |
//! |---|---|---|
//! | `checkpoint` | `memory`, `feature_progress` (none): JSON merge patches, RFC 7396; `context_window` (`[]`): entries to append; `replace_context` (false): they replace the window; `iterations` (1); `cost_usd`, `input_tokens`, `output_tokens` (0) | durable before the next line is looked at |
//! | `cost` | `cost_usd`, `input_tokens`, `output_tokens` (0) | usage since; goes into the next checkpoint, or into a last one at the end, however the attempt ends |
//! | `event` | `name`; `data` (null) | shown to who looks on, not kept |
//! | `result` | `output` (null) | the last word: the job's output |
//! | `error` | `message`; `retryable` (false) | the last word: the attempt failed |
//!
//! After its **last word** a program has `stop_grace_ms` to exit. What it still writes is ignored (with a warning in
//! the log), and so is its exit code: the result is there, and doing the job again would not make it truer.
//!
//! **stderr** goes to the log, target `harness::command::stderr`, with the job's ids; its last 20 lines are quoted when
//! the program fails. Secrets do not belong there.
//!
//! # How it is stopped
//!
//! To drain, to cancel, and when a time limit is over, the program's process group gets SIGTERM. It has
//! `stop_grace_ms` to write a checkpoint and exit, then SIGKILL follows. Checkpoints are taken until the end; a `result`
//! counts only when the worker was draining (there is no reason to do finished work again elsewhere). When the
//! session's lease is lost, SIGKILL comes at once and nothing more is taken.
//!
//! The group is killed whenever an attempt ends, in whatever way, even when the run's future is dropped: **what a
//! program leaves running dies with it.** (A process that leaves the group with `setsid` escapes that; let the
//! container be its bound.) If the worker itself is killed, the program's first process dies at once
//! (`PR_SET_PDEATHSIG`); children of its own then live on until they are done or their container ends. The program
//! cannot gain privileges (`no_new_privs`: no `sudo`), because a process that does would shed that signal.
//!
//! # How it can fail
//!
//! | what happened | code | another attempt? |
//! |---|---|---|
//! | `error` line | `harness_error` | as the line says |
//! | a line that is no JSON object, has an unknown `type` or a wrong field; exit code 0, or stdout closed, without a last word | `protocol` | no: the program is wrong |
//! | a string with `\u0000` or half a surrogate pair, a number or nesting past what Postgres holds; in a session's state, a number past the doubles or of more than 17 digits that is no whole number of 64 bits | `unstorable` | no |
//! | a line over `max_line_bytes`, stdout over `max_output_bytes`, a checkpoint over 4 MiB or one that makes the session larger than `MAX_SESSION_BYTES` (what it reports as spent counts all the same) | `output_limit` | no |
//! | exit code other than 0, or a signal, before a last word (with `memory_limit_mb`, most programs end this way) | `crashed` | yes, from the last checkpoint |
//! | no line for `idle_timeout_ms` | `idle_timeout` | yes |
//! | longer than `timeout_ms` | `timeout` | yes |
//! | the program cannot be had, or what stands in its workspace's place is no folder | `start_failed` | yes: another worker may have them |
//!
//! Where the *machine* lacks something (open files, processes, memory; a disk that is full or cannot be written), the job has not
//! begun: it is handed back without an attempt spent, and the worker takes no jobs until it has what it needs again.
//!
//! After a broken line or a passed limit nothing that follows can be trusted: SIGKILL, without grace.
//! A last line without a newline counts if it is whole; if not, it was torn, and the program's end is what failed.

mod config;
mod contract;
mod lines;
mod attempt;
mod verdict;

use std::fmt::Display;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_trait::async_trait;
use harness::{ConfigError, Harness, Run, RunError, Shortage, Stop, Task};
use job::{Failure, FailureCode, Json, Name};
use nix::errno::Errno;
use process::Stderr;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio_util::task::AbortOnDropHandle;

pub use config::{CommandConfig, WITHHELD};
pub use process::limit_open_files;

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
        tokio::select! {
            biased;
            // Dropping the rest kills the process group, and abandons a checkpoint that is on its way.
            () = signal.lease_lost() => Err(RunError::Stopped(Stop::LeaseLost)),
            ended = self.attempt(run) => ended,
        }
    }
}

impl CommandConfig {
    /// Checks the settings against this machine. Sessions' folders go below `workspace_dir`. The error is all that is wrong.
    pub fn build(self, workspace_dir: &Path) -> Result<Command, Vec<ConfigError>> {
        Ok(Command { settings: self.check(workspace_dir)? })
    }
}

impl Command {
    async fn attempt(&self, run: &mut Run) -> Result<Json, RunError> {
        if let Some(stop) = run.stop_requested() {
            return Err(stop.into());
        }
        let workspace = self.settings.workspace_dir.join(run.task().session_id.as_str());
        let order = contract::order(run.task(), run.session(), &workspace)
            .map_err(|error| start_failed(format!("the job cannot be written down: {error}")))?;
        prepare_workspace(&workspace, &run.task().session_id).await?;
        let mut group = process::spawn(self.process(run.task(), &workspace), self.settings.memory_limit_mb)
            .await
            .map_err(|error| self.not_started(&error))?;
        let pipes = group.take_pipes();
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(start_failed("the program has no pipes".to_owned()).into());
        };
        let stderr =
            Stderr::follow(stderr, |line| tracing::info!(target: "harness::command::stderr", "{line}"));
        let _order = give(stdin, order);
        Attempt { settings: &self.settings, run, group, stderr }.run(stdout).await
    }

    /// Whose fault it is. Under a limit of its own, it is the program that has too little memory.
    fn not_started(&self, error: &io::Error) -> RunError {
        let problem = format!("{}: {error}", self.settings.program.display());
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN) => Shortage::Resources(problem).into(),
            Some(Errno::ENOMEM) if self.settings.memory_limit_mb.is_none() => {
                Shortage::Resources(problem).into()
            }
            _ => start_failed(problem).into(),
        }
    }

    fn process(&self, task: &Task, workspace: &Path) -> tokio::process::Command {
        let mut process = tokio::process::Command::new(&self.settings.program);
        process
            .args(&self.settings.args)
            .current_dir(workspace)
            .env_clear()
            .env("HOME", workspace)
            .envs(&self.settings.env)
            .env("HARNESS_JOB_ID", task.job_id.to_string())
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

/// Writes the order beside everything else: a program may talk before it listens, or never listen at all.
fn give(mut stdin: ChildStdin, order: String) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = stdin.write_all(order.as_bytes()).await {
            // Its right: what becomes of the job is told by what it says.
            tracing::debug!(cause = %error, "a program did not read its order to the end");
        }
    }))
}

async fn prepare_workspace(workspace: &Path, session_id: &Name) -> Result<(), RunError> {
    let path: PathBuf = workspace.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        // Not through a link: a session's folder is its own.
        Ok(std::fs::symlink_metadata(&path)?.is_dir())
    });
    let named = |problem: &dyn Display| {
        format!("the workspace of session {session_id}, {}: {problem}", workspace.display())
    };
    match made.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(true) => Ok(()),
        Ok(false) => Err(start_failed(named(&io::Error::from(io::ErrorKind::NotADirectory))).into()),
        // A name that does not fit stays so.
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
            Err(start_failed(named(&error)).into())
        }
        Err(error) => Err(Shortage::Workspace(named(&error)).into()),
    }
}

fn start_failed(problem: String) -> Failure {
    Failure::retryable(FailureCode::StartFailed, problem)
}
