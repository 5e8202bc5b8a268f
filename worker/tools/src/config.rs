//! The tables `tools`, `files`, `mcp` and `sandbox` of an agent. This module only says what they may hold.

use std::collections::BTreeMap;
use std::fmt;

use process::SandboxConfig;
use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::tool::Repeat;

const KIB: usize = 1024;
/// The most that the model is shown of an output, unless set.
pub const OUTPUT_BYTES: usize = 32 * KIB;

/// The largest file that a process may write, unless set, in MiB.
pub const FILE_MB: u64 = 10 * 1024;

/// What an agent may call.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolsConfig {
    /// Commands, by name.
    pub tools: BTreeMap<String, CommandConfig>,
    /// The tools for files of the workspace: `true`, or a table of their settings.
    #[serde(deserialize_with = "files")]
    pub files: Option<FilesConfig>,
    /// MCP servers, by name.
    pub mcp: BTreeMap<String, ServerConfig>,
    /// What commands and servers may reach.
    pub sandbox: SandboxConfig,
}

/// A command that a model may call.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments. A name without a slash is looked up in `PATH`. A relative path with a slash
    /// starts at the worker's current folder.
    pub command: Vec<String>,
    /// What it does, for the model.
    pub description: String,
    /// The JSON schema of its input, or the path of a file that holds it. Without it the tool has no input.
    pub input_schema: Option<Value>,
    /// Whether a call without a result may run again.
    pub repeat: Repeat,
    /// Whether it may run beside other calls.
    pub side_by_side: bool,
    /// Whether a person must approve each call.
    pub approve: bool,
    /// Names of variables to pass on from the worker's environment.
    pub env_allow: Vec<String>,
    /// Variables with fixed values.
    pub env: BTreeMap<String, String>,
    /// The longest that a call may take; two minutes unless set, a day at most.
    pub timeout_ms: u64,
    /// The time between SIGTERM and SIGKILL; two seconds unless set, a minute at most.
    pub stop_grace_ms: u64,
    /// The most that the model is shown of an output; 32 KiB unless set.
    pub max_output_bytes: usize,
    /// Limit on each process's address space (`RLIMIT_AS`); none unless set.
    pub memory_limit_mb: Option<u64>,
    /// The largest file that a process may write (`RLIMIT_FSIZE`); 10 GiB unless set.
    pub max_file_mb: Option<u64>,
}

impl Default for CommandConfig {
    fn default() -> Self {
        CommandConfig {
            command: Vec::new(),
            description: String::new(),
            input_schema: None,
            repeat: Repeat::default(),
            side_by_side: false,
            approve: false,
            env_allow: Vec::new(),
            env: BTreeMap::new(),
            timeout_ms: 120_000,
            stop_grace_ms: 2_000,
            max_output_bytes: OUTPUT_BYTES,
            memory_limit_mb: None,
            max_file_mb: None,
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
            .finish_non_exhaustive()
    }
}

/// The tools for files of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilesConfig {
    /// Whether files can be written and edited.
    pub write: bool,
    /// Whether a person must approve each write and edit.
    pub approve: bool,
    /// The most that the model is shown of an output; 32 KiB unless set.
    pub max_output_bytes: usize,
}

impl Default for FilesConfig {
    fn default() -> Self {
        FilesConfig { write: true, approve: false, max_output_bytes: OUTPUT_BYTES }
    }
}

/// Reads `files`: whether there are such tools, or a table of their settings.
fn files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<FilesConfig>, D::Error> {
    struct Files;

    impl<'de> Visitor<'de> for Files {
        type Value = Option<FilesConfig>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true, false or a table")
        }

        fn visit_bool<E: de::Error>(self, wanted: bool) -> Result<Self::Value, E> {
            Ok(wanted.then(FilesConfig::default))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            FilesConfig::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }

    deserializer.deserialize_any(Files)
}

/// An MCP server, whose tools a model may call: a program, or an address.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The program and its arguments, for a server that speaks over its stdin and stdout.
    pub command: Vec<String>,
    /// Where the server is, for one that speaks over HTTP (streamable HTTP).
    pub url: String,
    /// How long a server lives; with its attempt unless set.
    pub scope: Scope,
    /// The tools that a model may call, all unless set. A `*` at the end of a name stands for any rest.
    pub allow: Option<Names>,
    /// Those whose calls may run again.
    pub safe: Names,
    /// Those that may run beside other calls.
    pub side_by_side: Names,
    /// Those whose calls a person must approve.
    pub approve: Names,
    /// Names of variables to pass on from the worker's environment.
    pub env_allow: Vec<String>,
    /// Variables with fixed values.
    pub env: BTreeMap<String, String>,
    /// Whether it may call models through the worker's gateway, at the job's cost. Its variables hold a token.
    pub gateway: bool,
    /// Headers of each request, each with the name of the variable that holds its value.
    pub headers_env: BTreeMap<String, String>,
    /// The name of the variable that holds a token, for `Authorization: Bearer …`.
    pub bearer_env: Option<String>,
    /// The longest that a server may take to start and to list its tools; 30 seconds unless set, ten minutes at most.
    pub start_timeout_ms: u64,
    /// The longest that a call may take; two minutes unless set, a day at most.
    pub timeout_ms: u64,
    /// The time between SIGTERM and SIGKILL; two seconds unless set, a minute at most.
    pub stop_grace_ms: u64,
    /// The most that the model is shown of an output; 32 KiB unless set.
    pub max_output_bytes: usize,
    /// Limit on each process's address space (`RLIMIT_AS`); none unless set.
    pub memory_limit_mb: Option<u64>,
    /// The largest file that a process may write (`RLIMIT_FSIZE`); 10 GiB unless set.
    pub max_file_mb: Option<u64>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            command: Vec::new(),
            url: String::new(),
            scope: Scope::default(),
            allow: None,
            safe: Names::default(),
            side_by_side: Names::default(),
            approve: Names::default(),
            env_allow: Vec::new(),
            env: BTreeMap::new(),
            gateway: false,
            headers_env: BTreeMap::new(),
            bearer_env: None,
            start_timeout_ms: 30_000,
            timeout_ms: 120_000,
            stop_grace_ms: 2_000,
            max_output_bytes: OUTPUT_BYTES,
            memory_limit_mb: None,
            max_file_mb: None,
        }
    }
}

