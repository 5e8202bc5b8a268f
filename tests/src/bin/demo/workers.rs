//! Two real worker processes: started, killed and stopped by their pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use job::Name;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::timeout;

use crate::programs::{Programs, show};

/// What all workers of a run have in common.
pub struct Setup<'a> {
    pub programs: &'a Programs,
    pub pool: &'a Name,
    pub slots: u32,
    pub lease_s: u64,
    /// For logs, workspaces, and with the readers' documents.
    pub folder: &'a Path,
}

/// A worker process. It dies with this value at the latest.
pub struct Worker {
    /// `A`, `B`, …
    pub name: char,
    pub pid: u32,
    log: PathBuf,
    child: Child,
    ended: bool,
}

/// By this name the ledger knows a worker of this run.
pub fn pod_name(pool: &Name, worker: char) -> String {
    format!("{pool}-{worker}")
}

impl Worker {
    pub fn start(name: char, setup: &Setup<'_>) -> anyhow::Result<Worker> {
        let Setup { programs, pool, slots, lease_s, folder } = setup;
        let log = folder.join(format!("worker-{name}.log"));
        let out = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let (slots, lease_s) = (slots.to_string(), lease_s.to_string());
        let mut command = programs.command(&programs.worker);
        command.args(["--pool", pool.as_str(), "--slots", &slots, "--lease-s", &lease_s]);
        command.args(["--agents", "ops/dev/agents.toml", "--pod-name", &pod_name(pool, name)]);
        command.args(["--admin-addr", "127.0.0.1:0", "--drain-grace-s", "5"]);
        command.arg("--workspace-dir").arg(folder.join("workspaces"));
        // For the agent `reader`, whose programs run in their sessions' folders.
        command.env("READER_ROOT", std::path::absolute(folder.join("documents"))?);
        // In a group of its own: what a Ctrl-C at the terminal means is for us to say.
        command.process_group(0).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("starting {}", programs.worker.display()))?;
        let pid = child.id().context("a process that was just started has no pid")?;
        let program = programs.worker.display();
        show(&format!("{program} --pool {pool} --slots {slots} --lease-s {lease_s} …  (pid {pid})"));
        Ok(Worker { name, pid, log, child, ended: false })
    }

    /// An error when it has ended although nobody asked it to; the end of its log tells why.
    pub fn check(&mut self) -> anyhow::Result<()> {
        const TOLD: usize = 12;
        if self.ended {
            return Ok(());
        }
        if let Some(status) = self.child.try_wait()? {
            self.ended = true;
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(TOLD)..].join("\n  ");
            bail!("worker {} has ended by itself ({status}); its last words:\n  {end}", self.name);
        }
        Ok(())
    }

    /// SIGKILL: it cannot say goodbye to anybody. Returns when it is gone.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if !self.ended {
            let killed = self.child.kill().await;
            killed.with_context(|| format!("killing worker {} (pid {})", self.name, self.pid))?;
            self.ended = true;
        }
        Ok(())
    }

    /// SIGTERM, and SIGKILL should it not be gone after a while. Returns whether it went in good order.
    pub async fn stop(&mut self) -> anyhow::Result<bool> {
        const TIMEOUT: Duration = Duration::from_secs(10);
        if self.ended {
            return Ok(true);
        }
        // It is reaped by us alone, so the pid is still its own.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if let Ok(status) = timeout(TIMEOUT, self.child.wait()).await {
            self.ended = true;
            return Ok(status?.success());
        }
        self.kill().await?;
        Ok(false)
    }
}
