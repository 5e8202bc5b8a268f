//! JSON schemas: that of a tool's input, and any other that an agent's table has. Nothing is ever fetched: a schema that
//! refers to another document is refused.

use std::error::Error;

use job::Json;
use jsonschema::{PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::{Map, Value};

use crate::text;

/// The longest schema.
const MAX_BYTES: usize = 256 * 1024;
/// How many problems of an input are named.
const NAMED: usize = 5;
/// How far a pattern of a schema may go back while it matches.
const BACKTRACKS: usize = 100_000;

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
    /// Checks a schema. It must be of an object, because the input of a tool is one.
    pub fn new(schema: &Value) -> Result<Schema, String> {
        let expected = "expected a JSON schema with type = \"object\"";
        match schema {
            Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "object") => {}
            Value::Object(_) => return Err(format!("got no type = \"object\", {expected}")),
            _ => return Err(format!("got no table, {expected}")),
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

    /// Reads an input. The error is for the model, and names the fields that are wrong.
    pub fn read(&self, input: &str) -> Result<Map<String, Value>, String> {
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
            .map(|(path, problem)| said(&path, &problem))
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

fn said(path: &str, problem: &str) -> String {
    let place = if path.is_empty() { "the input" } else { path };
    text::clean_text(text::clipped(&format!("{place}: {problem}"), 500).into()).into_owned()
}

fn refused(error: &ValidationError<'_>) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        said = format!("{said}: {cause}");
        source = cause.source();
    }
    format!("{}, expected a valid JSON schema that needs no other document", text::clipped(&said, 500))
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
        assert!(schema.read(r#"{"path": "a"}"#).is_ok());
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
            let said = schema.read(input).unwrap_err();
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
        assert!(Schema::new(&own).unwrap().read(r#"{"a": 1}"#).is_err());
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
        assert!(schema.read(&input).is_err());
    }
}
