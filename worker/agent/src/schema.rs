//! JSON schemas of inputs and outputs.

use std::fmt;

use job::Json;
use serde_json::Value;
use tools::SchemaCheck;

/// A schema that is valid.
#[derive(Clone)]
pub(crate) struct Schema {
    text: String,
    check: std::sync::Arc<SchemaCheck>,
}

/// How many problems of a value are named.
const NAMED: usize = 5;

impl Schema {
    /// Checks a schema.
    pub fn new(schema: &Value) -> Result<Schema, String> {
        let text = Json::from_value(schema).map_err(|error| error.to_string())?.as_str().to_owned();
        Ok(Schema { text, check: std::sync::Arc::new(SchemaCheck::new(schema)?) })
    }

    /// Returns its text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Checks a value. The error names what does not fit.
    pub fn check(&self, value: &Json) -> Result<(), String> {
        let value: Value = serde_json::from_str(value.as_str()).map_err(|error| error.to_string())?;
        let problems: Vec<String> = self
            .check
            .problems(&value)
            .take(NAMED)
            .map(|(path, problem)| {
                let said: String = problem.chars().take(500).collect();
                if path.is_empty() { said } else { format!("{path}: {said}") }
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads the JSON of an answer. Models like to put it into a fence.
pub(crate) fn json_of(text: &str) -> Result<Json, String> {
    let text = text.trim();
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let inner = inner.map(|inner| inner.strip_prefix("json").unwrap_or(inner).trim());
    Json::parse(inner.unwrap_or(text)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_named() {
        let schema = Schema::new(
            &json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}),
        );
        let schema = schema.unwrap();
        assert_eq!(schema.check(&json_of("```json\n{\"sum\": 7}\n```").unwrap()), Ok(()));
        let said = schema.check(&json_of(r#"{"sum": "x"}"#).unwrap()).unwrap_err();
        assert!(said.starts_with("sum: "), "{said}");
        assert!(schema.check(&json_of("{}").unwrap()).unwrap_err().contains("required"));
        assert!(json_of("The sum is 7.").is_err());
    }

    #[test]
    fn nothing_is_fetched() {
        for address in ["http://127.0.0.1:9/a.json", "file:///etc/passwd"] {
            let said = Schema::new(&json!({"$ref": address})).unwrap_err();
            assert!(said.contains("no other document"), "{said}");
        }
    }
}
