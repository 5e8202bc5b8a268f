//! What this machine lacks, as far as jobs need it: a workspace that can be written, files and processes for a program.
//!
//! Nothing of it is a job's fault. As long as something is lacking no slot takes a job and `/ready` says what it is; a run that
//! could not begin is handed back without an attempt spent. Where something is lacking, it is looked again and again.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::Shortage;
use service::Backoff;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::metrics::METRICS;

/// How often it is looked while nothing is lacking.
const EVERY: Duration = Duration::from_secs(5);
/// How soon it is looked again while something is, and what that grows to as long as runs go on to fail.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A disk that has not answered by then is away.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes to write: what a nearly full disk does not take any more.
const PROBE_BYTES: usize = 64 << 10;
/// Pipes to open: those of a program's, with both ends, and some more.
const PROBE_PIPES: usize = 4;

/// The machine as runs and looks have found it.
pub struct Machine {
    workspace_dir: PathBuf,
    lacks: watch::Sender<Lacks>,
}

/// What is lacking, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    pub workspace: Option<String>,
    pub resources: Option<String>,
}

impl Lacks {
    fn nothing(&self) -> bool {
        *self == Lacks::default()
    }

    fn workspace(problem: &dyn Display) -> Lacks {
        let problem = Shortage::Workspace(problem.to_string()).to_string();
        Lacks { workspace: Some(problem), resources: None }
    }

    fn resources(problem: &dyn Display) -> Lacks {
        let problem = Shortage::Resources(problem.to_string()).to_string();
        Lacks { workspace: None, resources: Some(problem) }
    }
}

impl Machine {
    /// Nothing is known to be lacking yet.
    pub fn new(workspace_dir: &Path) -> Machine {
        Machine { workspace_dir: workspace_dir.to_owned(), lacks: watch::Sender::default() }
    }

    /// What is lacking now.
    pub fn lacks(&self) -> Lacks {
        self.lacks.borrow().clone()
    }

    /// Whether jobs can begin here.
    pub fn is_fit(&self) -> bool {
        self.lacks.borrow().nothing()
    }

    /// Resolves when they cannot.
    pub async fn unfit(&self) {
        // It fails only without a sender, which is ours.
        let _ = self.lacks.subscribe().wait_for(|lacks| !lacks.nothing()).await;
    }

    /// Resolves when they can.
    pub async fn fit(&self) {
        let _ = self.lacks.subscribe().wait_for(Lacks::nothing).await;
    }

    /// A run could not begin.
    pub fn ran_short(&self, shortage: &Shortage) {
        let kind = match shortage {
            Shortage::Workspace(_) => "workspace",
            Shortage::Resources(_) => "resources",
        };
        METRICS.shortages.with_label_values(&[kind]).inc();
        let mut lacks = self.lacks();
        match shortage {
            Shortage::Workspace(_) => lacks.workspace = Some(shortage.to_string()),
            Shortage::Resources(_) => lacks.resources = Some(shortage.to_string()),
        }
        self.note(lacks);
    }

    /// Looks until told to stop.
    pub async fn keep(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.look_again_and_again()).await;
    }

    async fn look_again_and_again(&self) {
        let mut looking = None;
        let mut waits = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            // One that hangs is waited for, not joined by another.
            let look = looking.get_or_insert_with(|| self.look());
            match timeout(TIMEOUT, look).await {
                Ok(found) => {
                    looking = None;
                    self.note(found.unwrap_or_else(|error| Lacks::workspace(&error)));
                }
                Err(_) => self.note(Lacks::workspace(&"it does not answer")),
            }
            if self.is_fit() && timeout(EVERY, self.unfit()).await.is_err() {
                waits.reset();
            }
            if !self.is_fit() {
                sleep(waits.next_delay()).await;
            }
        }
    }

    fn look(&self) -> JoinHandle<Lacks> {
        let (folder, was_short) = (self.workspace_dir.clone(), self.lacks().resources.is_some());
        spawn_blocking(move || {
            let begun = if was_short { open_pipes().and_then(|()| start_process()) } else { Ok(()) };
            match begun.and_then(|()| write_in(&folder)) {
                Ok(()) => Lacks::default(),
                Err(error) if is_of_resources(&error) => Lacks::resources(&error),
                Err(error) => Lacks::workspace(&format_args!("{}: {error}", folder.display())),
            }
        })
    }

    fn note(&self, found: Lacks) {
        let before = self.lacks.send_replace(found.clone());
        match (before.nothing(), found.nothing()) {
            (true, false) => {
                let reason = found.workspace.or(found.resources).unwrap_or_default();
                error!("{reason}; no job is taken until that is over");
            }
            (false, true) => info!("this machine has what jobs need again"),
            (_, _) => {}
        }
    }
}

/// Writes a file that has no name, and so leaves nothing behind.
fn write_in(folder: &Path) -> io::Result<()> {
    tempfile::tempfile_in(folder)?.write_all(&[b'x'; PROBE_BYTES])
}

fn open_pipes() -> io::Result<()> {
    (0..PROBE_PIPES).map(|_| io::pipe()).collect::<io::Result<Vec<_>>>().map(drop)
}

/// Starts this program for a moment, as one that is certainly there. Only a lack of processes or memory counts.
fn start_process() -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Err(error) if is_of_resources(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether files, processes or memory have run out, here or on the whole machine.
fn is_of_resources(error: &io::Error) -> bool {
    // EMFILE, ENFILE, EAGAIN and ENOMEM; the first two have no kind of their own.
    matches!(error.raw_os_error(), Some(24 | 23 | 11 | 12))
}
