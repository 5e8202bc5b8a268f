//! The only list of the kinds of harnesses, and how an agent's settings become one of them. Each harness's own
//! `…Config` says which keys an agent's table may have and what they mean.

use std::path::Path;
use std::sync::Arc;

use command::CommandConfig;
use harness::{ConfigError, Echo, EchoConfig, Harness, Scripted, ScriptedConfig};
use remote::RemoteConfig;
use rustls::ClientConfig;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::calls::PROVIDER_KEYS;

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
}

impl HarnessConfig {
    /// The values that `harness` may have.
    pub const NAMES: [&str; 4] = ["echo", "scripted", "command", "http"];

    /// Reads the settings of the harness with this name. They come without the key `harness`. An error keeps the
    /// place of its setting in the file.
    pub fn read<'de, D: Deserializer<'de>>(harness: &str, settings: D) -> Result<HarnessConfig, D::Error> {
        match harness {
            "echo" => EchoConfig::deserialize(settings).map(HarnessConfig::Echo),
            "scripted" => ScriptedConfig::deserialize(settings).map(HarnessConfig::Scripted),
            "command" => CommandConfig::deserialize(settings).map(HarnessConfig::Command),
            "http" => RemoteConfig::deserialize(settings).map(HarnessConfig::Http),
            other => Err(D::Error::unknown_variant(other, &HarnessConfig::NAMES)),
        }
    }

    /// Checks the settings against this machine and makes the harness.
    /// The error lists everything that is wrong.
    pub fn build(self, machine: &Machine<'_>) -> Result<Arc<dyn Harness>, Vec<ConfigError>> {
        match self {
            HarnessConfig::Echo(EchoConfig {}) => Ok(Arc::new(Echo)),
            HarnessConfig::Scripted(ScriptedConfig {}) => Ok(Arc::new(Scripted)),
            HarnessConfig::Command(config) => {
                Ok(Arc::new(with_taken_keys(config).build(machine.workspace_dir)?))
            }
            HarnessConfig::Http(config) => Ok(Arc::new(config.build(machine.tls)?)),
        }
    }

    /// Returns the settings that name one of these variables, by `env` or `env_allow`.
    pub fn naming<'a>(&'a self, variables: &'a [&str]) -> impl Iterator<Item = String> + 'a {
        let config = match self {
            HarnessConfig::Command(config) => Some(config),
            HarnessConfig::Echo(_) | HarnessConfig::Scripted(_) | HarnessConfig::Http(_) => None,
        };
        let is_named = |name: &String| variables.contains(&name.as_str());
        config.into_iter().flat_map(move |config| {
            let allowed = config.env_allow.iter().enumerate().filter(move |(_, name)| is_named(name));
            let fixed = config.env.keys().filter(move |name| is_named(name));
            let allowed = allowed.map(|(at, _)| format!("env_allow[{at}]"));
            allowed.chain(fixed.map(|name| format!("env.{name}")))
        })
    }
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
