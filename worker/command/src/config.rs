//! The settings of `harness = "command"`, and their check against this machine. This module does not know how a program
//! is run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use harness::ConfigError;
use process::{Program, Sandbox, SandboxConfig, SettingError};
use serde::Deserialize;

const WEEK_MS: u64 = 7 * 86_400_000;
const MIB: u64 = 1024 * 1024;

/// The settings of `harness = "command"`. What a program is given and may write is in [the contract](crate).
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments. A name without a slash is looked up in `PATH`. A relative path with a slash
    /// starts at the worker's current folder. Arguments are passed as they are.
    pub command: Vec<String>,
    /// Names of variables to pass on from the worker's environment, besides `PATH`, `LANG`, `LC_ALL` and `TZ`.
    pub env_allow: Vec<String>,
    /// Variables with fixed values; they override those that are passed on.
    pub env: BTreeMap<String, String>,
    /// Wall-clock limit of one attempt; an hour unless set, a week at most.
    pub timeout_ms: u64,
    /// The longest silence on stdout; five minutes unless set.
    pub idle_timeout_ms: u64,
    /// How long a program may take to exit before SIGKILL, after SIGTERM and after its last word; five seconds unless
    /// set, ten minutes at most. Keep it below the 15 seconds for which the worker waits for a stopped run.
    pub stop_grace_ms: u64,
    /// Limit on each process's address space (`RLIMIT_AS`); none unless set.
    pub memory_limit_mb: Option<u64>,
    /// The longest line on stdout; 1 MiB unless set.
    pub max_line_bytes: usize,
    /// The most a program may write to stdout in one attempt; 64 MiB unless set.
    pub max_output_bytes: u64,
    /// What the program may reach.
    pub sandbox: SandboxConfig,
}

impl Default for CommandConfig {
    fn default() -> Self {
        CommandConfig {
            command: Vec::new(),
            env_allow: Vec::new(),
            env: BTreeMap::new(),
            timeout_ms: 3_600_000,
            idle_timeout_ms: 300_000,
            stop_grace_ms: 5_000,
            memory_limit_mb: None,
            max_line_bytes: MIB as usize,
            max_output_bytes: 64 * MIB,
            sandbox: SandboxConfig::default(),
        }
    }
}

/// Leaves out the values of `env`, which may be secrets.
impl fmt::Debug for CommandConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandConfig")
            .field("command", &self.command)
            .field("env_allow", &self.env_allow)
            .field("env", &self.env.keys())
            .field("timeout_ms", &self.timeout_ms)
            .field("idle_timeout_ms", &self.idle_timeout_ms)
            .field("stop_grace_ms", &self.stop_grace_ms)
            .field("memory_limit_mb", &self.memory_limit_mb)
            .field("max_line_bytes", &self.max_line_bytes)
            .field("max_output_bytes", &self.max_output_bytes)
            .field("sandbox", &self.sandbox)
            .finish()
    }
}

/// Settings that have been checked, in the form that a run needs.
pub(crate) struct Settings {
    pub program: Program,
    pub workspace_dir: PathBuf,
    pub timeout: Duration,
    pub idle_timeout: Duration,
    pub stop_grace: Duration,
    pub memory_limit_mb: Option<u64>,
    pub max_line_bytes: usize,
    pub max_output_bytes: u64,
    pub sandbox: Option<Sandbox>,
}

impl CommandConfig {
    /// Returns settings for this program, with defaults for the rest.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> CommandConfig {
        CommandConfig { command: command.into_iter().map(Into::into).collect(), ..CommandConfig::default() }
    }

    pub(crate) fn check(self, workspace_dir: &Path) -> Result<Settings, Vec<ConfigError>> {
        let mut problems = self.out_of_range();
        let program = noted(Program::find(&self.command, &self.env_allow, &self.env), &mut problems);
        let workspace_dir = prepare_workspace_dir(workspace_dir).map_err(|error| problems.push(error)).ok();
        let named = program.iter().flat_map(Program::named);
        let sandbox = noted(self.sandbox.clone().check(named), &mut problems);
        let (Some(program), Some(workspace_dir), Some(sandbox), true) =
            (program, workspace_dir, sandbox, problems.is_empty())
        else {
            return Err(problems);
        };
        Ok(Settings {
            program,
            workspace_dir,
            timeout: Duration::from_millis(self.timeout_ms),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            stop_grace: Duration::from_millis(self.stop_grace_ms),
            memory_limit_mb: self.memory_limit_mb,
            max_line_bytes: self.max_line_bytes,
            max_output_bytes: self.max_output_bytes,
            sandbox,
        })
    }

    fn out_of_range(&self) -> Vec<ConfigError> {
        let ranges = [
            ("timeout_ms", self.timeout_ms, 1, WEEK_MS),
            ("idle_timeout_ms", self.idle_timeout_ms, 1, WEEK_MS),
            ("stop_grace_ms", self.stop_grace_ms, 0, 600_000),
            ("memory_limit_mb", self.memory_limit_mb.unwrap_or(16), 16, 16 * MIB),
            ("max_line_bytes", self.max_line_bytes as u64, 1024, 64 * MIB),
            ("max_output_bytes", self.max_output_bytes, self.max_line_bytes as u64, 1024 * 1024 * MIB),
        ];
        let wrong = ranges.iter().filter(|(_, got, least, most)| !(least..=most).contains(&got));
        wrong
            .map(|(setting, got, least, most)| {
                ConfigError::new(*setting, format!("got {got}, expected {least} to {most}"))
            })
            .collect()
    }
}

