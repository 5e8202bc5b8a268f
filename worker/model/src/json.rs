//! JSON of which two readers cannot think differently: no object has the same key twice.
//!
//! A provider's parser may take the first of two equal keys and ours the last. `{"max_tokens": 1, "max_tokens": 64000}`
//! would then be reserved as one and billed as the other.

use std::collections::HashMap;
use std::fmt;
use std::io;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// Reads a JSON text. Equal keys in one object are an error, at any depth.
pub(crate) fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Unambiguous.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Checks that a text is JSON as a request may have it.
pub fn check_json(text: &str) -> Result<(), serde_json::Error> {
    parse(text.as_bytes()).map(drop)
}

struct Unambiguous;

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Unambiguous)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = members.next_value_seed(Unambiguous)?;
            if all.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{key}` is there twice")));
            }
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

/// Returns a JSON object with this value, as JSON, in the field of this name. No other byte of it changes.
pub(crate) fn with_field(object: &Bytes, name: &str, value: &str) -> Result<Bytes, serde_json::Error> {
    let fields: HashMap<String, &RawValue> = serde_json::from_slice(object)?;
    let splice = |from: usize, to: usize, text: &str| {
        Bytes::from([&object[..from], text.as_bytes(), &object[to..]].concat())
    };
    if let Some(given) = fields.get(name) {
        // The raw value is a piece of the object, so its address says where it begins.
        let from = given.get().as_ptr() as usize - object.as_ptr() as usize;
        return Ok(splice(from, from + given.get().len(), value));
    }
    let begin = object.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
    let comma = if fields.is_empty() { "" } else { "," };
    Ok(splice(begin, begin, &format!("{}:{value}{comma}", Value::from(name))))
}

/// Returns how many bytes a value has as compact JSON.
pub(crate) fn size(value: &Value) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).map_or(u64::MAX, |()| count.0)
}

/// Adds a value to a hash, without the members of objects that are named in `left_out`.
pub(crate) fn hash(value: &Value, left_out: &[&str], into: &mut Sha256) {
    match value {
        Value::Array(items) => {
            into.update(b"[");
            for item in items {
                hash(item, left_out, into);
                into.update(b",");
            }
            into.update(b"]");
        }
        // A map of serde_json is sorted by key, so the order in which a program writes them does not matter.
        Value::Object(members) => {
            into.update(b"{");
            for (key, member) in members.iter().filter(|(key, _)| !left_out.contains(&key.as_str())) {
                into.update((key.len() as u64).to_be_bytes());
                into.update(key);
                hash(member, left_out, into);
            }
            into.update(b"}");
        }
        Value::String(text) => {
            into.update(b"\"");
            into.update((text.len() as u64).to_be_bytes());
            into.update(text);
        }
        other => into.update(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_are_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"b":[{"a":1,"a":1}]}"#, r#"{"a":1,"\u0061":2}"#] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(error.to_string().contains("the key `a` is there twice"), "{error}");
        }
        assert_eq!(parse(br#"{"a":{"a":[1,-2,1.5,null,true,"x"]}}"#).expect("valid")["a"]["a"][2], 1.5);
        assert!(parse(b"{} {}").is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn a_field_is_set_and_no_other_byte_changes() {
        for (object, expected) in [
            (r#" {"b":1.50, "a" : null,"c":{"a":2}}"#, r#" {"b":1.50, "a" : "x","c":{"a":2}}"#),
            (r#"{"\u0061":1,"x":"é"}"#, r#"{"\u0061":"x","x":"é"}"#),
            (r#" { "b":1}"#, r#" {"a":"x", "b":1}"#),
            ("{}", r#"{"a":"x"}"#),
        ] {
            let changed = with_field(&Bytes::from_static(object.as_bytes()), "a", "\"x\"");
            assert_eq!(changed.expect("valid"), expected);
        }
    }

    #[test]
    fn a_hash_sees_every_difference_but_the_order_of_keys() {
        let of = |text: &str| {
            let mut sum = Sha256::new();
            hash(&parse(text.as_bytes()).expect("valid"), &["cache_control"], &mut sum);
            sum.finalize()
        };
        assert_eq!(of(r#"{"a":1,"b":2}"#), of(r#"{"b":2, "a":1}"#));
        assert_eq!(of(r#"{"a":1,"cache_control":{}}"#), of(r#"{"a":1}"#));
        for (one, other) in
            [(r#"["a","b"]"#, r#"["ab"]"#), ("[1]", "[\"1\"]"), ("[[1],2]", "[[1,2]]"), ("{}", "[]")]
        {
            assert_ne!(of(one), of(other), "{one} {other}");
        }
    }
}
