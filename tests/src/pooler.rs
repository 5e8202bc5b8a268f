//! A PgBouncer in front of the Postgres that `DATABASE_URL` names, started by `ops/dev/pgbouncer`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::proxy::authority;

/// The pooler; it is stopped when this is dropped, at the latest with the process.
pub struct Pooler {
    url: String,
    child: Child,
}

impl Pooler {
    /// Starts one with these options of the script, such as `--release 1.18 --mode session`.
    pub async fn start(options: &str) -> Pooler {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/dev/pgbouncer"));
        command.args(options.split_whitespace());
        // The pooler runs until `cat` sees the end of its input.
        command.args(["run", "--", "sh", "-c", r#"echo "$DATABASE_URL"; exec cat"#]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ops/dev/pgbouncer");
        let stdout = child.stdout.take().expect("its stdout");
        let first_line = move || BufReader::new(stdout).lines().next().and_then(Result::ok);
        let url = tokio::task::spawn_blocking(first_line).await.expect("a thread");
        Pooler { url: url.expect("a pooler, by ops/dev/pgbouncer"), child }
    }

    /// Returns the same address, but through the pooler.
    pub fn through(&self, url: &str) -> String {
        url.replacen(authority(url), authority(&self.url), 1)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("a PgBouncer was not stopped: {error}");
        }
    }
}
