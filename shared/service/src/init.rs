//! The first process of a container: it starts itself once more as a child, forwards signals, and reaps processes that
//! no other process waits for.
//!
//! A process that an agent's program leaves behind becomes a child of process 1, and stays a zombie until process 1
//! has waited for it. A worker cannot do that: it must not reap its own programs before it has signalled their groups
//! for the last time.

use std::env;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

/// In process 1, does not return, but exits as its child does. If that cannot be set up, returns, and the process
/// continues without it.
pub(crate) fn reap_if_first() {
    if getpid() == Pid::from_raw(1)
        && let Err(error) = run()
    {
        let _ = SigSet::all().thread_unblock();
        // The log would start a second thread, which this process must not have yet.
        let _ = writeln!(std::io::stderr(), "orphaned processes are not reaped: {error}");
    }
}

fn run() -> std::io::Result<()> {
    // Blocked signals are queued until they are read. The child unblocks them for itself.
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

/// Whether the child got this signal itself. Signals from a terminal's keys reach the whole process group, including
/// the child. A hangup reaches only the session's leader.
fn the_child_has_it(known: Signal, signal: &siginfo) -> bool {
    /// `SI_KERNEL`: the kernel sent it, and not a process by `kill`.
    const KERNEL: i32 = 0x80;
    known != Signal::SIGHUP && signal.ssi_code == KERNEL
}

/// Waits for all processes that have ended. Returns the exit code if `child` is among them.
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