/// Returns the value, or adds what is wrong to `problems`.
fn noted<T>(result: Result<T, Vec<SettingError>>, problems: &mut Vec<ConfigError>) -> Option<T> {
    let noted = |found: Vec<SettingError>| {
        problems.extend(found.into_iter().map(|error| ConfigError::new(error.setting, error.problem)));
    };
    result.map_err(noted).ok()
}

fn prepare_workspace_dir(dir: &Path) -> Result<PathBuf, ConfigError> {
    let problem =
        |error| format!("got \"{}\", expected a folder to put sessions' files in: {error}", dir.display());
    std::path::absolute(dir)
        .and_then(|dir| fs::create_dir_all(&dir).map(|()| dir))
        .map_err(|error| ConfigError::new("WORKSPACE_DIR", problem(error)))
}

#[cfg(test)]
mod tests {
    use process::Reach;

    use super::*;

    fn refused(config: CommandConfig) -> ConfigError {
        let dir = tempfile::tempdir().unwrap();
        match config.check(dir.path()) {
            Ok(_) => panic!("accepted"),
            Err(mut errors) => {
                assert_eq!(errors.len(), 1, "{errors:?}");
                errors.remove(0)
            }
        }
    }

    #[test]
    fn all_that_is_wrong_is_reported_at_once() {
        let mut config = CommandConfig::new(["/no/such/agent", "Cargo.toml", "src/lib.rs"]);
        (config.timeout_ms, config.stop_grace_ms) = (0, 600_001);
        config.env_allow = vec!["A".to_owned(), "DATABASE_URL".to_owned(), "B=C".to_owned()];
        let said = |config: &CommandConfig| {
            let dir = tempfile::tempdir().unwrap();
            let errors = config.clone().check(dir.path()).err().expect("refused");
            errors.into_iter().map(|error| error.setting).collect::<Vec<_>>()
        };
        let others =
            ["timeout_ms", "stop_grace_ms", "env_allow[1]", "env_allow[2]", "command[1]", "command[2]"];
        assert_eq!(said(&config), others);
        config.env_allow.clear();
        assert_eq!(said(&config), ["timeout_ms", "stop_grace_ms", "command[0]", "command[1]", "command[2]"]);
    }

    #[test]
    fn a_missing_program_is_named_with_where_it_was_looked_for() {
        let error = refused(CommandConfig::new(["no-such-agent"]));
        assert_eq!(error.setting, "command[0]");
        assert!(error.problem.starts_with("got \"no-such-agent\", expected a program in PATH (/"), "{error}");
        let error = refused(CommandConfig::new(["/no/such/agent"]));
        assert!(error.to_string().contains("No such file"), "{error}");
        let error = refused(CommandConfig::new(["./Cargo.toml"]));
        assert!(error.to_string().contains("chmod +x"), "{error}");
        assert_eq!(refused(CommandConfig::default()).setting, "command");
    }

    #[test]
    fn an_argument_that_only_the_worker_would_find_is_refused_with_the_right_path() {
        let error = refused(CommandConfig::new(["python3", "Cargo.toml"]));
        assert_eq!(error.setting, "command[1]");
        assert!(error.problem.contains(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")), "{error}");
    }

    #[test]
    fn paths_of_a_sandbox_exist_and_are_named_only_where_files_are_bounded() {
        let of = |files, read: &str| {
            let sandbox = SandboxConfig { files, read: vec![read.into()], ..SandboxConfig::default() };
            refused(CommandConfig { sandbox, ..CommandConfig::new(["true"]) })
        };
        let error = of(Reach::Workspace, "/no/such/path");
        assert_eq!(
            error.to_string(),
            "sandbox.read[0]: got \"/no/such/path\", expected the absolute path of something that exists"
        );
        assert!(of(Reach::Workspace, "Cargo.toml").problem.contains("absolute"));
        assert!(of(Reach::All, "/usr").problem.contains("files = \"workspace\""));
    }

    #[test]
    fn ranges_and_names_are_checked() {
        let base = || CommandConfig::new(["true"]);
        for (setting, config) in [
            ("timeout_ms", CommandConfig { timeout_ms: 0, ..base() }),
            ("idle_timeout_ms", CommandConfig { idle_timeout_ms: u64::MAX, ..base() }),
            ("stop_grace_ms", CommandConfig { stop_grace_ms: 600_001, ..base() }),
            ("memory_limit_mb", CommandConfig { memory_limit_mb: Some(1), ..base() }),
            ("max_line_bytes", CommandConfig { max_line_bytes: 10, ..base() }),
            ("max_output_bytes", CommandConfig { max_output_bytes: 10, ..base() }),
            ("env_allow[0]", CommandConfig { env_allow: vec!["A=B".to_owned()], ..base() }),
            (
                "env.HARNESS_EPOCH",
                CommandConfig { env: [("HARNESS_EPOCH".into(), "9".into())].into(), ..base() },
            ),
            ("env", CommandConfig { env: [("A".into(), "\0".into())].into(), ..base() }),
        ] {
            assert_eq!(refused(config).setting, setting);
        }
    }

    #[test]
    fn fixed_values_never_print() {
        let mut config = CommandConfig::new(["true"]);
        config.env.insert("API_KEY".into(), "hunter2".into());
        let text = format!("{config:?}");
        assert!(text.contains("API_KEY") && !text.contains("hunter2"), "{text}");
    }
}
