//! JSON that Postgres can hold, kept as the text in which it came.
//!
//! A job's input and a harness's output belong to the user. We pass them on and never look inside. Keeping the text
//! saves a parse and keeps big numbers exact. But not all JSON fits into `jsonb`: it has no place for `\u0000`, for
//! half a surrogate pair, for numbers beyond its range or for unlimited nesting. Such a value is refused here, on
//! entry, so that no transaction fails later because of it.
//!
//! What a model's provider has said is the exception ([`Json::verbatim`]): it must go back to the letter, so it is kept
//! even where `jsonb` could not hold it. It rests in columns of the type `json` alone, and nothing casts it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

/// The deepest nesting of arrays and objects that is accepted.
const MAX_DEPTH: usize = 128;
/// The longest number in digits, and the greatest power of ten. `numeric` ends at 131,072 digits, doubles at 10^308.
const MAX_NUMBER: usize = 512;

/// A JSON value as text. It is known to fit into Postgres's `jsonb`, unless it was made by [`Json::verbatim`]. Its clones
/// share the text.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// Parses a text that must be exactly one JSON value.
    pub fn parse(text: &str) -> Result<Json, JsonError> {
        let raw: Box<RawValue> =
            serde_json::from_str(text).map_err(|error| JsonError::malformed(text, &error))?;
        Json::from_raw(raw)
    }

    /// Parses a text that must be exactly one JSON value, and keeps it whatever it says: it may hold escapes and numbers
    /// that `jsonb` has no place for. Only nesting without bound is refused. For entries of a session's context.
    pub fn verbatim(text: &str) -> Result<Json, JsonError> {
        let raw: Box<RawValue> =
            serde_json::from_str(text).map_err(|error| JsonError::malformed(text, &error))?;
        Json::verbatim_raw(raw)
    }

    /// Serializes a value that we made.
    pub fn from_value(value: &impl Serialize) -> Result<Json, JsonError> {
        let raw = serde_json::value::to_raw_value(value)
            .map_err(|error| JsonError::Malformed(error.to_string()))?;
        Json::from_raw(raw)
    }

    /// `null`.
    pub fn null() -> Json {
        Json(RawValue::NULL.to_owned().into())
    }

    /// Returns the value's text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Parses the value, for those who look inside.
    pub fn to_value(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::from_str(self.as_str())
    }

    fn from_raw(raw: Box<RawValue>) -> Result<Json, JsonError> {
        check_storable(raw.get())?;
        Ok(Json(raw.into()))
    }

    fn verbatim_raw(raw: Box<RawValue>) -> Result<Json, JsonError> {
        check_depth(raw.get())?;
        Ok(Json(raw.into()))
    }
}

/// Reads a list of values as [`Json::verbatim`] does: for `#[serde(deserialize_with = "job::verbatim_list")]`.
pub fn verbatim_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Json>, D::Error> {
    struct Verbatim(Json);
    impl<'de> Deserialize<'de> for Verbatim {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Verbatim, D::Error> {
            let raw = Box::<RawValue>::deserialize(deserializer)?;
            Json::verbatim_raw(raw).map(Verbatim).map_err(de::Error::custom)
        }
    }
    let list = Vec::<Verbatim>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|Verbatim(json)| json).collect())
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Json) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Json::from_raw(raw).map_err(de::Error::custom)
    }
}

/// Why a value cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Malformed(String),
    /// A NUL character in a string.
    #[error("a string contains \\u0000, which Postgres cannot hold")]
    Nul,
    /// Half a surrogate pair in a string.
    #[error("a string contains half of a surrogate pair (\\ud800 to \\udfff alone), which is no character")]
    LoneSurrogate,
    /// A number beyond what is accepted.
    #[error("a number is longer than {MAX_NUMBER} digits or its exponent is past ±{MAX_NUMBER}")]
    NumberRange,
    /// Too many levels.
    #[error("arrays and objects are nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

impl JsonError {
    /// Adds the position. It counts within this text alone, whatever larger text it was taken from.
    pub(crate) fn malformed(text: &str, error: &serde_json::Error) -> JsonError {
        let said = error.to_string();
        let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
        let line =
            if text.trim_end().contains('\n') { format!("line {}, ", error.line()) } else { String::new() };
        JsonError::Malformed(format!("{said} at {line}byte {}", error.column()))
    }
}

