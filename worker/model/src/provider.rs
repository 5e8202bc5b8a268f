//! The companies whose models are called.

/// A company whose models are called, with its own shape of errors and its own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Anthropic.
    Anthropic,
    /// OpenAI.
    OpenAi,
}

impl Provider {
    /// Returns its name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Anthropic => "anthropic",
            Provider::OpenAi => "openai",
        }
    }

    /// Returns the one of this name.
    pub fn of(name: &str) -> Option<Provider> {
        [Provider::Anthropic, Provider::OpenAi].into_iter().find(|provider| provider.name() == name)
    }
}
