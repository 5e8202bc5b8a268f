//! What the tests share: a journal that remembers, programs in a folder of their own, and a look at what still runs.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use harness::{
    CommandConfig, Delta, Event, Harness, HarnessConfig, Journal, Run, RunError, Session, Stop, Task,
};
use job::{Failure, FailureCode, JobId, Json};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

/// What happens at a checkpoint, given how many there were before.
type Hook = Box<dyn Fn(usize) -> Result<(), Stop> + Send + Sync>;

/// A journal that keeps everything in memory.
pub struct Ledger {
    deltas: Mutex<Vec<Delta>>,
    events: Mutex<Vec<Event>>,
    count: watch::Sender<usize>,
    hook: Hook,
    slow: Duration,
}

impl Ledger {
    pub fn new() -> Arc<Ledger> {
        Ledger::with(Duration::ZERO, |_| Ok(()))
    }

    pub fn with(
        slow: Duration,
        hook: impl Fn(usize) -> Result<(), Stop> + Send + Sync + 'static,
    ) -> Arc<Ledger> {
        let (deltas, events) = (Mutex::default(), Mutex::default());
        Arc::new(Ledger { deltas, events, count: watch::channel(0).0, hook: Box::new(hook), slow })
    }

    pub fn deltas(&self) -> Vec<Delta> {
        self.deltas.lock().unwrap().clone()
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Resolves with the n-th checkpoint or event, whichever are counted together.
    pub async fn reached(&self, count: usize) {
        let mut seen = self.count.subscribe();
        tokio::time::timeout(Duration::from_secs(10), seen.wait_for(|seen| *seen >= count))
            .await
            .unwrap_or_else(|_| panic!("no {count} checkpoints and events after 10 s"))
            .unwrap();
    }
}

#[async_trait]
impl Journal for Ledger {
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop> {
        let before = self.deltas.lock().unwrap().len();
        if !self.slow.is_zero() {
            tokio::time::sleep(self.slow).await;
        }
        (self.hook)(before)?;
        self.deltas.lock().unwrap().push(delta.clone());
        self.count.send_modify(|count| *count += 1);
        Ok(())
    }

    fn event(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.count.send_modify(|count| *count += 1);
    }
}

pub fn task(input: Value) -> Task {
    Task {
        job_id: JobId::now(),
        session_id: "session-1".parse().unwrap(),
        agent_id: "agent-1".parse().unwrap(),
        user_id: Some("somebody".to_owned()),
        input: Json::from_value(&input).unwrap(),
        attempt: 1,
        epoch: 7,
        traceparent: None,
        max_stalled_iterations: None,
    }
}

/// A run nobody stops, from an empty session.
pub fn run(task: &Task, ledger: &Arc<Ledger>) -> Run {
    Run::new(task.clone(), Session::default(), ledger.clone(), watch::channel(None).1)
}

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
        HarnessConfig::Command(config).build(&self.workspaces()).unwrap()
    }

    /// Runs one job to its end.
    pub async fn end(&self, config: CommandConfig, ledger: &Arc<Ledger>) -> Result<Json, RunError> {
        let task = task(Value::Null);
        let ended = self.build(config).run(&mut run(&task, ledger)).await;
        nothing_is_left_of(task.job_id).await;
        ended
    }

    /// The failure of one job that must not succeed.
    pub async fn failure(&self, config: CommandConfig) -> Failure {
        failure(self.end(config, &Ledger::new()).await)
    }
}

/// The system's own folders first: a version manager's `python3` is a slow script around the real one.
pub fn quick_path() -> String {
    format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap())
}

pub fn failure(ended: Result<Json, RunError>) -> Failure {
    match ended {
        Err(RunError::Failed(failure)) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[track_caller]
pub fn assert_failure(failure: &Failure, code: FailureCode, retryable: bool, text: &str) {
    assert_eq!((failure.code, failure.retryable), (code, retryable), "{failure}");
    assert!(failure.message.contains(text), "expected {text:?} in: {failure}");
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
    // SIGKILL takes effect a moment after it is sent, and no event tells us of strangers' ends.
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
