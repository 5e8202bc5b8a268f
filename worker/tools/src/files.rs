//! The tools for files of the workspace: read, write, edit, list, find, search. No path, link or device leads out of it.

mod read;
mod write;
mod walk;
mod search;

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cap_std::fs::{File, OpenOptions, OpenOptionsExt};
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::config::FilesConfig;
use crate::output::Collected;
use crate::redaction::Redaction;
use crate::schema::Schema;
use crate::text;
use crate::tool::{Call, CallError, Ended, Output, Repeat, Tool};
use crate::workspace::Workspace;

/// The longest that one call may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A tool for files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileTool {
    /// Shows a file's text.
    Read,
    /// Makes or replaces a file.
    Write,
    /// Replaces a text in a file.
    Edit,
    /// Lists a folder.
    List,
    /// Finds files by name.
    Find,
    /// Finds lines by pattern.
    Search,
}

/// What a call may still do.
pub(crate) struct Bounds {
    until: Instant,
    stopped: AtomicBool,
    /// The most bytes of a text that is shown.
    shown: usize,
    /// What is taken out of what is shown.
    redaction: Arc<Redaction>,
}

impl Bounds {
    /// Fails when the time is over, or the call was stopped.
    pub fn check(&self) -> Result<(), String> {
        if self.stopped.load(Ordering::Relaxed) || Instant::now() > self.until {
            return Err("It took too long; look at less at a time.".to_owned());
        }
        Ok(())
    }
}

impl FileTool {
    const ALL: [FileTool; 6] =
        [FileTool::Read, FileTool::Write, FileTool::Edit, FileTool::List, FileTool::Find, FileTool::Search];

    fn changes(self) -> bool {
        matches!(self, FileTool::Write | FileTool::Edit)
    }

    fn described(self) -> (&'static str, &'static str, Value) {
        let path = |of: &str| json!({"type": "string", "description": format!("Path of the {of}, from the workspace.")});
        let within =
            json!({"type": "string", "description": "Folder to look in; the workspace unless given."});
        match self {
            FileTool::Read => (
                "read_file",
                "Shows the text of a file of the workspace. A long one is cut; read on with `offset`.",
                json!({"required": ["path"], "properties": {
                    "path": path("file"),
                    "offset": {"type": "integer", "minimum": 1, "description": "The first line to show."},
                    "limit": {"type": "integer", "minimum": 1, "description": "How many lines to show."},
                }}),
            ),
            FileTool::Write => (
                "write_file",
                "Makes a file of the workspace with this text, or replaces all of it. Missing folders are made.",
                json!({"required": ["path", "text"], "properties": {
                    "path": path("file"),
                    "text": {"type": "string"},
                }}),
            ),
            FileTool::Edit => (
                "edit_file",
                "Replaces a text in a file of the workspace. `old` must be in it exactly once, unless `all` is true.",
                json!({"required": ["path", "old", "new"], "properties": {
                    "path": path("file"),
                    "old": {"type": "string", "minLength": 1, "description": "The exact text, with its spaces and line ends."},
                    "new": {"type": "string"},
                    "all": {"type": "boolean", "description": "Whether each one is replaced."},
                }}),
            ),
            FileTool::List => (
                "list_files",
                "Lists a folder of the workspace. Folders end in /, links in @, and files show their size.",
                json!({"properties": {"path": within}}),
            ),
            FileTool::Find => (
                "find_files",
                "Finds files of the workspace whose paths match a glob such as *.rs or src/**/test_*. Does not look into .git.",
                json!({"required": ["glob"], "properties": {
                    "glob": {"type": "string", "minLength": 1},
                    "path": within,
                }}),
            ),
            FileTool::Search => (
                "search_files",
                "Finds the lines of text files of the workspace that match a regular expression. Does not look into .git.",
                json!({"required": ["pattern"], "properties": {
                    "pattern": {"type": "string", "minLength": 1, "description": "As of ripgrep."},
                    "glob": {"type": "string", "minLength": 1, "description": "Only in files whose paths match."},
                    "ignore_case": {"type": "boolean"},
                    "path": within,
                }}),
            ),
        }
    }

    /// Returns the tools that these settings ask for.
    pub fn of(config: &FilesConfig) -> Vec<(Tool, Schema, FileTool)> {
        let wanted = FileTool::ALL.into_iter().filter(|tool| config.write || !tool.changes());
        let made = |tool: FileTool| {
            let (name, description, mut schema) = tool.described();
            schema["type"] = "object".into();
            schema["additionalProperties"] = false.into();
            let schema = Schema::new(&schema).expect("the schemas of the file tools are valid");
            let described = Tool {
                name: name.to_owned(),
                description: description.to_owned(),
                input_schema: schema.json().clone(),
                // The same text written again changes nothing, but a second edit may find its text in the first one's.
                repeat: if tool == FileTool::Edit { Repeat::Unsafe } else { Repeat::Safe },
                side_by_side: !tool.changes(),
                approve: config.approve && tool.changes(),
            };
            (described, schema, tool)
        };
        wanted.map(made).collect()
    }

