//! Two real worker processes: started, killed and stopped by pid.

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
    /// The folder for logs, workspaces, and the readers' documents.
    pub folder: &'a Path,
    /// The agents' file.
    pub agents: &'a Path,
    /// More variables.
    pub environment: &'a [(&'static str, String)],
}

/// A worker process. It dies when this value is dropped, if not before.
pub struct Worker {
    /// `A`, `B`, …
    pub name: char,
    pub pid: u32,
    log: PathBuf,
    child: Child,
    ended: bool,
}

/// The name by which the ledger knows a worker of this run.
pub fn pod_name(pool: &Name, worker: char) -> String {
    format!("{pool}-{worker}")
}

impl Worker {
    pub fn start(name: char, setup: &Setup<'_>) -> anyhow::Result<Worker> {
        let Setup { programs, pool, slots, lease_s, folder, agents, environment } = setup;
        let log = folder.join(format!("worker-{name}.log"));
        let out = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let (slots, lease_s) = (slots.to_string(), lease_s.to_string());
        let mut command = programs.command(&programs.worker);
        command.args(["--pool", pool.as_str(), "--slots", &slots, "--lease-s", &lease_s]);
        command.arg("--agents").arg(agents).args(["--pod-name", &pod_name(pool, name)]);
        command.args(["--admin-addr", "127.0.0.1:0", "--drain-grace-s", "5"]);
        command.arg("--workspace-dir").arg(folder.join("workspaces"));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        // For the agent `reader`, whose programs run in their sessions' folders.
        command.env("READER_ROOT", std::path::absolute(folder.join("documents"))?);
        // In its own process group, so that this program decides what a Ctrl-C at the terminal does.
        command.process_group(0).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("starting {}", programs.worker.display()))?;
        let pid = child.id().context("a process that was just started has no pid")?;
        let program = programs.worker.display();
        show(&format!("{program} --pool {pool} --slots {slots} --lease-s {lease_s} …  (pid {pid})"));
        Ok(Worker { name, pid, log, child, ended: false })
    }

    /// Fails if the worker has ended unasked. The error quotes the end of its log, which gives the reason.
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
            bail!("worker {} ended by itself ({status}); the end of its log:\n  {end}", self.name);
        }
        Ok(())
    }

    /// Sends SIGKILL, so the worker cannot sign off. Returns when it is gone.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if !self.ended {
            let killed = self.child.kill().await;
            killed.with_context(|| format!("killing worker {} (pid {})", self.name, self.pid))?;
            self.ended = true;
        }
        Ok(())
    }

    /// Sends SIGTERM, and SIGKILL if the worker is not gone after a while. Returns whether it ended in good order.
    pub async fn stop(&mut self) -> anyhow::Result<bool> {
        const TIMEOUT: Duration = Duration::from_secs(10);
        if self.ended {
            return Ok(true);
        }
        // Only this program reaps it, so the pid still belongs to it.
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