/// Leaves out the address, which may hold a password, and the values of `env`.
impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig")
            .field("command", &self.command)
            .field("scope", &self.scope)
            .field("allow", &self.allow)
            .field("env_allow", &self.env_allow)
            .field("env", &self.env.keys())
            .field("headers_env", &self.headers_env)
            .finish_non_exhaustive()
    }
}

/// How long a server lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// As long as one attempt at a job, whose workspace is its folder.
    #[default]
    Attempt,
    /// As long as the worker, for all its attempts: for servers that keep no state between calls.
    Worker,
}

/// Names of tools. A `*` at the end of one stands for any rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Names(pub Vec<String>);

impl Names {
    /// Returns whether one of these is the name.
    pub fn have(&self, name: &str) -> bool {
        let is = |own: &String| match own.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => own == name,
        };
        self.0.iter().any(is)
    }
}

impl ToolsConfig {
    /// The keys of an agent's table that these settings are.
    pub const KEYS: [&'static str; 4] = ["tools", "files", "mcp", "sandbox"];

    /// Returns the settings that name one of these variables, by `env`, `env_allow`, `headers_env` or `bearer_env`.
    pub fn naming(&self, variables: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        let mut look = |place: String, named: &mut dyn Iterator<Item = (String, &String)>| {
            let named = named.filter(|(_, name)| variables.contains(&name.as_str()));
            found.extend(named.map(|(setting, _)| format!("{place}.{setting}")));
        };
        for (name, tool) in &self.tools {
            look(format!("tools.{name}"), &mut allowed(&tool.env_allow).chain(fixed(&tool.env)));
        }
        for (name, server) in &self.mcp {
            let headers = server.headers_env.iter().map(|(header, of)| (format!("headers_env.{header}"), of));
            let bearer = server.bearer_env.iter().map(|of| ("bearer_env".to_owned(), of));
            let named = allowed(&server.env_allow).chain(fixed(&server.env)).chain(headers).chain(bearer);
            look(format!("mcp.{name}"), &mut { named });
        }
        found
    }

    /// Returns the variables whose values are sent to servers as keys.
    pub fn key_variables(&self) -> impl Iterator<Item = &str> {
        let of_servers =
            self.mcp.values().flat_map(|server| server.headers_env.values().chain(&server.bearer_env));
        of_servers.map(String::as_str)
    }
}

fn allowed(names: &[String]) -> impl Iterator<Item = (String, &String)> {
    names.iter().enumerate().map(|(at, name)| (format!("env_allow[{at}]"), name))
}

fn fixed(env: &BTreeMap<String, String>) -> impl Iterator<Item = (String, &String)> {
    env.keys().map(|name| (format!("env.{name}"), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ToolsConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn files_are_a_switch_or_a_table() {
        assert_eq!(read("").unwrap().files, None);
        assert_eq!(read("files = false").unwrap().files, None);
        assert_eq!(read("files = true").unwrap().files, Some(FilesConfig::default()));
        let read_only = FilesConfig { write: false, ..FilesConfig::default() };
        assert_eq!(read("files = { write = false }").unwrap().files, Some(read_only));
        for (wrong, said) in [
            ("files = 1", "true, false or a table"),
            ("files = { loud = false }", "loud"),
            ("tools.a.x = 1", "`x`"),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn names_end_in_any_rest() {
        let names = Names(vec!["read_*".to_owned(), "list".to_owned()]);
        assert!(
            names.have("read_file") && names.have("list") && !names.have("list_all") && !names.have("write")
        );
    }

    #[test]
    fn settings_that_name_a_variable_are_found_and_no_value_is_shown() {
        let config = read(
            "tools.a.env_allow = ['X', 'KEY']
tools.a.env.KEY = 'hunter2'
mcp.s.bearer_env = 'KEY'
             mcp.s.headers_env.A = 'KEY'
mcp.s.url = 'http://u:pw@h/'
mcp.s.env.A = 'hunter2'",
        )
        .unwrap();
        let expected = ["tools.a.env_allow[1]", "tools.a.env.KEY", "mcp.s.headers_env.A", "mcp.s.bearer_env"];
        assert_eq!(config.naming(&["KEY"]), expected);
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    }
}
