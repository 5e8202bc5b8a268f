//! JSON of which two readers cannot think differently: no object has the same key twice, and a number keeps its text.
//!
//! A provider's parser may take the first of two equal keys and ours the last. `{"max_tokens": 1, "max_tokens": 64000}`
//! would then be reserved as one and billed as the other. Likewise a provider may read each of 300 digits, of which a double
//! keeps 17: so a number that a double would be written as otherwise stands here as an object of its own ([`NUMBER`]), and
//! weighs and hashes as its text does.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::io;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// The only key of an object that stands for a number, with the number's text as its value. No request may have it.
const NUMBER: &str = "\0number";
/// The most bytes of a double in JSON, in any language: JavaScript writes 1e20 with 21 and -1.2345678901234567e-6 with 25.
const DOUBLE_BYTES: u64 = 25;

/// Reads a JSON text. Equal keys in one object are an error, at any depth.
pub(crate) fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    let numbers = Numbers { text, at: Cell::new(0), behind: Cell::new(0) };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Unambiguous(&numbers).deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Checks that a text is JSON as a request may have it.
pub fn check_json(text: &str) -> Result<(), serde_json::Error> {
    parse(text.as_bytes()).map(drop)
}

/// The texts of the numbers of a JSON text, in their order. The reader of JSON itself gives their values alone.
struct Numbers<'t> {
    text: &'t [u8],
    /// Where the search for the next one begins.
    at: Cell<usize>,
    /// How many have been read since.
    behind: Cell<usize>,
}

impl<'t> Numbers<'t> {
    /// Notes that a number was read whose text is its value's.
    fn pass(&self) {
        self.behind.set(self.behind.get() + 1);
    }

    /// Returns the text of the number that was just read.
    fn text(&self) -> &'t str {
        for _ in 0..self.behind.take() {
            self.next();
        }
        self.next()
    }

    fn next(&self) -> &'t str {
        let mut at = self.at.get();
        loop {
            match self.text.get(at) {
                None => break,
                Some(b'"') => at = self.behind_string(at + 1),
                Some(b'-' | b'0'..=b'9') => break,
                Some(_) => at += 1,
            }
        }
        let rest = self.text.get(at..).unwrap_or_default();
        let of_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
        let length = rest.iter().position(|byte| !of_number(byte)).unwrap_or(rest.len());
        self.at.set(at + length);
        str::from_utf8(&rest[..length]).unwrap_or_default()
    }

    /// Returns where the string ends whose first character is here.
    fn behind_string(&self, mut at: usize) -> usize {
        while let Some(found) = self.text.get(at..).and_then(|rest| {
            let special = |byte: &u8| matches!(byte, b'"' | b'\\');
            rest.iter().position(special).map(|found| at + found)
        }) {
            if self.text[found] == b'"' {
                return found + 1;
            }
            at = found + 2;
        }
        self.text.len()
    }
}

/// Returns the text of a number that is kept as it was written because a double is written otherwise.
pub(crate) fn number(value: &Value) -> Option<&str> {
    value.as_object().filter(|members| members.len() == 1)?.get(NUMBER)?.as_str()
}

#[derive(Clone, Copy)]
struct Unambiguous<'n, 't>(&'n Numbers<'t>);

impl<'de> DeserializeSeed<'de> for Unambiguous<'_, '_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous<'_, '_> {
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
        self.0.pass();
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.0.pass();
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let text = self.0.text();
        Ok(match Number::from_f64(value).filter(|number| number.to_string() == text) {
            Some(number) => Value::Number(number),
            None => Value::Object(Map::from_iter([(NUMBER.to_owned(), text.into())])),
        })
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = members.next_value_seed(self)?;
            if all.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{key}` is there twice")));
            }
            if key == NUMBER {
                return Err(A::Error::custom("no key may be `\\u0000number`"));
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

/// Returns the most bytes that a value has as compact JSON. A number has those of its text; one with an exponent may be
/// written with more.
pub(crate) fn size(value: &Value) -> u64 {
    let of_number = |text: &str| {
        let least = if text.contains(['e', 'E']) { DOUBLE_BYTES } else { 0 };
        least.max(text.len() as u64)
    };
    let commas = |count: usize| count.saturating_sub(1) as u64;
    match value {
        Value::Null => 4,
        Value::Bool(is) => {
            if *is {
                4
            } else {
                5
            }
        }
        Value::Number(number) => of_number(&number.to_string()),
        Value::String(text) => size_of_string(text),
        Value::Array(items) => 2 + commas(items.len()) + items.iter().map(size).sum::<u64>(),
        Value::Object(members) => match number(value) {
            Some(text) => of_number(text),
            None => {
                let each = |(key, value): (&String, &Value)| size_of_string(key) + 1 + size(value);
                2 + commas(members.len()) + members.iter().map(each).sum::<u64>()
            }
        },
    }
}

fn size_of_string(text: &str) -> u64 {
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
    serde_json::to_writer(&mut count, text).map_or(u64::MAX / 2, |()| count.0)
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
        Value::Object(_) if let Some(text) = number(value) => into.update(text),
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
    fn a_number_weighs_and_hashes_by_its_text() {
        let digits = "9".repeat(308);
        for (text, kept) in [
            ("12345678901234567890123", true),
            (digits.as_str(), true),
            ("1.50", true),
            ("1e5", true),
            ("-0", true),
            ("0.1000000000000000055511151231257827", true),
            ("1.5", false),
            ("-7", false),
            ("18446744073709551615", false),
        ] {
            let (before, after) = (r#"{"1e9":["\\\"2e9\"",3,-4,"5.00",{"n":"#, r#"},6.50,7]}"#);
            let all = format!("{before}{text}{after}");
            let value = parse(all.as_bytes()).expect("valid");
            let read = &value["1e9"][4]["n"];
            assert_eq!(number(read), kept.then_some(text), "{all}");
            assert_eq!(number(&value["1e9"][5]), Some("6.50"), "{all}");
            let more = size(&value) - all.len() as u64;
            assert_eq!(more, if text == "1e5" { DOUBLE_BYTES - 3 } else { 0 }, "{all}");
        }
        let sums = ["9007199254740993.0", "9007199254740992.0", "1e5", "100000.0", "100000", r#""100000""#];
        let sums = sums.map(|text| {
            let mut sum = Sha256::new();
            hash(&parse(text.as_bytes()).expect("valid"), &[], &mut sum);
            sum.finalize()
        });
        for (at, sum) in sums.iter().enumerate() {
            assert!(!sums[..at].contains(sum), "{at}");
        }
        assert!(parse(br#"{"\u0000number":"1"}"#).is_err());
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
