//! JSON schemas: that of a tool's input, and any other that an agent's table has. Nothing is ever fetched: a schema that
//! refers to another document is refused.

use std::error::Error;

use job::Json;
use jsonschema::{PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::{Map, Value};

use crate::redaction::Redaction;
use crate::text;

/// The longest schema.
const MAX_BYTES: usize = 256 * 1024;
/// How many problems of an input are named.
const NAMED: usize = 5;
/// How far a pattern of a schema may go back while it matches.
const BACKTRACKS: usize = 100_000;
/// How much is said of a problem.
const SAID_BYTES: usize = 500;
/// Keywords without which a schema means something else.
const STRUCTURE: [&str; 10] = [
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$id",
    "$ref",
    "$schema",
    "dependentRequired",
    "format",
    "required",
    "type",
];
/// Keywords that providers refuse at the top level of an input's schema, and with it every request that has the tool.
/// Anthropic refuses `allOf`, `anyOf` and `oneOf` there, OpenAI all of them.
const NEVER_ON_TOP: [&str; 6] = ["allOf", "anyOf", "const", "enum", "not", "oneOf"];
/// Keywords whose fields have names of the author's.
const NAMED_SCHEMAS: [&str; 5] =
    ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];
/// Keywords whose values are data.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];

/// A schema that is valid, as a check of values.
pub struct SchemaCheck(Validator);

impl SchemaCheck {
    /// Checks a schema.
    pub fn new(schema: &Value) -> Result<SchemaCheck, String> {
        let patterns = PatternOptions::fancy_regex().backtrack_limit(BACKTRACKS);
        let options = jsonschema::options().with_retriever(Nowhere).with_pattern_options(patterns);
        options.build(schema).map(SchemaCheck).map_err(|error| refused(&error))
    }

    /// Returns what does not fit about a value: the path of each place, empty for the value as a whole, and the problem.
    pub fn problems<'a>(&'a self, value: &'a Value) -> impl Iterator<Item = (String, String)> + use<'a> {
        self.0.iter_errors(value).map(|error| {
            let path = error.instance_path().as_str().trim_start_matches('/').replace('/', ".");
            (path, error.to_string())
        })
    }
}

/// The schema of a tool's input.
pub struct Schema {
    text: Json,
    check: SchemaCheck,
}

impl Schema {
    /// Checks a schema. It must be of an object, because the input of a tool is one, and such that providers take it.
    pub fn new(schema: &Value) -> Result<Schema, String> {
        let expected = "expected a JSON schema with type = \"object\"";
        let Value::Object(fields) = schema else { return Err(format!("got no table, {expected}")) };
        if fields.get("type").is_none_or(|kind| kind != "object") {
            return Err(format!("got no type = \"object\", {expected}"));
        }
        if let Some(keyword) = NEVER_ON_TOP.iter().find(|keyword| fields.contains_key(**keyword)) {
            return Err(format!(
                "got `{keyword}` at its top level, which providers refuse, expected it within `properties` alone"
            ));
        }
        let text = Json::from_value(schema).map_err(|error| format!("{error}, {expected}"))?;
        if text.as_str().len() > MAX_BYTES {
            return Err(format!("got {} bytes, expected at most {MAX_BYTES}", text.as_str().len()));
        }
        Ok(Schema { text, check: SchemaCheck::new(schema)? })
    }

    /// The schema of a tool without input.
    pub fn nothing() -> Value {
        serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false})
    }

    /// Returns its text.
    pub fn json(&self) -> &Json {
        &self.text
    }

    /// Returns its text without what is to be taken out of its descriptions, examples and values. Names of properties stay.
    pub fn redacted(&self, redaction: &Redaction) -> Json {
        let Ok(mut schema) = self.text.to_value() else { return self.text.clone() };
        redact(&mut schema, Part::Schema, redaction);
        Json::from_value(&schema).unwrap_or_else(|_| self.text.clone())
    }

    /// Reads an input. The error is for the model, and names the fields that are wrong; it quotes the input and the schema.
    pub fn read(&self, input: &str, redaction: &Redaction) -> Result<Map<String, Value>, String> {
        // Some models send nothing for no input.
        let input = if input.trim().is_empty() { "{}" } else { input };
        let json = Json::parse(input).map_err(|error| format!("The input cannot be used: {error}."))?;
        let value: Value = serde_json::from_str(json.as_str())
            .map_err(|error| format!("The input cannot be used: {error}."))?;
        if !value.is_object() {
            return Err("The input must be a JSON object.".to_owned());
        }
        let errors: Vec<String> = self
            .check
            .problems(&value)
            .take(NAMED + 1)
            .map(|(path, problem)| said(&path, &problem, redaction))
            .collect();
        if !errors.is_empty() {
            let more = if errors.len() > NAMED { "\n…" } else { "" };
            let shown = errors[..errors.len().min(NAMED)].join("\n");
            return Err(format!("The input does not fit the tool's schema:\n{shown}{more}"));
        }
        match value {
            Value::Object(fields) => Ok(fields),
            _ => Err("The input must be a JSON object.".to_owned()),
        }
    }
}

fn said(path: &str, problem: &str, redaction: &Redaction) -> String {
    let place = if path.is_empty() { "the input" } else { path };
    redaction.clipped(&text::clean_text(format!("{place}: {problem}").into()), SAID_BYTES)
}

/// What a value in a schema is.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Schema,
    /// An object of schemas.
    Named,
    Data,
}

