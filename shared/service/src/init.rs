//! The first process of a container: it starts itself once more, hands signals on, and waits for what nobody else waits for.
//!
//! What an agent's program leaves behind becomes a child of process 1, and stays a zombie until that has waited for it. A worker
//! cannot: it must not reap its own programs before it has signalled their groups for the last time.

use std::env;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

/// Does not return in process 1, but ends as its child does. Where that cannot be, the process goes on by itself.
pub(crate) fn reap_if_first() {
    if getpid() == Pid::from_raw(1)
        && let Err(error) = run()
    {
        let _ = SigSet::all().thread_unblock();
        // Printing would take a second thread, before this process may have one.
        let _ = writeln!(std::io::stderr(), "what programs leave behind is not reaped: {error}");
    }
}

fn run() -> std::io::Result<()> {
    // Blocked, signals wait in line until they are read. The child unblocks them for itself.
    SigSet::all().thread_block()?;
    let signals = SignalFd::new(&SigSet::all())?;
    let mut arguments = env::args_os();
    let mut command = Command::new(env::current_exe()?);
    command.arg0(arguments.next().unwrap_or_default());
    let child = Pid::from_raw(command.args(arguments).spawn()?.id() as i32);
    loop {
        let Some(signal) = signals.read_signal()? else { continue };
        match Signal::try_from(signal.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    exit(code);
                }
            }
            // A child that has just ended needs no signal.
            Ok(known) if !the_child_has_it(known, &signal) => drop(kill(child, known)),
            Ok(_) | Err(_) => {}
        }
    }
}

/// Those of a terminal's keys reach its whole process group, and the child is in it. That it hangs up, only its session's
/// leader hears.
fn the_child_has_it(known: Signal, signal: &siginfo) -> bool {
    /// `SI_KERNEL`: sent by nobody's `kill`.
    const KERNEL: i32 = 0x80;
    known != Signal::SIGHUP && signal.ssi_code == KERNEL
}

/// Waits for all that have ended. The exit code once `child` is among them.
fn reap(child: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => code = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}
