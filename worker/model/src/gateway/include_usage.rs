//! Asks a chat stream for its usage, without a change to any other byte of the request.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::json::with_field;

/// Returns the body with `stream_options.include_usage`. The body is a JSON object.
pub(super) fn include_usage(body: &Bytes) -> Result<Bytes, serde_json::Error> {
    let fields: Value = serde_json::from_slice(body)?;
    let mut options =
        fields.get("stream_options").cloned().filter(Value::is_object).unwrap_or_else(|| json!({}));
    options["include_usage"] = json!(true);
    with_field(body, "stream_options", &options.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_else_of_the_request_changes() {
        for (body, expected) in [
            (
                r#" {"model":"m", "stream" : true}"#,
                r#" {"stream_options":{"include_usage":true},"model":"m", "stream" : true}"#,
            ),
            (
                r#"{"a":1.50,"stream_options":{"include_usage":false},"b":"é"}"#,
                r#"{"a":1.50,"stream_options":{"include_usage":true},"b":"é"}"#,
            ),
            (r#"{"stream_options":{"x":1}}"#, r#"{"stream_options":{"include_usage":true,"x":1}}"#),
            (r#"{"a":1,"stream_options":null}"#, r#"{"a":1,"stream_options":{"include_usage":true}}"#),
        ] {
            let asked = include_usage(&Bytes::from_static(body.as_bytes())).expect("valid");
            assert_eq!(asked, expected);
        }
    }
}
