//! The only list of the kinds of harnesses, and how an agent's settings become one of them. Each harness's own
//! `…Config` says which keys an agent's table may have and what they mean.

use std::path::Path;
use std::sync::Arc;

use agent::{AgentConfig, AgentTools, OfWorker};
use command::CommandConfig;
use harness::{ConfigError, Echo, EchoConfig, Harness, Scripted, ScriptedConfig};
use remote::RemoteConfig;
use rustls::ClientConfig;
use secrecy::SecretString;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tools::{ToolsConfig, Toolset};

use crate::calls::{AgentCalls, PROVIDER_KEYS};

/// What harnesses need of this machine.
pub struct Machine<'a> {
    /// Below it the folders of sessions are made.
    pub workspace_dir: &'a Path,
    /// How services over HTTPS are reached.
    pub tls: &'a ClientConfig,
}

/// Which harness an agent uses (`harness = "…"`), and its settings. Keys that the harness does not have are refused.
#[derive(Clone, Debug, PartialEq)]
pub enum HarnessConfig {
    /// Returns the input.
    Echo(EchoConfig),
    /// Plays what the input declares.
    Scripted(ScriptedConfig),
    /// Runs a program.
    Command(CommandConfig),
    /// Asks a service.
    Http(RemoteConfig),
    /// Calls models in a loop, with tools.
    Agent(Box<AgentConfig>, ToolsConfig),
}

/// A harness that was made, and the tools that it calls, if it has some of its own.
pub struct Built {
    /// The harness.
    pub harness: Arc<dyn Harness>,
    /// Its tools.
    pub tools: Option<Arc<Toolset>>,
    /// What is easily not expected of its sandbox.
    pub note: Option<String>,
}

impl HarnessConfig {
    /// The values that `harness` may have.
    pub const NAMES: [&str; 5] = ["echo", "scripted", "command", "http", "agent"];

    /// Reads the settings of the harness with this name. They come without the key `harness`. An error keeps the
    /// place of its setting in the file.
    pub fn read<'de, D: Deserializer<'de>>(harness: &str, settings: D) -> Result<HarnessConfig, D::Error> {
        match harness {
            "echo" => EchoConfig::deserialize(settings).map(HarnessConfig::Echo),
            "scripted" => ScriptedConfig::deserialize(settings).map(HarnessConfig::Scripted),
            "command" => CommandConfig::deserialize(settings).map(HarnessConfig::Command),
            "http" => RemoteConfig::deserialize(settings).map(HarnessConfig::Http),
            "agent" => AgentConfig::deserialize(settings)
                .map(|config| HarnessConfig::Agent(Box::new(config), ToolsConfig::default())),
            other => Err(D::Error::unknown_variant(other, &HarnessConfig::NAMES)),
        }
    }

    /// Checks the settings against this machine and makes the harness. The error lists everything that is wrong.
    pub fn build(self, calls: Option<&AgentCalls>, machine: &Machine<'_>) -> Result<Built, Vec<ConfigError>> {
        let note = self.note();
        let harness: Arc<dyn Harness> = match self {
            HarnessConfig::Echo(EchoConfig {}) => Arc::new(Echo),
            HarnessConfig::Scripted(ScriptedConfig {}) => Arc::new(Scripted),
            HarnessConfig::Command(config) => Arc::new(with_taken_keys(config).build(machine.workspace_dir)?),
            HarnessConfig::Http(config) => Arc::new(config.build(machine.tls)?),
            HarnessConfig::Agent(config, tools) => {
                let (harness, tools) = agent(*config, tools, calls, machine)?;
                return Ok(Built { harness, tools: Some(tools), note });
            }
        };
        Ok(Built { harness, tools: None, note })
    }

    fn note(&self) -> Option<String> {
        match self {
            HarnessConfig::Command(config) => config.sandbox.note(),
            HarnessConfig::Agent(_, tools) => tools.sandbox.note(),
            HarnessConfig::Echo(_) | HarnessConfig::Scripted(_) | HarnessConfig::Http(_) => None,
        }
    }

