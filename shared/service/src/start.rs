//! The first moments of a process, before it has a second thread: which secrets it hides, how many files it may open,
//! when its memory goes back, and which settings it has.
//!
//! Secrets (settings that `--help` never shows) are removed from the environment here, so that no program inherits
//! them. The kernel still shows the initial environment of a process in `/proc/PID/environ`, and its memory in
//! `/proc/PID/mem`. So the process is made not *dumpable*: both files then belong to root, whichever user runs the
//! process, and it leaves no core dump. Neither measure helps against root itself, or against a user who may read the
//! file of a secret.

use std::env;
use std::sync::OnceLock;

use clap::{Command, Parser};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use secrecy::{ExposeSecret, SecretString};

use crate::{Common, init};

/// Secrets that have no flag, because their names are given by a specification.
const OTHER_SECRETS: [&str; 1] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS"];

static SECRETS: OnceLock<Vec<Secret>> = OnceLock::new();
static OPEN_FILES: OnceLock<OpenFiles> = OnceLock::new();
static OUTLIVES_ITS_TERMINAL: OnceLock<bool> = OnceLock::new();

struct Secret {
    name: String,
    value: SecretString,
    /// Whether it came from a file. The environment keeps the name of that file.
    by_file: bool,
}

/// How many files a process may have open, including sockets and pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// The limit that it was started with, and that its programs get.
    pub given: u64,
    /// The limit to which it has raised that.
    pub now: u64,
}

/// Reads the command line and the environment. It must be called first in `main`, because it changes the environment.
///
/// A variable that is set and empty counts as not set. Each secret `NAME` may be kept in a file instead, which
/// `NAME_FILE` names.
pub fn parse<T: Parser + AsMut<Common>>() -> T {
    // Only a kernel that does not know this call refuses it.
    let _ = prctl::set_dumpable(false);
    init::reap_if_first();
    let _ = SigSet::all().thread_unblock();
    open_files();
    outlives_its_terminal();
    let command = T::command();
    let (mut names, mut secrets) = (Vec::new(), OTHER_SECRETS.map(str::to_owned).to_vec());
    collect(&command, &mut names, &mut secrets);
    let mut problems = Vec::new();
    for name in names.iter().filter(|name| is_empty(name)) {
        set(name, None);
    }
    let mut by_file = Vec::new();
    for name in &secrets {
        match from_file(name) {
            Ok(Some(secret)) => {
                set(name, Some(&secret));
                by_file.push(name);
            }
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    let mut args = T::parse();
    let secret = |name: &String| {
        let value = SecretString::from(env::var(name).ok()?);
        Some(Secret { name: name.clone(), value, by_file: by_file.contains(&name) })
    };
    // Nothing else sets it.
    let _ = SECRETS.set(secrets.iter().filter_map(secret).collect());
    secrets.iter().for_each(|name| set(name, None));
    args.as_mut().unreadable = problems;
    args
}

/// Collects the names of a command's variables, and those of them that are secret.
fn collect(command: &Command, names: &mut Vec<String>, secrets: &mut Vec<String>) {
    for argument in command.get_arguments() {
        let Some(name) = argument.get_env().map(|name| name.to_string_lossy().into_owned()) else { continue };
        if argument.is_hide_env_values_set() && !secrets.contains(&name) {
            secrets.push(name.clone());
        }
        names.push(name);
    }
    command.get_subcommands().for_each(|command| collect(command, names, secrets));
}

fn is_empty(name: &str) -> bool {
    env::var(name).is_ok_and(|value| value.trim().is_empty())
}

/// Returns the secret in the file that `NAME_FILE` names, without surrounding whitespace.
fn from_file(name: &str) -> Result<Option<String>, String> {
    let by_file = format!("{name}_FILE");
    let Some(path) = env::var_os(&by_file).filter(|path| !path.is_empty()) else { return Ok(None) };
    if env::var_os(name).is_some() {
        return Err(format!("{by_file}: {name} is set as well, expected one of the two"));
    }
    let shown = std::path::Path::new(&path).display();
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => {
            Err(format!("{by_file}: {shown} is empty, expected the secret"))
        }
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) => Err(format!("{by_file}: {shown} cannot be read: {error}, expected a file")),
    }
}

#[expect(unsafe_code, reason = "the environment can be changed safely only while there is one thread")]
fn set(name: &str, value: Option<&str>) {
    // SAFETY: `parse` is the first thing that `main` does, so no other thread reads the environment yet.
    unsafe {
        match value {
            Some(value) => env::set_var(name, value),
            None => env::remove_var(name),
        }
    }
}

fn secrets() -> &'static [Secret] {
    SECRETS.get().map(Vec::as_slice).unwrap_or_default()
}

/// Returns a variable of the environment that the process was started with, whether it is a secret or not.
pub fn variable(name: &str) -> Option<String> {
    let secret = secrets().iter().find(|secret| secret.name == name);
    secret.map(|secret| secret.value.expose_secret().to_owned()).or_else(|| env::var(name).ok())
}

/// Returns the values of all secrets that the process was started with.
pub fn secret_values() -> impl Iterator<Item = &'static SecretString> {
    secrets().iter().map(|secret| &secret.value)
}

/// Returns the secrets that were removed from the environment, with their names, to start another of our processes with
/// the same settings.
pub fn taken_secrets() -> impl Iterator<Item = (&'static str, &'static str)> {
    let taken = secrets().iter().filter(|secret| !secret.by_file);
    taken.map(|secret| (secret.name.as_str(), secret.value.expose_secret()))
}

/// Raises the limit of open files once, as far as this process may. With a low limit, a worker's slots run out of
/// files.
pub fn open_files() -> OpenFiles {
    *OPEN_FILES.get_or_init(|| {
        let (given, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
        let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
        OpenFiles { given, now: if raised { hard } else { given } }
    })
}

/// Pieces of memory of at least so many bytes go back to the kernel as soon as they are free.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: i32 = 128 * 1024;
/// How many pools of memory the threads share.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 4;

/// Makes large pieces of memory go back to the kernel when they are free, for a process through which many large texts go.
///
/// glibc begins so, but after the first large piece was freed it takes all that are not larger from its pools, of which it has
/// eight for each core; what lies between pieces that are in use stays there. Where `MALLOC_MMAP_THRESHOLD_`,
/// `MALLOC_ARENA_MAX` or `GLIBC_TUNABLES` says otherwise, that holds.
pub fn free_large_memory_at_once() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD};
        let is_set = |name| env::var_os(name).is_some();
        if is_set("GLIBC_TUNABLES") {
            return;
        }
        for (name, option, value) in [
            ("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, LARGE_BYTES),
            ("MALLOC_ARENA_MAX", M_ARENA_MAX, ARENAS),
        ] {
            if !is_set(name) {
                tune(option, value);
            }
        }
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "only the C library can set how its allocator works")]
fn tune(option: i32, value: i32) {
    // SAFETY: both options take any number, and may be set at any time.
    unsafe {
        nix::libc::mallopt(option, value);
    }
}

/// Whether the process was started with SIGHUP ignored. The first call must come before a handler for that signal is
/// set.
pub(crate) fn outlives_its_terminal() -> bool {
    *OUTLIVES_ITS_TERMINAL.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // Signal 1 is the lowest bit.
        ignored.is_some_and(|mask| mask & 1 == 1)
    })
}
