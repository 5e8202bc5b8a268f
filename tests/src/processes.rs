//! The workers that an autoscaler starts on this machine.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Fleet;

/// The processes of the pool `default` of a fleet's autoscalers. They are killed when this is dropped, even if the test
/// has failed.
pub struct Processes(PathBuf);

impl Processes {
    /// Returns those of this fleet.
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
                // One still lives only if the test has failed.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
