//! A private service, started by `ops/dev/services`. A service that the environment names belongs to all tests.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A running service. It is stopped and its data removed when this is dropped, at the latest with the process.
pub(crate) struct Keeper {
    /// Its address.
    pub url: String,
    /// The variables that must be unset so that the script starts a new service.
    unset: &'static [&'static str],
    child: Child,
    folder: TempDir,
}

impl Keeper {
    /// Starts the service whose address is the first of these variables. This takes some seconds.
    pub async fn start(unset: &'static [&'static str], environment: &[(&str, String)]) -> Keeper {
        let folder = TempDir::new().expect("a folder");
        // Postgres's user must be able to pass through it.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).expect("a folder of ours");
        let mut command = services(folder.path(), unset);
        // The service runs until `cat` sees the end of its input.
        command.args(["run", "--", "sh", "-c", &format!(r#"echo "${}"; exec cat"#, unset[0])]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ops/dev/services");
        let stdout = child.stdout.take().expect("its stdout");
        let first_line = move || BufReader::new(stdout).lines().next().and_then(Result::ok);
        let url = tokio::task::spawn_blocking(first_line).await.expect("a thread");
        Keeper { url: url.expect("a service of our own, by ops/dev/services"), unset, child, folder }
    }

    /// Runs another command of the script.
    pub async fn run(&self, command: &[&str]) {
        let mut services = services(self.folder.path(), self.unset);
        services.args(command);
        let ended = tokio::task::spawn_blocking(move || services.status()).await.expect("a thread");
        assert!(ended.expect("ops/dev/services").success(), "{command:?} failed");
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the service in {} was not stopped: {error}", self.folder.path().display());
        }
    }
}

/// The script, for a service in this folder. The variables in `unset` would name an existing service.
fn services(folder: &Path, unset: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/dev/services");
    let mut command = Command::new(script);
    command.env("HARNESS_DEV_DIR", folder);
    for name in unset {
        command.env_remove(name);
    }
    command
}
