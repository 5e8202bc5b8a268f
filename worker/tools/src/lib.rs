//! What an agent may call: commands, files of the workspace, and MCP servers.
//!
//! An agent's table names its tools ([`ToolsConfig`]); [`ToolsConfig::build`] checks them against the machine
//! ([`Toolset`]), and [`Toolbox::open`] makes them ready for one attempt at a job. This crate knows processes, files and
//! MCP. It has never heard of models, harnesses, sessions, RabbitMQ or SQL: who calls, and what an output is for, is not
//! its business.
//!
//! # A command
//!
//! ```toml
//! [agents.coder.tools.test]
//! command = ["cargo", "test"]
//! description = "Runs the tests whose names hold the filter."
//! input_schema = { type = "object", properties = { filter = { type = "string" } }, additionalProperties = false }
//! repeat = "safe"
//! timeout_ms = 600000
//! ```
//!
//! The command runs in the workspace, in a process group of its own and in the agent's sandbox. Its **stdin** is the
//! input, a JSON object that fits the schema, as the model wrote it. Its **stdout** is the result, and exit code 0 says
//! that it is one; with any other, the result is an error with the end of **stderr**. Its environment holds `PATH`,
//! `LANG`, `LC_ALL` and `TZ`, what `env_allow` and `env` name, what the attempt gives to all its programs, and
//! `HARNESS_CALL_KEY`: the same key for the same call in every attempt, by which a tool can tell that it has done it
//! already.
//!
//! When a call takes longer than `timeout_ms`, or is stopped, the group gets SIGTERM, and SIGKILL after `stop_grace_ms`.
//! Whatever it leaves running is killed when it ends. A command may write 64 MiB.
//!
//! # Files
//!
//! `files = true` gives tools for the workspace's files. They hold the workspace's open folder, and every path is resolved
//! beneath it: `..` and links that lead out are refused, and pipes, sockets and devices are not opened. A write makes a new
//! file and puts it in the old one's place. A file with several names (hard links) is not written, because no path shows
//! whether another name is outside; it is read, because who could make the link could read the file.
//!
//! # An MCP server
//!
//! is a program of ours, over its pipes and in a process group like a command's, or an address. It lives with the attempt
//! or with the worker ([`Scope`]). Every request has a timeout and is cancelled after it; a server that missed an answer is
//! asked whether it lives before it is used again, and one that has died is started anew, ever later if it dies soon. What
//! it asks of its client is declined. Its tools are those of the attempt's start, whatever it says later
//! ([`Toolbox::notices`]).
//!
//! # An output
//!
//! is valid UTF-8 without NUL: what is no character becomes U+FFFD. If it is longer than `max_output_bytes`, the model
//! gets its head and its tail, and a note that says in which file of the workspace all of it is. What no provider is to read
//! ([`Redaction`]) is taken out before it is cut, and here alone: of outputs, of problems, and of what a server says of its
//! tools. Names stay: of tools, and of the properties of their inputs.

mod ranges;
mod text;
mod redaction;
mod tool;
mod config;
mod schema;
mod workspace;
mod output;
mod last_words;
mod command;
mod files;
mod mcp;
mod toolbox;

pub use config::{CommandConfig, FilesConfig, Names, Scope, ServerConfig, ToolsConfig};
pub use process::{Kernel, SandboxConfig, SettingError, is_of_the_session, make_workspace};
pub use redaction::Redaction;
pub use schema::SchemaCheck;
pub use tool::{Call, CallError, CallKey, Content, Ended, Output, Repeat, Tool};
pub use toolbox::{Machine, OpenError, Place, ServerCheck, Toolbox, Toolset};
