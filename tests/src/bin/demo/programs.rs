//! The real programs, run as a user would run them.

use std::io::stderr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use job::Name;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::display::{GREEN, bold};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The paths of the programs and the addresses of the services.
pub struct Programs {
    pub producer: PathBuf,
    pub worker: PathBuf,
    pub autoscaler: PathBuf,
    pub provider: PathBuf,
    pub amqp_url: String,
    pub database_url: String,
}

impl Programs {
    /// Finds the programs beside this one.
    pub fn find(root: &Path, amqp_url: String, database_url: String) -> anyhow::Result<Programs> {
        let here = std::env::current_exe().context("finding the other programs")?;
        let find = |name: &str| -> anyhow::Result<PathBuf> {
            let path = here.with_file_name(name);
            ensure!(path.is_file(), "{} does not exist: ops/dev/demo builds it", path.display());
            Ok(short(root, &path))
        };
        let (producer, worker) = (find("producer")?, find("worker")?);
        let (autoscaler, provider) = (find("autoscaler")?, find("provider")?);
        Ok(Programs { producer, worker, autoscaler, provider, amqp_url, database_url })
    }

    /// Returns a program with the addresses of the services. It is killed when it is dropped.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("AMQP_URL", &self.amqp_url).env("DATABASE_URL", &self.database_url);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs a command of `producer` and prints its output.
    pub async fn produce(&self, args: &[&str]) -> anyhow::Result<()> {
        let command = format!("{} {}", self.producer.display(), args.join(" "));
        self.run(self.command(&self.producer), command, args).await
    }

    /// Submits a file of jobs to the HTTP API at this address, without the addresses of the services.
    pub async fn submit(&self, url: &str, file: &Path) -> anyhow::Result<()> {
        let mut producer = Command::new(&self.producer);
        producer.env_remove("AMQP_URL").env_remove("DATABASE_URL").env("HARNESS_URL", url);
        producer.stdin(Stdio::null()).kill_on_drop(true);
        let file = file.display().to_string();
        let args = ["enqueue", "--file", &file];
        let command = format!("HARNESS_URL={url} {} {}", self.producer.display(), args.join(" "));
        self.run(producer, command, &args).await
    }

    async fn run(&self, mut producer: Command, command: String, args: &[&str]) -> anyhow::Result<()> {
        show(&command);
        let status = timeout(TIMEOUT, producer.args(args).status())
            .await
            .with_context(|| format!("`{command}` took longer than {} s", TIMEOUT.as_secs()))?
            .with_context(|| format!("starting {}", self.producer.display()))?;
        ensure!(status.success(), "`{command}` failed ({status})");
        Ok(())
    }

    /// Returns the reasons of the dead letters with these ids, of a message or its job.
    pub async fn dead_letters(&self, ids: &[String]) -> anyhow::Result<Vec<String>> {
        let mut reasons = Vec::new();
        // While another program holds dead letters, this one does not see them.
        for _ in 0..10 {
            let mut list = self.command(&self.producer);
            list.args(["dead", "list", "--json", "--limit", "100000"]).stderr(Stdio::inherit());
            let list =
                timeout(TIMEOUT, list.output()).await.context("`producer dead list` did not end")??;
            ensure!(list.status.success(), "`producer dead list` failed ({})", list.status);
            reasons = String::from_utf8_lossy(&list.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter(|letter| ids.iter().any(|id| letter["id"] == id.as_str()))
                .map(|letter| letter["reason"].as_str().unwrap_or_default().to_owned())
                .collect();
            if reasons.len() >= ids.len() {
                break;
            }
            sleep(Duration::from_millis(300)).await;
        }
        Ok(reasons)
    }

    /// Deletes a pool's queue, and reports if it cannot.
    pub async fn delete_queue(&self, pool: &Name) {
        let queue = queue::jobs_queue(pool);
        let delete = async {
            let connection = lapin::Connection::connect(&self.amqp_url, Default::default()).await?;
            let channel = connection.create_channel().await?;
            channel.queue_delete(queue.as_str().into(), Default::default()).await?;
            connection.close(200, "done".into()).await
        };
        match timeout(Duration::from_secs(5), delete).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("demo: the queue {queue} stays: {error}"),
            Err(_) => eprintln!("demo: the queue {queue} stays: the broker does not answer"),
        }
    }
}

/// Shows a command as a shell would.
pub fn show(command: &str) {
    eprintln!("{} {command}", bold(&stderr(), GREEN, "$"));
}

/// The path relative to the root, if it lies below it.
pub fn short(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_owned()
}

/// Whether Python programs run here.
pub fn python_is_there() -> bool {
    let mut python = std::process::Command::new("python3");
    python.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}
