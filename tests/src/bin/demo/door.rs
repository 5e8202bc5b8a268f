//! The HTTP API through which the jobs come: `producer serve`, open to this machine alone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use crate::programs::{Programs, show};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// The process. It dies when this value is dropped, if not before.
pub struct Door {
    child: Child,
    log: PathBuf,
}

impl Door {
    pub fn start(programs: &Programs, folder: &Path) -> anyhow::Result<Door> {
        let log = folder.join("serve.log");
        let out = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = programs.command(&programs.producer);
        command.args(["serve", "--api-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
        // Open without keys, and its log as text, from which the address is read.
        command.env("ENVIRONMENT", "development").env("LOG_JSON", "false").env("LOG_LEVEL", "info");
        command.process_group(0).stdout(out.try_clone()?).stderr(out);
        let producer = programs.producer.display();
        let child = command.spawn().with_context(|| format!("starting {producer}"))?;
        show(&format!("{producer} serve --api-addr 127.0.0.1:0 …  (pid {})", child.id().unwrap_or_default()));
        Ok(Door { child, log })
    }

    /// Returns its address, once it takes jobs.
    pub async fn url(&mut self) -> anyhow::Result<String> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let said = text.lines().find(|line| line.contains("takes jobs over HTTP"));
            if let Some(address) = said.and_then(|line| line.split("address=").nth(1)) {
                return Ok(format!("http://{}", address.trim()));
            }
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "`producer serve` ended by itself, see {}", self.log.display());
            ensure!(Instant::now() < deadline, "`producer serve` takes no jobs, see {}", self.log.display());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends SIGTERM. Returns what was wrong with its end.
    pub async fn stop(mut self) -> anyhow::Result<Option<String>> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let ended =
            timeout(STOP_TIMEOUT, self.child.wait()).await.context("`producer serve` did not end")??;
        Ok((!ended.success()).then(|| format!("`producer serve` ended with {ended}")))
    }
}
