//! The settings of `harness = "agent"`, as an agent's table has them.

use std::sync::Arc;
use std::time::Duration;

use harness::ConfigError;
use regex::Regex;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value};
use tools::Redaction;

use crate::head::wrong_option;
use crate::schema::Schema;
use crate::wire::Wire;

/// The keys of an agent's table. `models` and the keys about money are those of every agent that calls models.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The system prompt.
    #[serde(default)]
    pub system: Option<String>,
    /// The most tokens of one answer.
    #[serde(default = "max_output_tokens")]
    pub max_output_tokens: u64,
    /// What else a request says, by provider: such as thinking, effort or temperature.
    #[serde(default)]
    pub options: Options,
    /// By which of OpenAI's APIs its models are called.
    #[serde(default)]
    pub openai_api: OpenAiApi,
    /// The agent's share of the model's context window, in tokens: a longer conversation is compacted.
    #[serde(default = "context_tokens")]
    pub context_tokens: u64,
    /// The most answers of a job.
    #[serde(default = "max_iterations")]
    pub max_iterations: u32,
    /// The most tokens of a job, read and written in all its answers. Without it there is no limit.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// The longest time of one attempt.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
    /// The longest silence of a provider in the middle of a call.
    #[serde(default = "idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// A JSON schema of a job's input. A job whose input does not fit fails before any call.
    #[serde(default)]
    pub input_schema: Option<Value>,
    /// A JSON schema of the output, which is then JSON instead of text.
    #[serde(default)]
    pub output_schema: Option<Value>,
    /// Whether the provider is asked to keep to the schema of the output. Providers take only a part of JSON Schema; the
    /// output is checked in any case.
    #[serde(default = "native_output")]
    pub native_output: bool,
    /// Whether the model may ask a person.
    #[serde(default)]
    pub ask_human: bool,
    /// How long a person has for an answer or an approval; then the model goes on without. Without it there is no limit.
    #[serde(default)]
    pub answer_timeout_ms: Option<u64>,
    /// Regular expressions of what no provider is to read: it is taken out of inputs and of what tools return.
    #[serde(default)]
    pub redact: Vec<String>,
}

/// Fields of requests, by provider.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// For Anthropic's models.
    pub anthropic: Map<String, Value>,
    /// For OpenAI's.
    pub openai: Map<String, Value>,
}

/// An API of OpenAI's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenAiApi {
    /// Chat Completions, which servers of others have as well.
    #[default]
    Chat,
    /// Responses, in which models that reason go on with their own reasoning.
    Responses,
}

fn max_output_tokens() -> u64 {
    16_000
}

fn context_tokens() -> u64 {
    150_000
}

fn max_iterations() -> u32 {
    100
}

fn timeout_ms() -> u64 {
    3_600_000
}

fn idle_timeout_ms() -> u64 {
    300_000
}

fn native_output() -> bool {
    true
}

/// What the worker knows of an agent beside the keys of its loop.
#[derive(Clone, Debug, Default)]
pub struct OfWorker<'a> {
    /// The models that it names, the preferred one first.
    pub models: &'a [String],
    /// Whether the next of them is asked where a limit leaves no room for a call.
    pub degrades: bool,
    /// The secrets of the worker's, which no provider is to read.
    pub keys: Vec<SecretString>,
}

/// Settings that have been checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub models: Vec<String>,
    /// Whether the next of the models is asked where a limit leaves no room for a call.
    pub degrades: bool,
    pub system: Option<String>,
    pub max_output_tokens: u64,
    pub options: Options,
    pub openai_api: OpenAiApi,
    pub context_tokens: u64,
    pub max_iterations: u32,
    pub max_tokens: Option<u64>,
    pub timeout: Duration,
    pub idle_timeout: Duration,
    pub input_schema: Option<Schema>,
    pub output_schema: Option<Schema>,
    pub native_output: bool,
    pub ask_human: bool,
    pub answer_timeout: Option<Duration>,
    pub redaction: Arc<Redaction>,
}

const WEEK_MS: u64 = 7 * 86_400_000;

