//! A Python with pika, for the clients that a stranger would write.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The official SDKs of both providers, as [`python_with`] takes them.
pub const SDKS: &[(&str, &str)] = &[("anthropic", "anthropic==2.14.0"), ("openai", "openai==3.57.0")];

/// The system's Python if it has pika (`python3-pika`, which `ops/dev/services` installs along), or one of our own below `folder`.
pub fn python_with_pika(folder: &Path) -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| find(&folder.join("pika")))
}

/// A Python that has all of these packages, each a module's name and what `pip` installs: the system's, or one of our own
/// in `folder`.
pub fn python_with(folder: &Path, packages: &[(&str, &str)]) -> PathBuf {
    let has_all = |python: &Path| packages.iter().all(|(module, _)| has(python, module));
    let (system, own) = (PathBuf::from("python3"), folder.join("bin/python"));
    if has_all(&system) {
        return system;
    }
    if !has_all(&own) {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder));
        let wanted = packages.iter().map(|(_, wanted)| wanted);
        run(Command::new(&own).args(["-m", "pip", "install", "--quiet"]).args(wanted));
    }
    own
}

fn has(python: &Path, module: &str) -> bool {
    let import =
        Command::new(python).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
    import.is_ok_and(|status| status.success())
}

fn has_pika(python: &Path) -> bool {
    has(python, "pika")
}

fn find(folder: &Path) -> PathBuf {
    let system = PathBuf::from("python3");
    if has_pika(&system) {
        return system;
    }
    let own = folder.join("bin/python");
    if !has_pika(&own) {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder));
        run(Command::new(&own).args(["-m", "pip", "install", "--quiet", "pika==1.3.2"]));
    }
    own
}

fn run(command: &mut Command) {
    let remedy =
        "this test needs Python with packages that it cannot install (pika: `apt-get install python3-pika`)";
    let output = command.output().unwrap_or_else(|error| panic!("{remedy} ({command:?}: {error})"));
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{remedy}, or what {command:?} lacks: {said}");
}
