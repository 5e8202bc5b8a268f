//! Asks a chat stream for its usage, without a change to any other byte of the request.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Options<'b> {
    #[serde(borrow)]
    stream_options: Option<&'b RawValue>,
}

/// Returns the body with `stream_options.include_usage`. The body is a JSON object with at least one field.
pub(super) fn include_usage(body: &Bytes) -> Result<Bytes, serde_json::Error> {
    let options: Options = serde_json::from_slice(body)?;
    let splice = |from: usize, to: usize, text: &str| {
        Bytes::from([&body[..from], text.as_bytes(), &body[to..]].concat())
    };
    let Some(given) = options.stream_options else {
        // `null` reads as nothing too, but is there: it must not be there twice.
        let all: serde_json::Map<String, Value> = serde_json::from_slice(body)?;
        if all.contains_key("stream_options") {
            let mut all = all;
            all.insert("stream_options".to_owned(), serde_json::json!({"include_usage": true}));
            return serde_json::to_vec(&all).map(Bytes::from);
        }
        let brace = body.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
        return Ok(splice(brace, brace, r#""stream_options":{"include_usage":true},"#));
    };
    let mut options: Value = serde_json::from_str(given.get())?;
    if let Value::Object(members) = &mut options {
        members.insert("include_usage".to_owned(), Value::Bool(true));
    }
    // The raw value is a piece of the body, so its address says where it begins.
    let from = given.get().as_ptr() as usize - body.as_ptr() as usize;
    Ok(splice(from, from + given.get().len(), &options.to_string()))
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
