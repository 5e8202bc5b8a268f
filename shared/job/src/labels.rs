//! Labels: what a caller writes on a job, so that it and others can find the job by it.
//!
//! A key is 1 to 63 of `A-Z a-z 0-9 . _ - /`, a value 0 to 63 of these and `: @ +`. A job has at most eight, each key
//! once. In lists and on command lines a label is one text, `key=value`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::DecodeError;
use crate::id::clip;

/// Labels of one job, at most.
pub const MAX_LABELS: usize = 8;
/// Bytes of a key or a value, at most.
const MAX_BYTES: usize = 63;

/// The labels of a job, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, String>);

/// One label, as `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: String,
}

impl Labels {
    /// Returns these as the labels of one job.
    pub fn of(labels: impl IntoIterator<Item = Label>) -> Result<Labels, DecodeError> {
        let mut all = Labels::default();
        for Label { key, value } in labels {
            all.add(key, value).map_err(|problem| DecodeError::new("labels", problem))?;
        }
        all.check()?;
        Ok(all)
    }

    /// Reads labels that were checked when the ledger took them in, each as `key=value`.
    pub fn stored(texts: impl IntoIterator<Item = String>) -> Labels {
        let split =
            |text: String| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Labels(texts.into_iter().filter_map(split).collect())
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns each as `key=value`, in the order of the keys.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(key, value)| format!("{key}={value}"))
    }

    /// Returns whether this label is among them.
    pub fn has(&self, label: &Label) -> bool {
        self.0.get(&label.key) == Some(&label.value)
    }

    fn add(&mut self, key: String, value: String) -> Result<(), String> {
        if self.0.contains_key(&key) {
            return Err(format!("got the key \"{}\" twice, expected each key once", escaped(&key)));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Checks their number, keys and values.
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        if self.0.len() > MAX_LABELS {
            let problem = format!("got {}, expected at most {MAX_LABELS}", self.0.len());
            return Err(DecodeError::new("labels", problem));
        }
        for (key, value) in &self.0 {
            check_key(key).map_err(|problem| DecodeError::new("labels", problem))?;
            check_value(value).map_err(|problem| DecodeError::new(format!("labels.{key}"), problem))?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = Labels::default();
                while let Some((key, value)) = map.next_entry()? {
                    labels.add(key, value).map_err(A::Error::custom)?;
                }
                Ok(labels)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Label, String> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| format!("got \"{}\", expected key=value", escaped(text)))?;
        check_key(key)?;
        check_value(value)?;
        Ok(Label { key: key.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

fn check_key(key: &str) -> Result<(), String> {
    if (1..=MAX_BYTES).contains(&key.len()) && key.bytes().all(is_of_keys) {
        return Ok(());
    }
    Err(format!("got the key \"{}\", expected 1 to {MAX_BYTES} of A-Z a-z 0-9 . _ - /", escaped(key)))
}

fn check_value(value: &str) -> Result<(), String> {
    if value.len() <= MAX_BYTES && value.bytes().all(|byte| is_of_keys(byte) || b":@+".contains(&byte)) {
        return Ok(());
    }
    Err(format!("got \"{}\", expected at most {MAX_BYTES} of A-Z a-z 0-9 . _ - / : @ +", escaped(value)))
}

fn is_of_keys(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-/".contains(&byte)
}

fn escaped(text: &str) -> String {
    clip(&text.escape_default().to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_label_is_a_key_and_a_value() {
        for good in ["team=search", "a/b.c_d-e=", "at=2026-01-31T08:00:00+01:00", "by=me@example.com"] {
            assert_eq!(good.parse::<Label>().unwrap().to_string(), good);
        }
        let long = "x".repeat(64);
        for (bad, hint) in [
            ("team", "key=value"),
            ("=search", "the key \"\""),
            ("a b=c", "the key \"a b\""),
            ("a=b c", "\"b c\""),
            ("a=b=c", "\"b=c\""),
            ("a=\u{0}", "\\u{0}"),
            (&format!("{long}=v"), "1 to 63"),
            (&format!("k={long}"), "at most 63"),
        ] {
            let problem = bad.parse::<Label>().unwrap_err();
            assert!(problem.starts_with("got ") && problem.contains(hint), "{bad}: {problem}");
        }
    }

    #[test]
    fn a_job_has_each_key_once_and_at_most_eight() {
        let label = |text: &str| text.parse::<Label>().unwrap();
        let twice = Labels::of([label("k=1"), label("k=2")]).unwrap_err();
        assert!(twice.field == "labels" && twice.problem.contains("\"k\" twice"), "{twice}");
        let many = |count| Labels::of((0..count).map(|n| label(&format!("k{n}=v"))));
        assert!(many(MAX_LABELS).is_ok());
        assert!(many(MAX_LABELS + 1).unwrap_err().problem.contains("at most 8"));
    }

    proptest! {
        #[test]
        fn what_is_written_as_texts_or_as_json_is_read_back(
            entries in proptest::collection::btree_map("[A-Za-z0-9._/-]{1,63}", "[A-Za-z0-9._/:@+-]{0,63}", 0..=8),
        ) {
            let all = entries.iter().map(|(key, value)| format!("{key}={value}").parse::<Label>().unwrap());
            let labels = Labels::of(all.clone()).unwrap();
            prop_assert!(all.into_iter().all(|label| labels.has(&label)));
            prop_assert_eq!(&Labels::stored(labels.texts()), &labels);
            let json = serde_json::to_string(&labels).unwrap();
            prop_assert_eq!(serde_json::from_str::<Labels>(&json).unwrap(), labels);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Label>();
        }
    }
}
