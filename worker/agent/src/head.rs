//! Makes the head of a session: what every request begins with. Equal settings and tools make equal heads, to the letter.

use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tools::Tool;

use crate::config::Settings;
use crate::marks::Head;
use crate::raw::{Fields, items, quoted, raw};
use crate::wire::Wire;

/// The fields that are the loop's own. Options do not set them.
const OWN_FIELDS: [&str; 12] = [
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "response_format",
    "stream",
    "stream_options",
    "system",
    "tools",
    "output_format",
];
/// Those of Responses beside them: the conversation is in the request, and nothing of it at the provider.
const OWN_OF_RESPONSES: [&str; 7] =
    ["background", "conversation", "input", "instructions", "previous_response_id", "prompt", "store"];

/// Returns what is wrong with an option of this name.
pub(crate) fn wrong_option(wire: Wire, name: &str) -> Option<&'static str> {
    let is_own = OWN_FIELDS.contains(&name) || wire == Wire::Responses && OWN_OF_RESPONSES.contains(&name);
    match (wire, name) {
        _ if is_own => Some("the harness sets it itself, expected another field"),
        (Wire::Responses, "reasoning_effort") => {
            Some("Chat Completions has it so, expected `reasoning = { effort = … }` for Responses")
        }
        (Wire::Responses, "verbosity") => {
            Some("Chat Completions has it so, expected `text = { verbosity = … }` for Responses")
        }
        (Wire::Chat, "reasoning") => {
            Some("Responses has it so, expected `reasoning_effort`, or `openai_api = \"responses\"`")
        }
        (Wire::Chat, "text") => {
            Some("Responses has it so, expected `verbosity`, or `openai_api = \"responses\"`")
        }
        _ => None,
    }
}

/// Returns the names of the tools that a head's requests have.
pub(crate) fn tools_of(head: &Head) -> Vec<String> {
    let request = Fields::parse(head.request.get()).unwrap_or_default();
    let tools = request.raw("tools").and_then(|tools| items(tools).ok()).unwrap_or_default();
    let tools = tools.iter().filter_map(|tool| Fields::parse(tool.get()).ok());
    let name = |tool: Fields| match tool.raw("function") {
        Some(function) => Fields::parse(function).ok()?.text("name"),
        None => tool.text("name"),
    };
    tools.filter_map(name).collect()
}

/// Makes the head for a model, whose answers have at most so many tokens.
pub(crate) fn head(settings: &Settings, model: &str, most_output: u64, tools: &[Tool]) -> Head {
    let wire = settings.wire(model);
    let mut request = Request::default();
    request.set("model", quoted(model));
    request.set(wire.output_limit(), most_output.to_string());
    let opening = match wire {
        Wire::Messages => of_messages(settings, tools, &mut request),
        Wire::Chat => of_chat(settings, tools, &mut request),
        Wire::Responses => of_responses(settings, tools, &mut request),
    };
    Head::new(wire, model, opening, raw(request.write()))
}

type Opening = Vec<Box<RawValue>>;

fn of_messages(settings: &Settings, tools: &[Tool], request: &mut Request) -> Opening {
    request.set("stream", "true".to_owned());
    // The provider finds the longest prefix by itself, and nothing moves within the messages.
    request.set("cache_control", r#"{"type":"ephemeral"}"#.to_owned());
    request.set_all(&settings.options.anthropic);
    if let Some(text) = system(settings) {
        request.set("system", quoted(text));
    }
    if !tools.is_empty() {
        request.set("tools", list(tools.iter().map(tool_of_messages)));
    }
    if let Some(schema) = settings.native_schema() {
        let format = format!(r#"{{"type":"json_schema","schema":{schema}}}"#);
        request.set_format("output_config", &settings.options.anthropic, &format);
    }
    Vec::new()
}

fn of_chat(settings: &Settings, tools: &[Tool], request: &mut Request) -> Opening {
    request.set("stream", "true".to_owned());
    request.set("stream_options", r#"{"include_usage":true}"#.to_owned());
    request.set_all(&settings.options.openai);
    if !tools.is_empty() {
        request.set("tools", list(tools.iter().map(tool_of_chat)));
    }
    if let Some(schema) = settings.native_schema() {
        let format =
            format!(r#"{{"type":"json_schema","json_schema":{{"name":"output","schema":{schema}}}}}"#);
        request.set("response_format", format);
    }
    let opening = system(settings).map(|text| format!(r#"{{"role":"system","content":{}}}"#, quoted(text)));
    opening.map(raw).into_iter().collect()
}

fn of_responses(settings: &Settings, tools: &[Tool], request: &mut Request) -> Opening {
    request.set("stream", "true".to_owned());
    // Any worker goes on from the session alone, so reasoning comes with its content instead of staying at the provider.
    request.set("store", "false".to_owned());
    request.set("include", r#"["reasoning.encrypted_content"]"#.to_owned());
    request.set_all(&settings.options.openai);
    if let Some(text) = system(settings) {
        request.set("instructions", quoted(text));
    }
    if !tools.is_empty() {
        request.set("tools", list(tools.iter().map(tool_of_responses)));
    }
    if let Some(schema) = settings.native_schema() {
        let format = format!(r#"{{"type":"json_schema","name":"output","schema":{schema}}}"#);
        request.set_format("text", &settings.options.openai, &format);
    }
    Vec::new()
}

fn system(settings: &Settings) -> Option<&str> {
    settings.system.as_deref().filter(|text| !text.is_empty())
}

/// The fields of a request, in the order in which they were first set.
#[derive(Default)]
pub(crate) struct Request(Vec<(String, String)>);

impl Request {
    pub fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(field, _)| field == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    pub fn set_all(&mut self, fields: &Map<String, Value>) {
        fields.iter().for_each(|(name, value)| self.set(name, value.to_string()));
    }

    /// Sets the format of the output in this field, beside what an option says there.
    fn set_format(&mut self, field: &str, options: &Map<String, Value>, format: &str) {
        let mut old = options.get(field).cloned();
        match old.as_mut().and_then(Value::as_object_mut) {
            // It is a value of ours, so sorting its keys changes nothing.
            Some(fields) => {
                fields.insert("format".to_owned(), serde_json::from_str(format).unwrap_or_default());
                self.set(field, Value::Object(fields.clone()).to_string());
            }
            None => self.set(field, format!(r#"{{"format":{format}}}"#)),
        }
    }

    pub fn write(&self) -> String {
        let fields = self.0.iter().map(|(name, value)| format!("{}:{value}", quoted(name)));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn tool_of_messages(tool: &Tool) -> String {
    format!(
        r#"{{"name":{},"description":{},"input_schema":{}}}"#,
        quoted(&tool.name),
        quoted(&tool.description),
        tool.input_schema.as_str()
    )
}

fn tool_of_chat(tool: &Tool) -> String {
    format!(
        r#"{{"type":"function","function":{{"name":{},"description":{},"parameters":{}}}}}"#,
        quoted(&tool.name),
        quoted(&tool.description),
        tool.input_schema.as_str()
    )
}

/// This wire would change a schema for its strict mode unasked.
fn tool_of_responses(tool: &Tool) -> String {
    format!(
        r#"{{"type":"function","name":{},"description":{},"parameters":{},"strict":false}}"#,
        quoted(&tool.name),
        quoted(&tool.description),
        tool.input_schema.as_str()
    )
}
