//! What an agent may call, put together: its checked settings, and what one attempt makes of them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join_all;
use process::SettingError;
use rustls::ClientConfig;

use crate::command::Command;
use crate::config::{Scope, ToolsConfig};
use crate::files::FileTool;
use crate::mcp::{Offer, Offered, Server, ServerError, ServerSettings, difference, offered};
use crate::ranges::{self, LEAST_OUTPUT, MOST_OUTPUT};
use crate::redaction::Redaction;
use crate::schema::Schema;
use crate::text;
use crate::tool::{Call, CallError, Ended, Output, Tool, is_tool_name};
use crate::workspace::Workspace;

/// The longest name of a server: it stands before the names of its tools.
const SERVER_NAME: usize = 32;
/// How much is said of a server that cannot be used.
const SAID_BYTES: usize = 2_000;

/// What tools need of this machine.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// How servers over HTTPS are reached.
    pub tls: &'a ClientConfig,
    /// Reads the worker's variable of this name, for the settings that name one.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

/// The tools of an agent, checked. It belongs to a worker, and serves all its attempts.
pub struct Toolset {
    known: BTreeMap<String, Arc<Known>>,
    servers: Vec<Kept>,
}

/// A server that lives as long as the worker, or the settings of one that lives with its attempt.
enum Kept {
    Shared(Arc<Server>),
    PerAttempt(Arc<ServerSettings>),
}

/// Where an attempt's tools run.
#[derive(Clone, Debug)]
pub struct Place {
    /// The session's folder, which exists.
    pub workspace: PathBuf,
    /// Variables that each program gets besides its own, such as `HARNESS_JOB_ID`.
    pub env: Vec<(OsString, OsString)>,
    /// The port of the worker's gateway for model calls, which a sandbox with `network = "gateway"` allows.
    pub port: Option<u16>,
    /// Whether an earlier attempt may have used its tools already.
    pub resumed: bool,
    /// What is taken out of everything that tools say: outputs, problems, and what servers say of themselves.
    pub redaction: Arc<Redaction>,
}

/// The tools of one attempt.
pub struct Toolbox {
    place: Place,
    workspace: Arc<Workspace>,
    tools: Vec<Tool>,
    known: BTreeMap<String, Arc<Known>>,
    servers: Vec<Used>,
}

/// A server, and what the attempt has been told of it.
struct Used {
    server: Arc<Server>,
    is_shared: bool,
    told: Mutex<Told>,
}

struct Told {
    starts: u64,
    offer: Offer,
    /// Whether to say that an earlier attempt had another one.
    is_new: bool,
}

/// A tool, and what calls it.
pub(crate) struct Known {
    pub tool: Tool,
    pub schema: Schema,
    pub does: Does,
}

/// What does the work of a tool.
pub(crate) enum Does {
    Command(Box<Command>),
    File(FileTool, usize),
    Server { server: Arc<Server>, own_name: String },
}

/// The tools of an attempt cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The workspace cannot be used.
    #[error("the workspace cannot be opened: {0}")]
    Workspace(#[source] io::Error),
    /// The machine lacks what it takes to start a program, such as free processes.
    #[error("{0}")]
    Shortage(String),
    /// A server could not be started, or does not answer. It may later.
    #[error("the MCP server {server} cannot be used: {problem}")]
    Server {
        /// Its name in the agent's table.
        server: String,
        /// What happened.
        problem: String,
    },
}

/// What a check has found of a server.
#[derive(Debug)]
pub struct ServerCheck {
    /// Its name in the agent's table.
    pub server: String,
    /// The tools that an agent could call, and what is left out and why; or why the server cannot be used.
    pub found: Result<(Vec<Tool>, Vec<String>), String>,
}

