//! What this machine lacks of the things that jobs need: a workspace that can be written, and files and processes for a
//! program.
//!
//! Such a lack is never the job's fault. While something is lacking, no slot takes a job and `/ready` says what it
//! is. A run that could not begin is handed back without spending an attempt. The machine is checked again and again
//! until nothing is lacking.

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

/// How often the machine is checked while nothing is lacking.
const EVERY: Duration = Duration::from_secs(5);
/// How soon the machine is checked again while something is lacking, and what this wait grows to while runs keep
/// failing.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A disk that has not answered after this time counts as missing.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes to write: more than a nearly full disk can take.
const PROBE_BYTES: usize = 64 << 10;
/// Pipes to open: as many as a program needs, with both ends, and some more.
const PROBE_PIPES: usize = 4;

/// The state of the machine, as runs and checks have found it.
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
    /// Begins with nothing known to be lacking.
    pub fn new(workspace_dir: &Path) -> Machine {
        Machine { workspace_dir: workspace_dir.to_owned(), lacks: watch::Sender::default() }
    }

    /// Returns what is lacking now.
    pub fn lacks(&self) -> Lacks {
        self.lacks.borrow().clone()
    }

    /// Returns whether jobs can begin here.
    pub fn is_fit(&self) -> bool {
        self.lacks.borrow().nothing()
    }

    /// Resolves when jobs cannot begin here.
    pub async fn unfit(&self) {
        // This fails only without a sender, and the sender is ours.
        let _ = self.lacks.subscribe().wait_for(|lacks| !lacks.nothing()).await;
    }

    /// Resolves when jobs can begin here.
    pub async fn fit(&self) {
        let _ = self.lacks.subscribe().wait_for(Lacks::nothing).await;
    }

    /// Notes what was lacking when a run could not begin.
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

    /// Checks the machine until it is asked to stop.
    pub async fn keep(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.look_again_and_again()).await;
    }

    async fn look_again_and_again(&self) {
        let mut looking = None;
        let mut waits = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            // If a check hangs, no second one is started beside it.
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

/// Starts this very program for a moment, because it certainly exists. Only a lack of processes or memory counts as a
/// failure.
fn start_process() -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Err(error) if is_of_resources(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Returns whether files, processes or memory have run out, in this process or on the whole machine.
fn is_of_resources(error: &io::Error) -> bool {
    // EMFILE, ENFILE, EAGAIN and ENOMEM; the first two have no `ErrorKind` of their own.
    matches!(error.raw_os_error(), Some(24 | 23 | 11 | 12))
}
