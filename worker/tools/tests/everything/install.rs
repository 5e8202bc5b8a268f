//! Installs the protocol's own example server, `@modelcontextprotocol/server-everything`, by npm from the lock file beside
//! this one. The tests of agents include this file as well.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the server's program for Node. It is installed once in cargo's folder for tests.
pub fn installed() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("everything");
    fs::create_dir_all(&folder).expect("a folder");
    // Other tests may install it at the same time.
    let turn = File::create(folder.join("turn")).expect("a file");
    turn.lock().expect("its lock");
    let lock = include_str!("package-lock.json");
    // It is written last, so that it stands for all of it.
    let done = folder.join("installed.json");
    if fs::read_to_string(&done).ok().as_deref() != Some(lock) {
        let files = [("package.json", include_str!("package.json")), ("package-lock.json", lock)];
        for (file, text) in files {
            fs::write(folder.join(file), text).expect("written");
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
        let installed = npm.output().expect("npm: ops/dev/tools installs it");
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        fs::write(done, lock).expect("written");
    }
    folder.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js")
}
