//! A command as a tool: settings that were checked, and one call. The input is its stdin, its stdout is the result.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use process::{Entry, Exit, Group, Limits, Program, Sandbox, SettingError, Stderr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::config::{CommandConfig, FILE_MB};
use crate::last_words;
use crate::output::Collected;
use crate::ranges;
use crate::schema::Schema;
use crate::text;
use crate::tool::{Call, CallError, Ended, Output, Tool};
use crate::toolbox::Place;
use crate::workspace::Workspace;

/// How long to wait for the rest of stdout once the program has ended and its group is killed: a process that left the
/// group may hold the pipe.
const DRAIN: Duration = Duration::from_millis(500);
/// The most that a command may write.
const FLOOD_BYTES: u64 = 64 * 1024 * 1024;

/// A command that was checked.
pub struct Command {
    program: Program,
    sandbox: Option<Sandbox>,
    timeout: Duration,
    stop_grace: Duration,
    max_output_bytes: usize,
    limits: Limits,
}

impl CommandConfig {
    /// Checks the settings of the command of this name. The error lists everything that is wrong.
    pub(crate) fn check(
        self,
        name: &str,
        sandbox: &process::SandboxConfig,
    ) -> Result<(Tool, Schema, Command), Vec<SettingError>> {
        let mut problems = ranges::wrong(&[
            ("timeout_ms", self.timeout_ms, 1, ranges::DAY_MS),
            ("stop_grace_ms", self.stop_grace_ms, 0, 60_000),
            ("max_output_bytes", self.max_output_bytes as u64, ranges::LEAST_OUTPUT, ranges::MOST_OUTPUT),
            ("memory_limit_mb", self.memory_limit_mb.unwrap_or(16), 16, ranges::MOST_MEMORY_MB),
            ("max_file_mb", self.max_file_mb.unwrap_or(FILE_MB), 1, ranges::MOST_FILE_MB),
        ]);
        if self.description.trim().is_empty() {
            let problem = "missing, expected what the tool does, for the model";
            problems.push(SettingError::new("description", problem));
        } else if self.description.contains('\0') {
            problems.push(SettingError::new("description", "got a NUL character, expected text without one"));
        }
        let schema = schema(self.input_schema).map_err(|problem| {
            problems.push(SettingError::new("input_schema", problem));
        });
        let program = Program::find(&self.command, &self.env_allow, &self.env);
        let program = program.map_err(|found| problems.extend(found)).ok();
        let named = program.iter().flat_map(Program::named);
        let sandbox = sandbox.clone().check(named).map_err(|found| problems.extend(found));
        let (Ok(schema), Some(program), Ok(sandbox), true) = (schema, program, sandbox, problems.is_empty())
        else {
            return Err(problems);
        };
        let tool = Tool {
            name: name.to_owned(),
            description: self.description,
            input_schema: schema.json().clone(),
            repeat: self.repeat,
            side_by_side: self.side_by_side,
            approve: self.approve,
        };
        let command = Command {
            program,
            sandbox,
            timeout: Duration::from_millis(self.timeout_ms),
            stop_grace: Duration::from_millis(self.stop_grace_ms),
            max_output_bytes: self.max_output_bytes,
            limits: ranges::limits(self.memory_limit_mb, self.max_file_mb),
        };
        Ok((tool, schema, command))
    }
}

/// Reads a schema: a table, or the path of a file.
fn schema(given: Option<serde_json::Value>) -> Result<Schema, String> {
    let schema = match given {
        None => Schema::nothing(),
        Some(serde_json::Value::String(path)) => {
            let wrong = |problem: String| format!("{path}: {problem}, expected a file with a JSON schema");
            let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?
        }
        Some(schema) => schema,
    };
    Schema::new(&schema)
}

/// How a program's run ended.
enum End {
    /// It ended, or closed its stdout and then ended.
    Exited,
    Flooded,
    TimedOut,
    Stopped,
}

impl Command {
    /// Runs it once.
    pub async fn call(
        &self,
        call: &Call<'_>,
        place: &Place,
        workspace: &Workspace,
        stop: impl Future<Output = ()>,
    ) -> Result<Output, CallError> {
        let mut group = match self.start(call, place).await {
            Ok(group) => group,
            Err(error) if is_shortage(&error, self.limits) => {
                return Err(CallError::Shortage(format!("a tool cannot be started: {error}")));
            }
            Err(error) => {
                return Ok(Output::failed(Ended::Broken, format!("The tool cannot be started: {error}.")));
            }
        };
        let (Some(stdin), Some(mut stdout), Some(stderr)) = group.take_pipes() else {
            return Ok(Output::failed(Ended::Broken, "The tool cannot be started: it has no pipes."));
        };
        let name = call.name.to_owned();
        let stderr = Stderr::keep(
            stderr,
            last_words::LINES,
            last_words::LINE_BYTES,
            move |line| tracing::info!(target: "harness::tools::stderr", tool = name, "{line}"),
        );
        let input = if call.input.trim().is_empty() { "{}" } else { call.input };
        let _input = give(stdin, input.as_bytes().to_vec());
        let kept = (workspace, &*place.redaction);
        let mut output = Collected::new(kept, call.key.as_str().to_owned(), self.max_output_bytes);
        let end = tokio::select! {
            end = until_exit(&group, &mut stdout, &mut output) => end,
            () = sleep(self.timeout) => End::TimedOut,
            () = stop => End::Stopped,
        };
        if matches!(end, End::TimedOut | End::Stopped) {
            group.terminate();
            let discard = async { while matches!(read(&mut stdout, &mut [0; 8192]).await, 1..) {} };
            let ended = async { tokio::join!(group.exited(), discard) };
            let _ = timeout(self.stop_grace, ended).await;
        }
        let exit = group.end().await;
        if let End::Stopped = end {
            return Err(CallError::Stopped);
        }
        let stderr = last_words::shown(&stderr.tail().await, &place.redaction, self.max_output_bytes / 2);
        Ok(self.outcome(end, exit, output, &stderr).await)
    }

