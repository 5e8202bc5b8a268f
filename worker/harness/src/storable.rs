//! Finds the place in a JSON text that Postgres cannot hold, so that an error can name it.
//!
//! What can be held and what not is `job::Json`'s to say; here is only asked where.

use std::collections::BTreeMap;

use job::{Json, JsonError};
use serde_json::value::RawValue;

/// The first place that cannot be held and why, such as `memory.notes[3]: a string contains \u0000 …`.
pub(crate) fn describe(text: &str) -> String {
    match Json::parse(text) {
        Ok(_) => "nothing is wrong with it".to_owned(),
        Err(error) => {
            let (path, error) = descend(text, error);
            let path = path.trim_start_matches('.');
            if path.is_empty() { error.to_string() } else { format!("{path}: {error}") }
        }
    }
}

/// Follows the first child that is refused by itself. Every level but a too deep one is within `Json`'s depth, so the
/// recursion is bounded.
fn descend(text: &str, error: JsonError) -> (String, JsonError) {
    let child = children(text)
        .into_iter()
        .find_map(|(step, raw)| Json::parse(raw.get()).err().map(|error| (step, raw, error)));
    match child {
        None => (String::new(), error),
        Some((step, _, JsonError::TooDeep)) => (step, JsonError::TooDeep),
        Some((step, raw, error)) => {
            let (rest, error) = descend(raw.get(), error);
            (step + &rest, error)
        }
    }
}

/// The values one level down. None, if a key is the culprit and cannot even be read.
fn children(text: &str) -> Vec<(String, &RawValue)> {
    if let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text) {
        return fields.into_iter().map(|(key, raw)| (format!(".{key}"), raw)).collect();
    }
    let items = serde_json::from_str::<Vec<&RawValue>>(text).unwrap_or_default();
    items.into_iter().enumerate().map(|(at, raw)| (format!("[{at}]"), raw)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_named_down_to_the_value() {
        let place = |text: &str| describe(text).split(": ").next().map(str::to_owned).unwrap();
        assert_eq!(place(r#"{"a":1,"memory":{"n":[1,{"x":"\u0000"}]}}"#), "memory.n[1].x");
        assert_eq!(place(r#"[1,"\ud800"]"#), "[1]");
        assert_eq!(place(r#"{"output":1e99999}"#), "output");
        assert_eq!(place(r#"{"a":{"\ud800":1}}"#), "a");
        assert_eq!(place(&format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000))), "a");
    }

    #[test]
    fn a_bare_value_has_no_place() {
        assert!(describe(r#""\u0000""#).starts_with("a string contains"));
    }
}