impl ToolsConfig {
    /// Checks the settings against this machine. Nothing is started. The error lists everything that is wrong.
    pub fn build(self, machine: &Machine<'_>) -> Result<Toolset, Vec<SettingError>> {
        let mut problems = Vec::new();
        let mut known = BTreeMap::new();
        for (name, config) in self.tools {
            let table = format!("tools.{name}");
            if !is_tool_name(&name) {
                let problem = "expected a name of 1 to 64 letters, digits, _ and -";
                problems.push(SettingError::new(&table, problem));
            }
            match config.check(&name, &self.sandbox) {
                Ok((tool, schema, command)) => {
                    let does = Does::Command(Box::new(command));
                    known.insert(name, Arc::new(Known { tool, schema, does }));
                }
                Err(found) => problems.extend(found.into_iter().map(|error| error.under(&table))),
            }
        }
        if let Some(files) = self.files {
            let most = ("max_output_bytes", files.max_output_bytes as u64, LEAST_OUTPUT, MOST_OUTPUT);
            problems.extend(ranges::wrong(&[most]).into_iter().map(|error| error.under("files")));
            for (tool, schema, own) in FileTool::of(&files) {
                let name = tool.name.clone();
                let does = Does::File(own, files.max_output_bytes);
                if known.insert(name.clone(), Arc::new(Known { tool, schema, does })).is_some() {
                    let problem = "a tool for files has this name, expected another";
                    problems.push(SettingError::new(format!("tools.{name}"), problem));
                }
            }
        }
        let mut servers = Vec::new();
        for (name, config) in self.mcp {
            let table = format!("mcp.{name}");
            if !is_tool_name(&name) || name.len() > SERVER_NAME {
                let problem = format!("expected a name of 1 to {SERVER_NAME} letters, digits, _ and -");
                problems.push(SettingError::new(&table, problem));
            }
            match config.check(&name, &self.sandbox, machine) {
                Ok(settings) if settings.scope == Scope::Worker => {
                    servers.push(Kept::Shared(Arc::new(Server::new(Arc::new(settings)))));
                }
                Ok(settings) => servers.push(Kept::PerAttempt(Arc::new(settings))),
                Err(found) => problems.extend(found.into_iter().map(|error| error.under(&table))),
            }
        }
        if problems.is_empty() { Ok(Toolset { known, servers }) } else { Err(problems) }
    }
}

impl Toolset {
    /// Returns the tools that need no server, sorted by name.
    pub fn own_tools(&self) -> Vec<Tool> {
        self.known.values().map(|known| known.tool.clone()).collect()
    }

    /// Returns the names of the servers.
    pub fn server_names(&self) -> impl Iterator<Item = &str> {
        self.servers.iter().map(|kept| match kept {
            Kept::Shared(server) => server.settings.name.as_str(),
            Kept::PerAttempt(settings) => settings.name.as_str(),
        })
    }

    /// Tries every server: starts it in this place, lists what it offers, and ends it.
    pub async fn check(&self, place: &Place) -> Vec<ServerCheck> {
        let servers: Vec<(Arc<Server>, bool)> = self.servers.iter().map(Kept::server).collect();
        let offers = join_all(servers.iter().map(|(server, _)| server.tools(place))).await;
        let (mut known, mut checks) = (self.known.clone(), Vec::new());
        for ((server, _), offer) in servers.iter().zip(offers) {
            let before = known.clone();
            let found = offer.map(|offer| {
                let left_out = add(&mut known, server, &offer, &place.redaction);
                let new = known.iter().filter(|(name, _)| !before.contains_key(*name));
                (new.map(|(_, known)| known.tool.clone()).collect(), left_out)
            });
            let found = found.map_err(|error| match error {
                ServerError::Shortage(problem) | ServerError::Failed(problem) => {
                    place.redaction.clean(&problem)
                }
            });
            checks.push(ServerCheck { server: server.settings.name.clone(), found });
        }
        join_all(servers.iter().map(|(server, _)| server.close())).await;
        checks
    }

    /// Ends the servers that live as long as the worker.
    pub async fn close(&self) {
        let shared = self.servers.iter().filter_map(|kept| match kept {
            Kept::Shared(server) => Some(server.close()),
            Kept::PerAttempt(_) => None,
        });
        join_all(shared).await;
    }
}

impl Toolbox {
    /// Makes the tools of an attempt ready: starts its servers, all at once.
    pub async fn open(toolset: &Toolset, place: &Place) -> Result<Toolbox, OpenError> {
        let workspace = Workspace::open(&place.workspace).map_err(OpenError::Workspace)?;
        let mut known = toolset.known.clone();
        let mut left_out: Vec<String> = Vec::new();
        let servers: Vec<(Arc<Server>, bool)> = toolset.servers.iter().map(Kept::server).collect();
        let offers = join_all(servers.iter().map(|(server, _)| server.tools(place))).await;
        let mut used = Vec::new();
        for ((server, is_shared), offer) in servers.into_iter().zip(offers) {
            let name = server.settings.name.clone();
            let offer = offer.map_err(|error| match error {
                ServerError::Shortage(problem) => {
                    OpenError::Shortage(format!("MCP server {name}: {problem}"))
                }
                ServerError::Failed(problem) => {
                    let problem = place.redaction.clipped(&problem, SAID_BYTES);
                    OpenError::Server { server: name.clone(), problem }
                }
            })?;
            let problems = add(&mut known, &server, &offer, &place.redaction);
            left_out.extend(problems.into_iter().map(|problem| format!("MCP server {name}: {problem}")));
            let told = Told { starts: server.starts(), offer, is_new: place.resumed && !is_shared };
            let told = Mutex::new(told);
            used.push(Used { server, is_shared, told });
        }
        for problem in left_out {
            tracing::warn!("{problem}");
        }
        let tools = known.values().map(|known| known.tool.clone()).collect();
        let (place, workspace) = (place.clone(), Arc::new(workspace));
        Ok(Toolbox { place, workspace, tools, known, servers: used })
    }

