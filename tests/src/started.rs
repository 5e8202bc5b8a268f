//! A command that was started, and its end.

use std::io::Read;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::until;

/// Sends SIGTERM.
pub fn terminate(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a process of ours");
}

/// Returns its exit code and the rest of what it wrote to stderr.
pub async fn ended(mut child: Child) -> (i32, String) {
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.read_to_string(&mut said).expect("UTF-8");
    }
    let status = until("it has ended", async || child.try_wait().expect("a status")).await;
    (status.code().unwrap_or_else(|| panic!("{status}: {said}")), said)
}