/// Checks a text that is known to be well-formed JSON.
fn check_storable(text: &str) -> Result<(), JsonError> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = check_string(bytes, at + 1)?,
            b'-' | b'0'..=b'9' => at = check_number(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(JsonError::TooDeep);
                }
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Checks only the nesting of a text that is known to be well-formed JSON.
fn check_depth(text: &str) -> Result<(), JsonError> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(JsonError::TooDeep);
                }
            }
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// Checks the inside of a string. Returns the position after its closing quote.
fn check_string(bytes: &[u8], mut at: usize) -> Result<usize, JsonError> {
    loop {
        at += bytes[at..].iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or_default();
        match bytes[at] {
            b'"' => return Ok(at + 1),
            b'\\' if bytes[at + 1] == b'u' => match hex4(bytes, at + 2) {
                0 => return Err(JsonError::Nul),
                0xD800..=0xDBFF => {
                    let paired = bytes[at + 6..].starts_with(b"\\u")
                        && (0xDC00..=0xDFFF).contains(&hex4(bytes, at + 8));
                    if !paired {
                        return Err(JsonError::LoneSurrogate);
                    }
                    at += 12;
                }
                0xDC00..=0xDFFF => return Err(JsonError::LoneSurrogate),
                _ => at += 6,
            },
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns the value of four hexadecimal digits. The parser has already checked that there are four.
fn hex4(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |sum, b| sum * 16 + (*b as char).to_digit(16).unwrap_or(0))
}

fn check_number(bytes: &[u8], start: usize) -> Result<usize, JsonError> {
    let rest = &bytes[start..];
    let len = rest.iter().position(|b| !b"+-.eE0123456789".contains(b)).unwrap_or(rest.len());
    let number = &rest[..len];
    let exponent = number.iter().position(|b| matches!(b, b'e' | b'E')).map(|e| &number[e + 1..]);
    let exponent_fits = exponent.is_none_or(|digits| {
        std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse::<i64>().ok())
            .is_some_and(|power| power.unsigned_abs() <= MAX_NUMBER as u64)
    });
    if len > MAX_NUMBER || !exponent_fits {
        return Err(JsonError::NumberRange);
    }
    Ok(start + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_postgres_cannot_hold_is_refused() {
        assert_eq!(Json::parse(r#"{"a":"x\u0000y"}"#), Err(JsonError::Nul));
        assert_eq!(Json::parse(r#"{"\u0000":1}"#), Err(JsonError::Nul));
        assert_eq!(Json::parse(r#"["\ud800"]"#), Err(JsonError::LoneSurrogate));
        assert_eq!(Json::parse(r#"["\ud800x"]"#), Err(JsonError::LoneSurrogate));
        assert_eq!(Json::parse(r#"["\ud800\u0041"]"#), Err(JsonError::LoneSurrogate));
        assert_eq!(Json::parse(r#"["\udc00"]"#), Err(JsonError::LoneSurrogate));
        for number in ["1e400000", "1e-400000", "-1E+99999999999999999999", &"9".repeat(600)] {
            assert_eq!(Json::parse(number), Err(JsonError::NumberRange), "{number}");
        }
        assert_eq!(Json::parse(&format!("{}1{}", "[".repeat(129), "]".repeat(129))), Err(JsonError::TooDeep));
        assert!(matches!(Json::parse("{\"a\":"), Err(JsonError::Malformed(_))));
        assert!(matches!(Json::parse("1 2"), Err(JsonError::Malformed(_))));
    }

    #[test]
    fn what_postgres_can_hold_is_kept_to_the_letter() {
        let fine =
            r#"{"big":123456789012345678901234567890,"s":"\ud83d\ude00 \\u0000 \"","e":1.5e-300,"a":[[]]}"#;
        assert_eq!(Json::parse(fine).unwrap().as_str(), fine);
    }

    #[test]
    fn what_a_provider_has_said_is_kept_whatever_it_is() {
        for said in [
            r#"{"b":1e5,"a":"x\u0000y","a b":"\ud800"}"#,
            "[12345678901234567890123, 1e400000,\n\t{ } ]",
            r#""[[[\"[[[""#,
        ] {
            assert_eq!(Json::verbatim(said).unwrap().as_str(), said);
            let list = format!("[{said} , 1]");
            let read = verbatim_list(&mut serde_json::Deserializer::from_str(&list)).unwrap();
            assert_eq!(read[0].as_str(), said);
        }
        let deep = format!("{}\"]{{\\\"\"{}", "[".repeat(128), "]".repeat(128));
        assert_eq!(Json::verbatim(&deep).unwrap().as_str(), deep);
        assert_eq!(Json::verbatim(&format!("[{deep}]")), Err(JsonError::TooDeep));
        assert!(matches!(Json::verbatim("{"), Err(JsonError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn any_text_without_nul_survives_as_a_string(text in "[^\u{0}]*") {
            let json = Json::from_value(&text).unwrap();
            prop_assert_eq!(serde_json::from_str::<String>(json.as_str()).unwrap(), text);
        }

        #[test]
        fn no_input_panics(text in ".*") {
            let _ = Json::parse(&text);
        }
    }
}
