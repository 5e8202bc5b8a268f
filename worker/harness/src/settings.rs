//! An agent's settings, and the harness they make. Reading `agents.toml` is the worker's business; which keys an
//! agent's table may have, and what they mean, is said here and in each harness's own `…Config`.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::echo::Echo;
use crate::scripted::Scripted;
use crate::{CommandConfig, EchoConfig, Harness, ScriptedConfig};

/// Which harness an agent uses (`harness = "…"`), and its settings. Keys a harness does not have are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "harness", rename_all = "snake_case")]
pub enum HarnessConfig {
    /// Gives the input back.
    Echo(EchoConfig),
    /// Plays what the input declares.
    Scripted(ScriptedConfig),
    /// Runs a program.
    Command(CommandConfig),
}

impl HarnessConfig {
    /// Checks the settings against this machine and makes the harness. Sessions' folders go below `workspace_dir`.
    pub fn build(self, workspace_dir: &Path) -> Result<Arc<dyn Harness>, ConfigError> {
        match self {
            HarnessConfig::Echo(EchoConfig {}) => Ok(Arc::new(Echo)),
            HarnessConfig::Scripted(ScriptedConfig {}) => Ok(Arc::new(Scripted)),
            HarnessConfig::Command(config) => Ok(Arc::new(config.build(workspace_dir)?)),
        }
    }
}

/// A setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    /// Its name, such as `command[0]`.
    pub setting: String,
    /// What was given and what would be right.
    pub problem: String,
}

impl ConfigError {
    pub(crate) fn new(setting: impl Into<String>, problem: impl Into<String>) -> ConfigError {
        ConfigError { setting: setting.into(), problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HarnessConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn an_agent_names_its_harness_and_gets_defaults() {
        assert_eq!(read(r#"harness = "echo""#).unwrap(), HarnessConfig::Echo(EchoConfig {}));
        let HarnessConfig::Command(config) =
            read("harness = \"command\"\ncommand = [\"python3\", \"agent.py\"]").unwrap()
        else {
            panic!("not a command")
        };
        assert_eq!(config, CommandConfig::new(["python3", "agent.py"]));
    }

    #[test]
    fn a_setting_that_does_not_exist_is_refused_by_its_name() {
        for (text, name) in [
            ("harness = \"echo\"\nloud = true", "loud"),
            ("harness = \"scripted\"\nspeed = 2", "speed"),
            ("harness = \"command\"\ncommand = [\"true\"]\ntimeout = 5", "timeout"),
            ("harness = \"magic\"", "magic"),
            ("command = [\"true\"]", "harness"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
