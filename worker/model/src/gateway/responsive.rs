//! Whether the providers answer: a question that costs nothing.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};

use super::{Gateway, Upstream, headers};
use crate::provider::Provider;

/// How long a provider may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The version of the protocol, which Anthropic requires. Programs send their own.
const ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

impl Gateway {
    /// Asks each provider that there is a key for to list its models. The error says who does not answer, and why.
    pub async fn ask_providers(&self) -> Result<(), String> {
        let settings = &self.inner.settings;
        let anthropic = self.ask(Provider::Anthropic, settings.anthropic.as_ref());
        let openai = self.ask(Provider::OpenAi, settings.openai.as_ref());
        let (anthropic, openai) = tokio::join!(anthropic, openai);
        match (anthropic, openai) {
            (Err(one), Err(other)) => Err(format!("{one}; {other}")),
            (one, other) => one.and(other),
        }
    }

    /// Any answer but a refused key and a failure of the provider will do: what stands before it may not list models.
    async fn ask(&self, provider: Provider, upstream: Option<&Upstream>) -> Result<(), String> {
        let Some(Upstream { base_url, key }) = upstream else { return Ok(()) };
        let mut sent = headers::to_provider(&HeaderMap::new(), provider, key);
        if provider == Provider::Anthropic {
            sent.insert("anthropic-version", ANTHROPIC_VERSION);
        }
        let asked = self.inner.client.get(format!("{base_url}/v1/models")).headers(sent).timeout(TIMEOUT);
        let name = provider.name();
        match asked.send().await.map(|answer| answer.status().as_u16()) {
            Ok(status @ (401 | 403)) => Err(format!("{name} refuses the key ({status})")),
            Ok(status @ 500..) => Err(format!("{name} answers {status}")),
            Ok(_) => Ok(()),
            Err(error) if error.is_timeout() => {
                Err(format!("{name} does not answer within {} s", TIMEOUT.as_secs()))
            }
            Err(error) => Err(format!("{name} cannot be reached: {}", http_client::cause(&error))),
        }
    }
}
