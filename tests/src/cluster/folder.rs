//! A folder that is gone when its owner is gone, in whatever way.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A temporary folder. A small process waits for the end of this one and removes it then: what the tests of a process
/// share is never dropped.
pub(super) struct Folder {
    path: PathBuf,
    janitor: Child,
}

/// Its input ends when we do. What lived in the folder dies at the same moment, and may write a last time.
const JANITOR: &str =
    r#"cat >/dev/null; for _ in 1 2 3 4 5; do rm -rf -- "$1" && sleep 0.2; done; [ ! -e "$1" ]"#;

impl Folder {
    pub fn new() -> Folder {
        let path = tempfile::Builder::new().prefix("harness-cluster-").tempdir().expect("a folder").keep();
        let mut janitor = Command::new("sh");
        janitor.args(["-c", JANITOR, "janitor"]).arg(&path).stdin(Stdio::piped());
        // Out of reach of a Ctrl-C that is meant for the tests.
        janitor.process_group(0);
        let janitor = janitor.spawn().expect("a shell");
        Folder { path, janitor }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        if !self.janitor.wait().is_ok_and(|status| status.success()) {
            eprintln!("the folder {} stays behind", self.path.display());
        }
    }
}