    /// Takes the tools of an agent's table, which are settings of their own.
    pub fn with_tools(self, tools: ToolsConfig) -> HarnessConfig {
        match self {
            HarnessConfig::Agent(config, _) => HarnessConfig::Agent(config, tools),
            other => other,
        }
    }

    /// Returns the settings that name one of these variables, by `env` or `env_allow`.
    pub fn naming<'a>(&'a self, variables: &'a [&str]) -> impl Iterator<Item = String> + 'a {
        let of_tools = match self {
            HarnessConfig::Agent(_, tools) => tools.naming(variables),
            _ => Vec::new(),
        };
        let config = match self {
            HarnessConfig::Command(config) => Some(config),
            HarnessConfig::Echo(_)
            | HarnessConfig::Scripted(_)
            | HarnessConfig::Http(_)
            | HarnessConfig::Agent(..) => None,
        };
        let is_named = |name: &String| variables.contains(&name.as_str());
        let named = config.into_iter().flat_map(move |config| {
            let allowed = config.env_allow.iter().enumerate().filter(move |(_, name)| is_named(name));
            let fixed = config.env.keys().filter(move |name| is_named(name));
            let allowed = allowed.map(|(at, _)| format!("env_allow[{at}]"));
            allowed.chain(fixed.map(|name| format!("env.{name}")))
        });
        named.chain(of_tools)
    }
}

/// Makes a model loop with its tools. The error lists what is wrong with either.
fn agent(
    config: AgentConfig,
    tools: ToolsConfig,
    calls: Option<&AgentCalls>,
    machine: &Machine<'_>,
) -> Result<(Arc<dyn Harness>, Arc<Toolset>), Vec<ConfigError>> {
    let of_servers = tools.key_variables().filter_map(service::variable).map(SecretString::from);
    let keys = service::secret_values().cloned().chain(of_servers).collect();
    let of_tools = tools::Machine { tls: machine.tls, variable: &service::variable };
    let toolset = tools.build(&of_tools).map_err(|errors| {
        errors.into_iter().map(|error| ConfigError::new(error.setting, error.problem)).collect::<Vec<_>>()
    });
    let toolset = Arc::new(toolset?);
    let tools = Arc::new(AgentTools::new(toolset.clone(), machine.workspace_dir));
    let models = calls.map_or(&[][..], |calls| &calls.models);
    let worker = OfWorker { models, degrades: calls.is_some_and(AgentCalls::degrades), keys };
    let harness: Arc<dyn Harness> = Arc::new(config.build(worker, tools, machine.tls)?);
    Ok((harness, toolset))
}

/// Adds the keys of providers that a program is to get. They are no longer in the worker's environment, because they are
/// secrets of the worker's as well.
fn with_taken_keys(mut config: CommandConfig) -> CommandConfig {
    for name in &config.env_allow {
        if let Some(key) = service::variable(name).filter(|_| PROVIDER_KEYS.contains(&name.as_str())) {
            config.env.entry(name.clone()).or_insert(key);
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(harness: &str, text: &str) -> Result<HarnessConfig, toml::de::Error> {
        HarnessConfig::read(harness, toml::Deserializer::parse(text)?)
    }

    #[test]
    fn an_agent_names_its_harness_and_gets_defaults() {
        assert_eq!(read("echo", "").unwrap(), HarnessConfig::Echo(EchoConfig {}));
        assert_eq!(read("scripted", "").unwrap(), HarnessConfig::Scripted(ScriptedConfig {}));
        let HarnessConfig::Command(config) =
            read("command", "command = [\"python3\", \"agent.py\"]").unwrap()
        else {
            panic!("not a command")
        };
        assert_eq!(config, CommandConfig::new(["python3", "agent.py"]));
    }

    #[test]
    fn a_setting_that_does_not_exist_is_refused_by_its_name() {
        for (harness, text, name) in [
            ("echo", "loud = true", "loud"),
            ("scripted", "speed = 2", "speed"),
            ("command", "command = [\"true\"]\ntimeout = 5", "timeout"),
            ("magic", "", "magic"),
        ] {
            let error = read(harness, text).unwrap_err().to_string();
            assert!(error.contains(name), "{harness}: {text}: {error}");
        }
    }
}
