//! The process that is measured: `producer serve` of the same build.

use std::fs::File;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tests::Authority;

use super::client::Connection;
use crate::program;

/// A process; it is killed when this is dropped.
pub struct Door {
    process: Child,
    address: String,
    /// The authority of its certificate, where it has one.
    tls: Option<Authority>,
    _folder: tempfile::TempDir,
}

impl Door {
    pub async fn start(database: &str) -> anyhow::Result<Door> {
        Door::start_with(database, None).await
    }

    /// With TLS.
    pub async fn start_tls(database: &str) -> anyhow::Result<Door> {
        Door::start_with(database, Some(Authority::new())).await
    }

    async fn start_with(database: &str, tls: Option<Authority>) -> anyhow::Result<Door> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("serve.log");
        let mut command = program("producer")?;
        command.args(["serve", "--api-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
        command.env("DATABASE_URL", database).env("ENVIRONMENT", "development");
        command.env("LOG_LEVEL", "info").env("LOG_JSON", "false");
        if let Some(authority) = &tls {
            let certificate = authority.certificate("127.0.0.1");
            command.env("API_TLS_CERT", certificate.chain).env("API_TLS_KEY", certificate.key);
        }
        // One client on one address is all its callers here.
        for bound in [
            "API_MAX_CONNECTIONS_PER_ADDRESS",
            "API_MAX_FOLLOWERS_PER_TENANT",
            "API_MAX_FOLLOWERS_PER_CALLER",
            "API_MAX_UNFINISHED_JOBS",
        ] {
            command.env(bound, "none");
        }
        let out = File::create(&log)?;
        command.stdout(out.try_clone()?).stderr(out);
        let process = command.spawn().context("starting `producer serve`")?;
        let mut door = Door { process, address: String::new(), tls, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(30);
        while door.address.is_empty() {
            let text = std::fs::read_to_string(&log)?;
            let said = text.lines().find(|line| line.contains("takes jobs over HTTP"));
            let address = said.and_then(|line| line.split("address=").nth(1));
            door.address = address.unwrap_or_default().trim().to_owned();
            let ended = door.process.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "`producer serve` takes no jobs: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(door)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// A connection to it.
    pub async fn caller(&self) -> anyhow::Result<Connection> {
        match &self.tls {
            Some(authority) => Ok(Connection::open_tls(&self.address, authority).await),
            None => Connection::open(&self.address).await,
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // The measurement is complete.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
