//! The settings that say which program is started and what its environment is, and their check against this machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// What every program gets from the worker's environment. Anything else may be one of the worker's secrets
/// (`DATABASE_URL`, `AMQP_URL`, keys) and is passed on only if the settings name it.
const ALWAYS_PASSED: [&str; 4] = ["PATH", "LANG", "LC_ALL", "TZ"];
/// What no program gets from there: the worker's secrets. The same names with `_FILE` at the end, which say where the
/// secrets are, are withheld as well.
pub const WITHHELD: [&str; 4] =
    ["DATABASE_URL", "AMQP_URL", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];

/// What is wrong with a setting, such as `command[0]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct SettingError {
    /// The setting's name, as it is in the table.
    pub setting: String,
    /// What was given, and what would be right.
    pub problem: String,
}

impl SettingError {
    /// Says what is wrong with a setting.
    pub fn new(setting: impl Into<String>, problem: impl Into<String>) -> SettingError {
        SettingError { setting: setting.into(), problem: problem.into() }
    }

    /// Places the setting in the table of this name.
    pub fn under(self, table: &str) -> SettingError {
        SettingError { setting: format!("{table}.{}", self.setting), ..self }
    }
}

/// A program that was found, its arguments and its environment.
#[derive(Clone)]
pub struct Program {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Passed and fixed variables. The values were read when the program was found, so that what a job sees does not
    /// change while the worker runs.
    pub env: BTreeMap<OsString, OsString>,
}

impl Program {
    /// Finds a program: `command` is its name and its arguments, `env_allow` names the variables that are passed on,
    /// and `env` has fixed ones, which win. The error lists everything that is wrong.
    pub fn find(
        command: &[String],
        env_allow: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<Program, Vec<SettingError>> {
        let mut problems = Vec::new();
        let env = environment(env_allow, env).map_err(|found| problems.extend(found)).ok();
        let program = program(command, env.as_ref()).map_err(|found| problems.extend(found)).ok();
        match (program, env) {
            (Some((path, args)), Some(env)) if problems.is_empty() => Ok(Program { path, args, env }),
            _ => Err(problems),
        }
    }

    /// Returns the paths that its command names: the program, and what may be files among its arguments.
    pub fn named(&self) -> impl Iterator<Item = &Path> {
        [self.path.as_path()].into_iter().chain(self.args.iter().map(Path::new))
    }
}

/// Returns the program's path and its arguments. The program is looked up only if its environment is valid, because
/// `PATH` is part of it.
fn program(
    command: &[String],
    env: Option<&BTreeMap<OsString, OsString>>,
) -> Result<(PathBuf, Vec<String>), Vec<SettingError>> {
    let (program, args) = match command.split_first() {
        Some((program, args)) if !program.is_empty() => (program, args),
        _ => {
            let problem =
                "missing, expected the program and its arguments, such as [\"python3\", \"/srv/agent.py\"]";
            return Err(vec![SettingError::new("command", problem)]);
        }
    };
    check_nul("command", command).map_err(|error| vec![error])?;
    let mut problems = misplaced_arguments(args);
    let path = env.map(|env| env.get(&OsString::from("PATH")).cloned().unwrap_or_default());
    let found = match path.map(|path| find_program(program, &path)) {
        Some(Ok(found)) => found,
        Some(Err(error)) => {
            problems.insert(0, error);
            return Err(problems);
        }
        None => return Err(problems),
    };
    if problems.is_empty() { Ok((found, args.to_vec())) } else { Err(problems) }
}

fn environment(
    env_allow: &[String],
    env: &BTreeMap<String, String>,
) -> Result<BTreeMap<OsString, OsString>, Vec<SettingError>> {
    let mut problems = Vec::new();
    let allowed = env_allow.iter().enumerate().map(|(at, name)| (format!("env_allow[{at}]"), name));
    let fixed = env.keys().map(|name| (format!("env.{name}"), name));
    for (setting, name) in allowed.chain(fixed) {
        if name.is_empty() || name.contains(['=', '\0']) {
            let problem = format!("got {name:?}, expected a name without = and NUL");
            problems.push(SettingError::new(setting, problem));
        } else if name.starts_with("HARNESS_") || name == "TRACEPARENT" {
            let problem = format!("got {name}, which is set for each job; expected another name");
            problems.push(SettingError::new(setting, problem));
        } else if setting.starts_with("env_allow[") && is_withheld(name) {
            let problem =
                format!("got {name}, a secret of the worker's; expected one of the program's own, in env");
            problems.push(SettingError::new(setting, problem));
        }
    }
    problems.extend(check_nul("env", env.values()).err());
    if !problems.is_empty() {
        return Err(problems);
    }
    let allowed = ALWAYS_PASSED.into_iter().chain(env_allow.iter().map(String::as_str));
    let passed = allowed.filter_map(|name| Some((name.into(), env::var_os(name)?)));
    let fixed = env.iter().map(|(name, value)| (name.into(), value.into()));
    Ok(passed.chain(fixed).collect())
}

/// Returns whether the variable of this name is one of the worker's own secrets, or says where one is.
pub fn is_withheld(name: &str) -> bool {
    WITHHELD.contains(&name.strip_suffix("_FILE").unwrap_or(name))
}

fn check_nul<'a>(setting: &str, texts: impl IntoIterator<Item = &'a String>) -> Result<(), SettingError> {
    if texts.into_iter().any(|text| text.contains('\0')) {
        Err(SettingError::new(setting, "got a NUL character, expected text without one"))
    } else {
        Ok(())
    }
}

/// Finds arguments that are files in the worker's own folder. A program runs in its session's folder, so
/// `["python3", "agent.py"]` would start and then not find its file. This is the most likely mistake of all, and
/// without this check it would only show in the first job.
fn misplaced_arguments(args: &[String]) -> Vec<SettingError> {
    let mut problems = Vec::new();
    for (at, arg) in args.iter().enumerate() {
        let path = Path::new(arg);
        if path.is_relative() && path.is_file() {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            let problem = format!(
                "got \"{arg}\", a file in the worker's current folder, but the program runs in its session's \
                 workspace and would not find it; expected \"{}\"",
                absolute.display()
            );
            problems.push(SettingError::new(format!("command[{}]", at + 1), problem));
        }
    }
    problems
}

/// Returns the absolute path of what `execvp` would run.
fn find_program(program: &str, path: &OsString) -> Result<PathBuf, SettingError> {
    let wrong = |problem: String| Err(SettingError::new("command[0]", problem));
    if program.contains('/') {
        let found = match std::path::absolute(program) {
            Ok(found) => found,
            Err(error) => return wrong(format!("got \"{program}\": {error}")),
        };
        return match fs::metadata(&found) {
            Err(error) => wrong(format!("got \"{}\", expected a program: {error}", found.display())),
            Ok(_) if !is_executable(&found) => wrong(format!(
                "got \"{}\", which is not an executable file; expected a program (chmod +x?)",
                found.display()
            )),
            Ok(_) => Ok(found),
        };
    }
    let found = env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate));
    match found {
        Some(found) => Ok(found),
        None => wrong(format!(
            "got \"{program}\", expected a program in PATH ({}) or its absolute path",
            path.display()
        )),
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
