//! The workers that an autoscaler starts on this machine.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Fleet;

/// Those of the pool `default` of a fleet's autoscalers; they are gone with this, also when the test has failed.
pub struct Processes(PathBuf);

impl Processes {
    /// Of this fleet.
    pub fn of(fleet: &Fleet) -> Processes {
        Processes(fleet.processes().join("default"))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let files = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        for file in files.filter(|file| file.path().extension().is_some_and(|kind| kind == "pid")) {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            if let Some(pid) = text.split(' ').next().and_then(|pid| pid.parse().ok()) {
                // Only in a test that has failed does one still live.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