    /// Returns the tools, sorted by name. They stay the same as long as the attempt lasts.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Calls a tool. A bad call is answered as an error for the model. A call ends early when `stop` resolves, after the
    /// time that the tool has to end; if the future is dropped, what it started is killed at once.
    pub async fn call(&self, call: &Call<'_>, stop: impl Future<Output = ()>) -> Result<Output, CallError> {
        let Some(known) = self.known.get(call.name) else {
            return Ok(self.unknown(call.name));
        };
        let fields = match known.schema.read(call.input, &self.place.redaction) {
            Ok(fields) => fields,
            Err(problem) => return Ok(Output::failed(Ended::BadInput, problem)),
        };
        match &known.does {
            Does::Command(command) => command.call(call, &self.place, &self.workspace, stop).await,
            Does::File(tool, most) => {
                let place = (&self.workspace, &self.place.redaction);
                tool.call(call, fields, place, *most, stop).await
            }
            Does::Server { server, own_name } => {
                server.call((own_name, fields), call, &self.place, &self.workspace, stop).await
            }
        }
    }

    fn unknown(&self, name: &str) -> Output {
        let names: Vec<&str> = self.known.keys().map(String::as_str).collect();
        let name = self.place.redaction.clipped(&text::clean_text(name.into()), 100);
        let known = text::clipped(&names.join(", "), 2_000);
        Output::failed(Ended::Unknown, format!("There is no tool \"{name}\". The tools are: {known}."))
    }

    /// Returns what the model should know: which servers have started anew, and with them lost what they held, and which
    /// say that their tools have changed. Each is said once.
    pub fn notices(&self) -> Vec<String> {
        self.servers.iter().flat_map(|used| used.notices(&self.place.redaction)).collect()
    }

    /// Ends the servers of the attempt.
    pub async fn close(self) {
        let own = self.servers.iter().filter(|used| !used.is_shared);
        join_all(own.map(|used| used.server.close())).await;
    }
}

/// Adds what a server offers to the tools. Returns what is left out, and why.
fn add(
    known: &mut BTreeMap<String, Arc<Known>>,
    server: &Arc<Server>,
    offer: &Offer,
    redaction: &Redaction,
) -> Vec<String> {
    let (offered, mut left_out) = offered(&server.settings, offer, redaction);
    for Offered { tool, schema, own_name } in offered {
        let does = Does::Server { server: server.clone(), own_name };
        match known.entry(tool.name.clone()) {
            Entry::Vacant(free) => {
                free.insert(Arc::new(Known { tool, schema, does }));
            }
            Entry::Occupied(_) => {
                left_out.push(format!("its tool {} is left out: another has this name", tool.name));
            }
        }
    }
    left_out
}

impl Kept {
    /// Returns the server of an attempt, and whether other attempts have it as well.
    fn server(&self) -> (Arc<Server>, bool) {
        match self {
            Kept::Shared(server) => (server.clone(), true),
            Kept::PerAttempt(settings) => (Arc::new(Server::new(settings.clone())), false),
        }
    }
}

impl Used {
    fn notices(&self, redaction: &Redaction) -> Vec<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (starts, offer) = (self.server.starts(), self.server.latest());
        let name = &self.server.settings.name;
        let mut notices = Vec::new();
        if told.is_new || starts > told.starts {
            notices.push(format!(
                "The MCP server {name} has started anew. What it held in memory (sessions, open pages, variables) is gone."
            ));
        }
        if let Some(changed) = difference(&self.server.settings, (&told.offer, &offer), redaction) {
            notices.push(format!(
                "The MCP server {name} has other tools now: {changed}. The tools here stay as they are, and calls of some may fail."
            ));
        }
        *told = Told { starts, offer, is_new: false };
        notices
    }
}
