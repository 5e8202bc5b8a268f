//! A program's process group: signals to all its processes, and its leader's end. This module does not know what is
//! said over its pipes.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::signal::unix::{SignalKind, signal};

use crate::guard;

/// How long a killed process may take to be gone. It takes longer only when the kernel is stuck in a device.
const REAP: Duration = Duration::from_secs(5);

/// A process and its group; killed when dropped.
///
/// The leader's id, and with it the group's, stays taken until the leader is reaped. So the leader is reaped only after
/// the last signal, and no signal can ever reach another process that was given the same id.
pub struct Group {
    child: Child,
    id: Pid,
    reaped: bool,
}

/// How the leader ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// `None` if it could not be reaped in time.
    pub status: Option<ExitStatus>,
    /// False if it was still running when it was killed for good.
    pub by_itself: bool,
}

impl Group {
    /// Takes over the group that `child` leads.
    pub fn new(child: Child) -> io::Result<Group> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let id = id.ok_or_else(|| io::Error::other("a process that was just started has no id"))?;
        Ok(Group { child, id, reaped: false })
    }

    /// Returns the leader's id, which is the group's.
    pub(crate) fn id(&self) -> Pid {
        self.id
    }

    /// Takes stdin, stdout and stderr. A second call returns `None` for each.
    pub fn take_pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take())
    }

    /// Asks every process in the group to end (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends every process in the group (SIGKILL).
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        match killpg(self.id, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                tracing::error!(pgid = self.id.as_raw(), %signal, cause = %error, "a program cannot be signalled")
            }
        }
    }

    /// Resolves when the leader has ended, and leaves it unreaped. Can be called any number of times.
    pub async fn exited(&self) {
        // Listen first and then look, so that an end in between is not missed.
        let mut children = match signal(SignalKind::child()) {
            Ok(children) => children,
            Err(error) => {
                tracing::error!(cause = %error, "cannot listen for the end of a program; its time limits will end it");
                return std::future::pending().await;
            }
        };
        while !self.has_exited() {
            children.recv().await;
        }
    }

    fn has_exited(&self) -> bool {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        // Any error but an interruption means that the leader has ended, or that nothing is left to wait for.
        !matches!(waitid(Id::Pid(self.id), look), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }

    /// Kills what is left and reaps the leader.
    pub async fn end(mut self) -> Exit {
        let by_itself = self.has_exited();
        self.kill();
        guard::remove(self.id);
        let status = match tokio::time::timeout(REAP, self.child.wait()).await {
            Ok(Ok(status)) => Some(status),
            Ok(Err(error)) => {
                tracing::error!(pid = self.id.as_raw(), cause = %error, "a program's end cannot be read");
                None
            }
            Err(_) => {
                tracing::error!(pid = self.id.as_raw(), "a program has not ended {REAP:?} after SIGKILL");
                None
            }
        };
        self.reaped = status.is_some();
        Exit { status, by_itself }
    }
}

impl Drop for Group {
    /// Kills the group. The runtime reaps the leader later.
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            guard::remove(self.id);
        }
    }
}
