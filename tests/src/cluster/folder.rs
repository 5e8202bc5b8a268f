//! A folder that is removed when its owner ends, however it ends.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A temporary folder. A small process waits for the end of the test process and then removes the folder, because
/// values that tests share are never dropped.
pub(super) struct Folder {
    path: PathBuf,
    janitor: Child,
}

/// Its input ends when the test process ends. The servers that use the folder die at the same moment and may still
/// write to it.
const JANITOR: &str =
    r#"cat >/dev/null; for _ in 1 2 3 4 5; do rm -rf -- "$1" && sleep 0.2; done; [ ! -e "$1" ]"#;

impl Folder {
    pub fn new() -> Folder {
        let path = tempfile::Builder::new().prefix("harness-cluster-").tempdir().expect("a folder").keep();
        let mut janitor = Command::new("sh");
        janitor.args(["-c", JANITOR, "janitor"]).arg(&path).stdin(Stdio::piped());
        // In its own process group, so that a Ctrl-C for the tests does not reach it.
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
            eprintln!("the folder {} was not removed", self.path.display());
        }
    }
}