    async fn start(&self, call: &Call<'_>, place: &Place) -> io::Result<Group> {
        let mut process = process(&self.program, self.sandbox.as_ref(), &place.workspace);
        process.envs(place.env.iter().map(|(name, value)| (name, value)));
        process.env("HARNESS_WORKSPACE", &place.workspace).env("HARNESS_CALL_KEY", call.key.as_str());
        let entry = enter(self.sandbox.as_ref(), &place.workspace, place.port)?;
        process::spawn(process, self.limits, entry).await
    }

    async fn outcome(&self, end: End, exit: Exit, output: Collected<'_>, stderr: &str) -> Output {
        let limit = self.max_output_bytes;
        let (ended, said) = match (end, exit.status) {
            (End::TimedOut | End::Stopped, _) => {
                let said = format!(
                    "The tool took longer than {} ms and was killed. It may have taken effect.",
                    self.timeout.as_millis()
                );
                (Ended::TimedOut, said)
            }
            (End::Flooded, _) => {
                let said = format!(
                    "The tool wrote more than {FLOOD_BYTES} bytes and was killed. It may have taken effect."
                );
                (Ended::Failed, said)
            }
            (End::Exited, Some(status)) if status.success() => {
                let text = output.finish(limit).await;
                return Output::done(if text.is_empty() { "(no output)".to_owned() } else { text });
            }
            (End::Exited, Some(status)) => (Ended::Failed, format!("The tool failed: {status}.")),
            (End::Exited, None) => (Ended::Broken, "The tool's end cannot be seen.".to_owned()),
        };
        let refused = self.sandbox.as_ref().and_then(|sandbox| sandbox.may_have_refused(stderr));
        let said = match refused {
            Some(refused) if ended == Ended::Failed => format!("{said} Perhaps {refused}."),
            _ => said,
        };
        let mut said =
            if stderr.is_empty() { said } else { format!("{said}\nIts stderr ends with:\n{stderr}") };
        if output.total() > 0 {
            said.push_str("\nIts output:\n");
            let rest = output.finish(limit.saturating_sub(said.len())).await;
            said.push_str(&rest);
        }
        Output::failed(ended, text::clean_text(said.into()))
    }
}

/// Prepares a program that runs in this folder.
pub(crate) fn process(
    program: &Program,
    sandbox: Option<&Sandbox>,
    folder: &Path,
) -> tokio::process::Command {
    let mut process = tokio::process::Command::new(&program.path);
    process
        .args(&program.args)
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .envs(sandbox.filter(|sandbox| sandbox.bounds_files()).map(|_| ("TMPDIR", folder)))
        .envs(&program.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    process
}

/// Makes the sandbox of one process.
pub(crate) fn enter(
    sandbox: Option<&Sandbox>,
    folder: &Path,
    port: Option<u16>,
) -> io::Result<Option<Entry>> {
    sandbox.map(|sandbox| sandbox.enter(folder, port)).transpose()
}

/// Returns whether a failed start is the machine's fault. A lack of memory is the program's own if it has a limit.
pub(crate) fn is_shortage(error: &io::Error, limits: Limits) -> bool {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN) => true,
        Some(Errno::ENOMEM) => limits.memory_mb.is_none(),
        _ => false,
    }
}

/// Reads until the program has ended.
async fn until_exit(group: &Group, stdout: &mut ChildStdout, output: &mut Collected<'_>) -> End {
    let exited = async {
        group.exited().await;
        // What it left running holds the pipe, and would hold up the result.
        group.kill();
    };
    let mut exited = std::pin::pin!(exited);
    let mut piece = vec![0; 64 * 1024];
    let mut reading = std::pin::pin!(async {
        loop {
            match read(stdout, &mut piece).await {
                0 => return End::Exited,
                got => output.push(&piece[..got]).await,
            }
            if output.total() > FLOOD_BYTES {
                return End::Flooded;
            }
        }
    });
    tokio::select! {
        end = &mut reading => {
            if matches!(end, End::Exited) {
                exited.await;
            }
            end
        }
        () = &mut exited => timeout(DRAIN, reading).await.unwrap_or(End::Exited),
    }
}

/// Returns how many bytes came; none at the end.
async fn read(stdout: &mut ChildStdout, into: &mut [u8]) -> usize {
    stdout.read(into).await.unwrap_or(0)
}

/// Writes the input, and closes stdin. A program need not read it.
fn give(mut stdin: ChildStdin, input: Vec<u8>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    }))
}
