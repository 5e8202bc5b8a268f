//! What is wrong with an agent's settings. Each harness has its own `…Config`, which says what keys it has and what
//! they mean.

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
    /// Makes the error for a setting and its problem.
    pub fn new(setting: impl Into<String>, problem: impl Into<String>) -> ConfigError {
        ConfigError { setting: setting.into(), problem: problem.into() }
    }
}