/// Takes out of a part of a schema what is to be taken out.
fn redact(value: &mut Value, part: Part, redaction: &Redaction) {
    match value {
        Value::String(text) => *text = redaction.clean(text),
        Value::Array(items) => items.iter_mut().for_each(|item| redact(item, part, redaction)),
        Value::Object(fields) => {
            for (name, value) in fields {
                let part = match (part, name.as_str()) {
                    (Part::Data, _) => Part::Data,
                    (Part::Named, _) => Part::Schema,
                    (Part::Schema, name) if STRUCTURE.contains(&name) => continue,
                    (Part::Schema, name) if NAMED_SCHEMAS.contains(&name) => Part::Named,
                    (Part::Schema, name) if DATA.contains(&name) => Part::Data,
                    (Part::Schema, _) => Part::Schema,
                };
                redact(value, part, redaction);
            }
        }
        Value::Number(number) if part == Part::Data => {
            let (text, cleaned) = (number.to_string(), redaction.clean(&number.to_string()));
            if cleaned != text {
                *value = cleaned.into();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn refused(error: &ValidationError<'_>) -> String {
    let said = text::clipped(&text::with_causes(error, SAID_BYTES), SAID_BYTES);
    format!("{said}, expected a valid JSON schema that needs no other document")
}

/// What finds no other document.
struct Nowhere;

impl Retrieve for Nowhere {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        Err(format!("it refers to {uri}, and nothing is fetched").into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_breaks_the_schema_is_named_by_its_field() {
        let schema = Schema::new(&json!({
            "type": "object", "additionalProperties": false, "required": ["path"],
            "properties": {"path": {"type": "string"}, "to": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        }))
        .unwrap();
        assert!(schema.read(r#"{"path": "a"}"#, &Redaction::default()).is_ok());
        for (input, named) in [
            ("", "\"path\" is a required property"),
            (r#"{"path": 1}"#, "path: 1 is not of type"),
            (r#"{"path": "a", "to": {"n": "x"}}"#, "to.n: \"x\" is not of type"),
            (r#"{"path": "a", "pth": 1}"#, "'pth' was unexpected"),
            (r#"{"path": "#, "not JSON"),
            (r#"["path"]"#, "must be a JSON object"),
            (r#"{"path": "\u0000"}"#, "\\u0000"),
            (r#"{"path": "\ud800"}"#, "surrogate"),
        ] {
            let said = schema.read(input, &Redaction::default()).unwrap_err();
            assert!(said.contains(named), "{input}: {said}");
        }
    }

    #[test]
    fn a_schema_that_needs_another_document_is_refused_by_its_address() {
        for address in
            ["http://127.0.0.1:9/a.json", "https://example.com/a.json", "file:///etc/passwd", "b.json"]
        {
            let schema = json!({"type": "object", "properties": {"a": {"$ref": address}}});
            let said = Schema::new(&schema).err().expect("refused");
            assert!(said.contains(address) && said.contains("needs no other document"), "{said}");
        }
        let own = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "string"}}});
        assert!(Schema::new(&own).unwrap().read(r#"{"a": 1}"#, &Redaction::default()).is_err());
    }

    #[test]
    fn a_schema_is_shown_without_secrets_and_means_the_same() {
        let redaction =
            Redaction::new(vec![regex::Regex::new(r"\d{4}|string").unwrap()], vec!["sk-real-key".into()]);
        let schema = Schema::new(&json!({
            "type": "object", "required": ["type", "key 1234"], "description": "Takes sk-real-key.",
            "properties": {
                "type": {"type": "string", "description": "1234", "default": {"type": "sk-real-key", "n": 1234}},
                "key 1234": {"enum": ["sk-real-key", 1234, 5], "title": "is sk-real-key"},
            },
        }));
        let schema = schema.unwrap();
        assert_eq!(
            schema.redacted(&redaction).to_value().unwrap(),
            json!({
                "type": "object", "required": ["type", "key 1234"], "description": "Takes [redacted].",
                "properties": {
                    "type": {"type": "string", "description": "[redacted]", "default": {"type": "[redacted]", "n": "[redacted]"}},
                    "key 1234": {"enum": ["[redacted]", "[redacted]", 5], "title": "is [redacted]"},
                },
            })
        );
        assert!(schema.read(r#"{"type": "a", "key 1234": "sk-real-key"}"#, &redaction).is_ok());
        let said = schema.read(r#"{"type": "a", "key 1234": "no"}"#, &redaction).unwrap_err();
        assert!(said.contains("[redacted]") && !said.contains("sk-real-key"), "{said}");
        assert_eq!(schema.redacted(&Redaction::default()), *schema.json());
    }

    #[test]
    fn what_is_no_schema_of_an_object_is_refused() {
        for (schema, named) in [
            (json!({"type": "string"}), "type = \"object\""),
            (json!([]), "no table"),
            (json!({"type": "object", "properties": 1}), "valid JSON schema"),
            (json!({"type": "object", "title": "\0"}), "\\u0000"),
            (json!({"type": "object", "title": "x".repeat(300_000)}), "expected at most"),
        ] {
            let said = Schema::new(&schema).err().expect("refused");
            assert!(said.contains(named), "{said}");
        }
    }

    #[test]
    fn a_pattern_that_would_take_for_ever_ends() {
        let schema =
            Schema::new(&json!({"type": "object", "properties": {"a": {"pattern": "^(a+)+(?=b)$"}}}))
                .unwrap();
        let input = json!({"a": format!("{}c", "a".repeat(40))}).to_string();
        assert!(schema.read(&input, &Redaction::default()).is_err());
    }
}
