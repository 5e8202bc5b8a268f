//! Finds the place in a JSON text that cannot be kept, so that an error can name it.
//!
//! `job::Json` decides what Postgres can hold; this module only finds where the problem is. Memory and progress have a
//! stricter rule: they are parsed, and their numbers must come back unchanged.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use job::{Json, JsonError};
use serde_json::value::RawValue;

/// Describes the first place that cannot be held, and why, such as `memory.notes[3]: a string contains \u0000 …`.
pub fn describe(text: &str) -> String {
    let refused = |text: &str| Json::parse(text).err();
    match refused(text) {
        None => "nothing is wrong with it".to_owned(),
        Some(error) => named(descend(text, error, &refused)),
    }
}

/// Describes the first number in these fields of an object that would not come back unchanged: `memory.wei: …`. A
/// number is kept as a 64-bit integer, or else as a double. `digits` says whether a number that a double would round
/// is refused as well, or only one that a double cannot hold at all.
pub fn lost_number(text: &str, fields: &[&str], digits: bool) -> Option<String> {
    let lost =
        |text: &str| numbers(text).find_map(|number| lost(number).filter(|lost| digits || !lost.rounded));
    let given = children(text).into_iter().filter(|(step, _)| fields.contains(&&step[1..]));
    given.into_iter().find_map(|(step, raw)| {
        let (rest, lost) = descend(raw.get(), lost(raw.get())?, &lost);
        Some(named((step + &rest, lost)))
    })
}

fn named((path, error): (String, impl Display)) -> String {
    let path = path.trim_start_matches('.');
    if path.is_empty() { error.to_string() } else { format!("{path}: {error}") }
}

/// Follows the first child that would be refused on its own, down to the innermost.
fn descend<E: Refusal>(text: &str, error: E, refused: &impl Fn(&str) -> Option<E>) -> (String, E) {
    let child =
        children(text).into_iter().find_map(|(step, raw)| refused(raw.get()).map(|error| (step, raw, error)));
    match child {
        None => (String::new(), error),
        Some((step, _, error)) if error.is_of_the_whole() => (step, error),
        Some((step, raw, error)) => {
            let (rest, error) = descend(raw.get(), error, refused);
            (step + &rest, error)
        }
    }
}

trait Refusal: Display {
    /// Returns whether the whole value is the cause, and nothing further down. Every other refusal is within `Json`'s
    /// depth, so the search for it is bounded.
    fn is_of_the_whole(&self) -> bool;
}

impl Refusal for JsonError {
    fn is_of_the_whole(&self) -> bool {
        matches!(self, JsonError::TooDeep)
    }
}

/// A number that would come back changed.
struct Lost {
    number: String,
    rounded: bool,
}

impl Refusal for Lost {
    fn is_of_the_whole(&self) -> bool {
        false
    }
}

impl Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number: String = self.number.chars().take(60).collect();
        let more = if number.len() < self.number.len() { "…" } else { "" };
        if self.rounded {
            write!(f, "{number}{more} has more digits than the {DIGITS} that are kept; write it as a string")
        } else {
            write!(f, "{number}{more} is past the numbers that are kept (about 1e-308 to 1e308)")
        }
    }
}

/// How many significant digits a double has, at most, in the usual ways of writing it.
const DIGITS: usize = 17;

fn lost(number: &str) -> Option<Lost> {
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return None;
    }
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_start_matches('0').trim_end_matches('0').len();
    let value: f64 = number.parse().unwrap_or(f64::INFINITY);
    let held = value.is_finite() && (value != 0.0 || digits == 0);
    (!held || digits > DIGITS).then(|| Lost { number: number.to_owned(), rounded: held })
}

/// Returns the numbers in a text that is known to be JSON.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            rest = &rest[start..];
            if !rest.starts_with('"') {
                let end = rest.find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(rest.len());
                let (number, after) = rest.split_at(end);
                rest = after;
                return Some(number);
            }
            let mut escaped = true;
            let end = rest.bytes().position(|byte| {
                let closes = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                closes
            });
            rest = &rest[end? + 1..];
        }
    })
}

/// Returns the values one level down. There are none if a key is the cause and cannot even be read.
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

    #[test]
    fn a_number_that_would_come_back_as_another_is_named() {
        let line = |value: &str| format!(r#"{{"a":1e400,"memory":{{"n":["1e400 \"",{{"wei":{value}}}]}}}}"#);
        for lost in [
            "123456789012345678901234567890",
            "12345678901234567890.12",
            "-18446744073709551616.5",
            "0.123456789012345678901",
        ] {
            let said = lost_number(&line(lost), &["memory"], true).unwrap();
            assert!(said.starts_with(&format!("memory.n[1].wei: {lost} has more digits")), "{said}");
            assert_eq!(lost_number(&line(lost), &["memory"], false), None);
        }
        for past in ["1e309", "-1E512", "1e-400", &format!("1{}", "0".repeat(400))] {
            for digits in [true, false] {
                let said = lost_number(&line(past), &["memory"], digits).unwrap();
                assert!(said.starts_with("memory.n[1].wei: ") && said.contains(" is past "), "{said}");
            }
        }
        for kept in [
            "9007199254740993",
            "18446744073709551615",
            "-9223372036854775808",
            "0.1",
            "1e308",
            "100000000000000000000",
            "0.10000000000000001",
            "5.6843418860808015E-14",
            "0",
            "-0.0",
            "0e999",
        ] {
            assert_eq!(lost_number(&line(kept), &["memory"], true), None, "{kept}");
        }
        assert_eq!(lost_number(r#""a""#, &["memory"], true), None);
    }
}
