//! A RabbitMQ of one's own, to be stopped and started again, by `ops/dev/services`: the one that `AMQP_URL` names belongs to all
//! tests.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The broker; it is stopped and its data removed with this, or with the process.
pub struct OwnBroker {
    /// Its address.
    pub url: String,
    keeper: Child,
    folder: TempDir,
}

impl OwnBroker {
    /// Starts one, which takes some seconds.
    pub async fn start() -> OwnBroker {
        let folder = TempDir::new().expect("a folder");
        let mut command = services(folder.path());
        // It runs as long as `cat` reads from us.
        command.args(["run", "--", "sh", "-c", r#"echo "$AMQP_URL"; exec cat"#]);
        let mut keeper =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ops/dev/services");
        let stdout = keeper.stdout.take().expect("its stdout");
        let first_line = move || BufReader::new(stdout).lines().next().and_then(Result::ok);
        let url = tokio::task::spawn_blocking(first_line).await.expect("a thread");
        OwnBroker { url: url.expect("a RabbitMQ of our own, by ops/dev/services"), keeper, folder }
    }

    /// Stops it in good order: RabbitMQ 3.10 does not always find the messages of a quorum queue again that was declared in
    /// the second before a SIGKILL.
    pub async fn stop(&self) {
        self.run(&["stop-broker"]).await;
    }

    /// Starts it again, at the same address and with its data.
    pub async fn start_again(&self) {
        self.run(&["start-broker"]).await;
    }

    /// Whether it has too little disk: it then holds back whoever publishes.
    pub async fn lacks_disk(&self, lacks: bool) {
        let limit = if lacks { "1000000GB" } else { "1MB" };
        self.run(&["rabbitmqctl", "set_disk_free_limit", limit]).await;
    }

    async fn run(&self, command: &[&str]) {
        let mut services = services(self.folder.path());
        services.args(command);
        let ended = tokio::task::spawn_blocking(move || services.status()).await.expect("a thread");
        assert!(ended.expect("ops/dev/services").success(), "{command:?} has failed");
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("the broker in {} stays behind: {error}", self.folder.path().display());
        }
    }
}

/// The script, for a broker in this folder. Postgres is the one that `DATABASE_URL` names already.
fn services(folder: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/dev/services");
    let mut command = Command::new(script);
    command.env("HARNESS_DEV_DIR", folder).env_remove("AMQP_URL").env_remove("RABBITMQ_MANAGEMENT_URL");
    command
}
