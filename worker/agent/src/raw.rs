//! JSON objects as the fields they were written with: in their order, each value to the letter.
//!
//! A provider checks what it gets back. A map would sort the keys and write numbers its own way.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object's fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    /// Reads an object; anything else is an error.
    pub fn parse(text: &str) -> serde_json::Result<Fields> {
        serde_json::from_str(text)
    }

    /// Returns a value as it was written.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.get())
    }

    /// Returns a value, if it is a text. Half of a surrogate pair, which is no character, is replaced.
    pub fn text(&self, name: &str) -> Option<String> {
        text(self.raw(name)?)
    }

    /// Puts a value in the place of the old one, or at the end.
    pub fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(field, _)| field == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Returns the fields, in their order.
    pub fn into_all(self) -> Vec<(String, Box<RawValue>)> {
        self.0
    }

    /// Writes the object.
    pub fn write(&self) -> String {
        let fields = self.0.iter().map(|(name, value)| format!("{}:{}", quoted(name), value.get()));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// A text that comes in pieces, each as JSON. A provider may cut it anywhere, also within a character that is written as two
/// escapes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces(String);

impl Pieces {
    /// Begins with a value, if it is a text.
    pub fn begun(value: Option<&str>) -> Pieces {
        Pieces(value.and_then(inner).unwrap_or_default().to_owned())
    }

    /// Adds a value. Returns what it says alone, if it is a text.
    pub fn push(&mut self, value: &RawValue) -> Option<String> {
        self.0.push_str(inner(value.get())?);
        text(value.get())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what they say together.
    pub fn text(&self) -> String {
        text(&format!("\"{}\"", self.0)).unwrap_or_default()
    }

    /// Returns the text as JSON. Half of a surrogate pair, which is no character, is replaced: no request may hold it.
    pub fn written(&self) -> String {
        quoted(&self.text())
    }
}

fn inner(json: &str) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"')
}

/// Reads a text from JSON that is valid. Half of a surrogate pair is replaced by U+FFFD.
pub(crate) fn text(json: &str) -> Option<String> {
    if !json.starts_with('"') {
        return None;
    }
    if let Ok(text) = serde_json::from_str(json) {
        return Some(text);
    }
    let (mut whole, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        whole.push_str(before);
        let length = match (unit(escape), unit(escape.get(6..).unwrap_or_default())) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => {
                whole.push_str("\\ufffd");
                rest = &escape[6..];
                continue;
            }
            (Some(_), _) => 6,
            (None, _) => 2,
        };
        whole.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    whole.push_str(rest);
    serde_json::from_str(&whole).ok()
}

/// Returns the unit of UTF-16 that an escape at the beginning stands for.
fn unit(escape: &str) -> Option<u16> {
    u16::from_str_radix(escape.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// Returns a text as JSON.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text is written without errors")
}

/// Returns a text that is known to be JSON as a raw value.
pub(crate) fn raw(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("JSON that this crate has written")
}

/// Reads the items of a list to the letter.
pub(crate) fn items(text: &str) -> serde_json::Result<Vec<Box<RawValue>>> {
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_comes_back_to_the_letter_but_for_what_was_set() {
        let mut fields =
            Fields::parse(r#"{"z":1e5,"a": {"b" : 12345678901234567890123},"t":"\u00e9"}"#).unwrap();
        assert_eq!(fields.write(), r#"{"z":1e5,"a":{"b" : 12345678901234567890123},"t":"\u00e9"}"#);
        fields.set("a", raw("[]".to_owned()));
        fields.set("n", raw("null".to_owned()));
        assert_eq!(fields.write(), r#"{"z":1e5,"a":[],"t":"\u00e9","n":null}"#);
        assert_eq!(fields.text("t").as_deref(), Some("é"));
    }

    #[test]
    fn pieces_say_together_what_they_say_wherever_they_are_cut() {
        for (pieces, says, written) in [
            (vec![r#""a\u00e9 ""#, r#""\\\"""#], "aé \\\"", r#""aé \\\"""#),
            (vec![r#""a\u0000""#, r#""b""#], "a\0b", r#""a\u0000b""#),
            // A character that is cut.
            (vec![r#""\ud83d""#, r#""\uDE00!""#], "😀!", r#""😀!""#),
            // No character, between some that are.
            (
                vec![r#""\\\ud83d\ude00\ud83d""#, r#""x\udc00\n""#],
                "\\😀\u{fffd}x\u{fffd}\n",
                "\"\\\\😀\u{fffd}x\u{fffd}\\n\"",
            ),
        ] {
            let mut whole = Pieces::default();
            for piece in pieces {
                assert!(whole.push(&raw(piece.to_owned())).is_some());
            }
            assert_eq!((whole.text().as_str(), whole.written().as_str()), (says, written));
        }
        for other in ["7", "null", "[]"] {
            assert_eq!(Pieces::default().push(&raw(other.to_owned())), None);
        }
    }
}