impl AgentConfig {
    /// Checks the settings. The error lists everything that is wrong.
    pub(crate) fn check(self, worker: OfWorker<'_>) -> Result<Settings, Vec<ConfigError>> {
        let OfWorker { models, degrades, keys } = worker;
        let mut errors = Vec::new();
        if models.is_empty() {
            let problem = "missing, expected the models that the agent calls, the preferred one first";
            errors.push(ConfigError::new("models", problem));
        }
        for (setting, given, range) in [
            ("max_output_tokens", self.max_output_tokens, 1..=1_000_000),
            ("context_tokens", self.context_tokens, 2_000..=10_000_000),
            ("max_iterations", self.max_iterations.into(), 1..=100_000),
            ("timeout_ms", self.timeout_ms, 1..=WEEK_MS),
            ("idle_timeout_ms", self.idle_timeout_ms, 1..=WEEK_MS),
            ("max_tokens", self.max_tokens.unwrap_or(1), 1..=1_000_000_000_000),
            ("answer_timeout_ms", self.answer_timeout_ms.unwrap_or(1_000), 1_000..=365 * 86_400_000),
        ] {
            if !range.contains(&given) {
                let (least, most) = (range.start(), range.end());
                errors.push(ConfigError::new(setting, format!("got {given}, expected {least} to {most}")));
            }
        }
        if self.system.as_deref().is_some_and(|text| text.contains('\0')) {
            errors.push(ConfigError::new("system", "it contains a NUL, expected text"));
        }
        let of_wires =
            [(Wire::Messages, &self.options.anthropic), (self.openai_api.into(), &self.options.openai)];
        for (wire, options) in of_wires {
            for name in options.keys() {
                if let Some(problem) = wrong_option(wire, name) {
                    let provider = wire.provider();
                    errors.push(ConfigError::new(format!("options.{provider}.{name}"), problem));
                }
            }
        }
        let mut schema = |setting: &str, schema: Option<Value>| {
            let checked = schema.map(|schema| Schema::new(&schema)).transpose();
            checked.unwrap_or_else(|problem| {
                errors.push(ConfigError::new(setting, problem));
                None
            })
        };
        let input_schema = schema("input_schema", self.input_schema);
        let output_schema = schema("output_schema", self.output_schema);
        let mut patterns = Vec::new();
        for (at, pattern) in self.redact.iter().enumerate() {
            match Regex::new(pattern) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => {
                    let problem = format!("{error}, expected a regular expression");
                    errors.push(ConfigError::new(format!("redact[{at}]"), problem));
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Settings {
            models: models.to_vec(),
            degrades,
            system: self.system,
            max_output_tokens: self.max_output_tokens,
            options: self.options,
            openai_api: self.openai_api,
            context_tokens: self.context_tokens,
            max_iterations: self.max_iterations,
            max_tokens: self.max_tokens,
            timeout: Duration::from_millis(self.timeout_ms),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            input_schema,
            output_schema,
            native_output: self.native_output,
            ask_human: self.ask_human,
            answer_timeout: self.answer_timeout_ms.map(Duration::from_millis),
            redaction: Arc::new(Redaction::new(patterns, keys)),
        })
    }
}

impl Settings {
    /// Returns the wire of a model.
    pub fn wire(&self, model: &str) -> Wire {
        Wire::of(model, self.openai_api)
    }

    /// Returns the schema of the output, if the provider is to keep to it.
    pub fn native_schema(&self) -> Option<&str> {
        self.output_schema.as_ref().filter(|_| self.native_output).map(Schema::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(settings: Value) -> AgentConfig {
        serde_json::from_value(settings).unwrap()
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = config(json!({
            "max_output_tokens": 0, "context_tokens": 1, "max_iterations": 0, "timeout_ms": 0, "idle_timeout_ms": 0,
            "max_tokens": 0, "answer_timeout_ms": 1, "system": "a\0b", "options": {"anthropic": {"model": "x"}, "openai": {"stream": false}},
            "input_schema": {"type": 7}, "output_schema": {"$ref": "http://127.0.0.1/x"}, "redact": ["a", "("],
        }));
        let errors = wrong.check(OfWorker::default()).unwrap_err();
        let named: Vec<&str> = errors.iter().map(|error| error.setting.as_str()).collect();
        assert_eq!(
            named,
            [
                "models",
                "max_output_tokens",
                "context_tokens",
                "max_iterations",
                "timeout_ms",
                "idle_timeout_ms",
                "max_tokens",
                "answer_timeout_ms",
                "system",
                "options.anthropic.model",
                "options.openai.stream",
                "input_schema",
                "output_schema",
                "redact[1]",
            ]
        );
    }

    #[test]
    fn options_are_those_of_the_api_that_the_agent_chose() {
        let named = |api: &str, options: Value| {
            let config = config(json!({"openai_api": api, "options": {"openai": options}}));
            let errors = config
                .check(OfWorker { models: &["m".to_owned()], ..OfWorker::default() })
                .err()
                .unwrap_or_default();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(
            named("responses", json!({"reasoning": {"effort": "low"}, "text": {"verbosity": "low"}})),
            ""
        );
        assert_eq!(named("chat", json!({"reasoning_effort": "low"})), "");
        let said = named("responses", json!({"reasoning_effort": "low", "store": true}));
        assert!(said.contains("options.openai.reasoning_effort") && said.contains("reasoning = {"), "{said}");
        assert!(said.contains("options.openai.store"), "{said}");
        let said = named("chat", json!({"reasoning": {"effort": "low"}}));
        assert!(said.contains("openai_api = \"responses\""), "{said}");
        let unknown =
            serde_json::from_value::<AgentConfig>(json!({"openai_api": "completions"})).unwrap_err();
        assert!(unknown.to_string().contains("expected `chat` or `responses`"), "{unknown}");
    }
}