    /// Does it once.
    pub async fn call(
        self,
        call: &Call<'_>,
        fields: Map<String, Value>,
        (workspace, redaction): (&Arc<Workspace>, &Arc<Redaction>),
        max_output_bytes: usize,
        stop: impl Future<Output = ()>,
    ) -> Result<Output, CallError> {
        let bounds = Arc::new(Bounds {
            until: Instant::now() + TIMEOUT,
            stopped: AtomicBool::new(false),
            shown: max_output_bytes,
            redaction: redaction.clone(),
        });
        let _stop = StopOnDrop(bounds.clone());
        let (folder, own) = (workspace.clone(), bounds.clone());
        let work = tokio::task::spawn_blocking(move || self.run(&folder, fields, &own));
        let done = tokio::select! {
            done = work => done.unwrap_or_else(|_| Err("The tool broke.".to_owned())),
            // What hangs in a file system cannot be stopped; it changes nothing any more.
            () = tokio::time::sleep(TIMEOUT) => return Ok(Output::failed(Ended::TimedOut, "It took too long.")),
            () = stop => return Err(CallError::Stopped),
        };
        let text = match done {
            Ok(text) => text,
            Err(problem) => {
                let problem = text::clean_text(redaction.clipped(&problem, 1_000).into());
                return Ok(Output::failed(Ended::Failed, problem));
            }
        };
        let mut output =
            Collected::new((workspace, redaction), call.key.as_str().to_owned(), max_output_bytes);
        output.push(text.as_bytes()).await;
        Ok(Output::done(output.finish(max_output_bytes).await))
    }

    fn run(
        self,
        workspace: &Workspace,
        fields: Map<String, Value>,
        bounds: &Bounds,
    ) -> Result<String, String> {
        match self {
            FileTool::Read => read::read(workspace, &input(fields)?, bounds),
            FileTool::Write => write::write(workspace, &input(fields)?, bounds),
            FileTool::Edit => write::edit(workspace, &input(fields)?, bounds),
            FileTool::List => walk::list(workspace, &input(fields)?, bounds),
            FileTool::Find => walk::find(workspace, &input(fields)?, bounds),
            FileTool::Search => search::search(workspace, &input(fields)?, bounds),
        }
    }
}

/// Says that nothing more is to be done when the call is dropped.
struct StopOnDrop(Arc<Bounds>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

fn input<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| format!("The input cannot be used: {error}."))
}

/// Returns the path from the workspace. The workspace's own path may stand before it.
fn relative(workspace: &Workspace, path: &str) -> Result<PathBuf, String> {
    let given = Path::new(path);
    let path_within = match given.strip_prefix(workspace.path()) {
        Ok(rest) => rest,
        Err(_) if given.is_absolute() => {
            return Err(format!("{path} is not in the workspace; give a path from the workspace."));
        }
        Err(_) => given,
    };
    let plain =
        path_within.components().any(|step| matches!(step, Component::Normal(_) | Component::ParentDir));
    Ok(if plain { path_within.to_owned() } else { PathBuf::from(".") })
}

/// Says why a file or folder cannot be used.
fn refused(path: &str, error: &io::Error) -> String {
    match error.kind() {
        // cap-std's own refusal has no number of the system's.
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => {
            format!("{path} leads out of the workspace.")
        }
        io::ErrorKind::NotFound => format!("{path} does not exist."),
        _ => format!("{path}: {error}."),
    }
}

/// Opens a file to read. What is no file is refused without being waited for.
fn open(workspace: &Workspace, path: &str) -> Result<File, String> {
    let within = relative(workspace, path)?;
    let about = workspace.dir().metadata(&within).map_err(|error| refused(path, &error))?;
    if about.is_dir() {
        return Err(format!("{path} is a folder."));
    }
    let no_file = || format!("{path} is no file, but a pipe, a socket or a device.");
    if !about.is_file() {
        return Err(no_file());
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_NONBLOCK | O_NOCTTY);
    let file = workspace.dir().open_with(&within, &options).map_err(|error| refused(path, &error))?;
    // It may have been replaced in between.
    let about = file.metadata().map_err(|error| refused(path, &error))?;
    if about.is_file() { Ok(file) } else { Err(no_file()) }
}
