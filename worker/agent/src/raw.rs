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

    /// Returns a value, if it is a text.
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.raw(name)?).ok()
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
}
