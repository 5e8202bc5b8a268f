//! The services as an operator has them: they can be stopped, killed and started again by `ops/dev/services`.
//!
//! Only services that this script has started may be broken. With a service that `AMQP_URL` or `DATABASE_URL` names,
//! only scenarios that leave the servers alone are played.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use tokio::time::timeout;

/// Longer than both servers take to start.
const TIMEOUT: Duration = Duration::from_secs(150);

/// The variables that name the services.
const ADDRESSES: [&str; 3] = ["AMQP_URL", "RABBITMQ_MANAGEMENT_URL", "DATABASE_URL"];

/// Returns once the environment names services. If it names none, this program begins anew under `run` of the script, with
/// the same arguments.
pub fn provide(script: &Path) -> anyhow::Result<()> {
    let (named, missing): (Vec<&str>, Vec<&str>) =
        ADDRESSES.into_iter().partition(|name| std::env::var_os(name).is_some());
    match (&*named, &*missing) {
        (_, []) => Ok(()),
        ([], _) => match run_again(script)? {},
        _ => bail!(
            "{} is not set, and {} is: set all of {}, or none, so that private services are started",
            missing.join(" and "),
            named.join(" and "),
            ADDRESSES.join(", "),
        ),
    }
}

/// Becomes the script, which starts services, runs this program and stops them again.
fn run_again(script: &Path) -> anyhow::Result<Infallible> {
    let program = std::env::current_exe().context("finding this program")?;
    eprintln!("chaos: no services are named, so {} starts private ones", script.display());
    let mut command = std::process::Command::new(script);
    let error = command.args(["run", "--"]).arg(program).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| {
        format!(
            "running {}: start this in the repository's root, or name the script by --services",
            script.display()
        )
    })
}

/// The script.
#[derive(Clone)]
pub struct Services {
    script: PathBuf,
}

impl Services {
    pub fn new(script: PathBuf) -> Services {
        Services { script }
    }

    /// Why the servers must not be broken, if they must not.
    pub async fn foreign(&self) -> Option<String> {
        let status = match self.ask(&["status"]).await {
            Ok(status) => status,
            Err(error) => return Some(format!("{error:#}")),
        };
        let given = status.lines().find(|line| line.contains("given by"))?;
        let words: Vec<&str> = given.split_whitespace().collect();
        Some(format!("{} names a service that {} has not started", words.get(3)?, self.script.display()))
    }

    /// Runs a command of the script.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.ask(arguments).await.map(drop)
    }

    async fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let what = || format!("{} {}", self.script.display(), arguments.join(" "));
        let mut command = Command::new(&self.script);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = timeout(TIMEOUT, command.output()).await.with_context(what)?.with_context(what)?;
        let [answer, problem] =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        // `status` says on its standard output what is wrong.
        let said = format!("{}\n{}", answer.trim(), problem.trim());
        ensure!(output.status.success(), "{} has failed ({}): {}", what(), output.status, said.trim());
        Ok(answer)
    }

    /// Repairs both servers after a scenario that has failed half-way.
    pub async fn mend(&self) -> anyhow::Result<()> {
        self.run(&["start-broker"]).await?;
        self.run(&["start-postgres"]).await?;
        self.free_disk().await?;
        self.ack_timeout(None).await
    }

    /// Makes the broker see a full disk, so that it blocks publishers.
    pub async fn fill_disk(&self) -> anyhow::Result<()> {
        self.run(&["rabbitmqctl", "set_disk_free_limit", "1000000GB"]).await
    }

    pub async fn free_disk(&self) -> anyhow::Result<()> {
        self.run(&["rabbitmqctl", "set_disk_free_limit", "200MB"]).await
    }

    /// Sets how long a delivery may stay unacked, for channels that are opened from now on. Channels check once per
    /// tick, which is a minute, so the tick is shortened too.
    pub async fn ack_timeout(&self, bound: Option<Duration>) -> anyhow::Result<()> {
        let (timeout_ms, tick_ms) = match bound {
            Some(bound) => (bound.as_millis(), 1_000),
            None => (1_800_000, 60_000),
        };
        let set = format!(
            "application:set_env(rabbit, consumer_timeout, {timeout_ms}), \
             application:set_env(rabbit, channel_tick_interval, {tick_ms})."
        );
        self.run(&["rabbitmqctl", "eval", &set]).await
    }
}
