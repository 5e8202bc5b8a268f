//! What the tests share: programs in a folder of their own, and a search for what still runs.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use command::CommandConfig;
use harness::testing::{MemoryJournal, failure, run, task};
use harness::{Harness, RunError};
use job::{Failure, JobId, Json};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// A folder for a test's programs and its workspaces.
pub struct Bench {
    pub dir: TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    pub fn workspaces(&self) -> PathBuf {
        self.dir.path().join("workspaces")
    }

    /// Settings for a program with this text, such as `#!/bin/sh …`.
    pub fn program(&self, text: &str) -> CommandConfig {
        let path = self.dir.path().join(format!("program-{}", JobId::now()));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let env = [("PATH".to_owned(), quick_path())].into();
        CommandConfig { stop_grace_ms: 5_000, env, ..CommandConfig::new([path.to_str().unwrap()]) }
    }

    pub fn sh(&self, text: &str) -> CommandConfig {
        self.program(&format!("#!/bin/sh\n{text}\n"))
    }

    /// A Python program with `order`, `say(type, **fields)` and `wait()`, which returns on SIGTERM.
    pub fn python(&self, text: &str) -> CommandConfig {
        self.program(&format!(
            "#!/usr/bin/env python3\n\
             import json, os, signal, subprocess, sys, time\n\
             def say(kind, **fields):\n    print(json.dumps(dict(type=kind, **fields)), flush=True)\n\
             stops = []\nsignal.signal(signal.SIGTERM, lambda *_: stops.append(1))\n\
             def wait():\n    while not stops: time.sleep(0.01)\n\
             order = json.loads(sys.stdin.readline())\n{text}\n"
        ))
    }

    pub fn build(&self, config: CommandConfig) -> Arc<dyn Harness> {
        Arc::new(config.build(&self.workspaces()).unwrap())
    }

    /// Runs one job to its end.
    pub async fn end(&self, config: CommandConfig, journal: &Arc<MemoryJournal>) -> Result<Json, RunError> {
        let task = task(Value::Null);
        let ended = self.build(config).run(&mut run(&task, journal)).await;
        nothing_is_left_of(task.job_id).await;
        ended
    }

    /// The failure of one job that must not succeed.
    pub async fn failure(&self, config: CommandConfig) -> Failure {
        failure(self.end(config, &MemoryJournal::new()).await)
    }
}

/// The system's own folders first: a version manager's `python3` is a slow script around the real one.
pub fn quick_path() -> String {
    format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap())
}

/// Every living process that was started for a job, found by its environment, which children inherit.
pub fn processes_of(job_id: JobId) -> Vec<Pid> {
    let mark = format!("HARNESS_JOB_ID={job_id}");
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            // A process that has ended has no environment any more, so zombies do not count.
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        })
        .map(Pid::from_raw)
        .collect()
}

pub async fn nothing_is_left_of(job_id: JobId) {
    // SIGKILL takes effect a moment after it is sent, and no event reports the end of a process that is not our child.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes_of(job_id).is_empty() {
        assert!(Instant::now() < deadline, "still running: {:?}", processes_of(job_id));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn kill_all_of(job_id: JobId) {
    for pid in processes_of(job_id) {
        // It may have ended in between.
        let _ = kill(pid, Signal::SIGKILL);
    }
}
