//! The line: where an accepted job waits until it is its turn. Its lane says how soon it is wanted, and its limit keys
//! with whom it shares a bound.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{DecodeError, Name};

/// How soon a job is wanted, beside the others of its pool. While all three have jobs that wait, they have turns in the
/// ratio of their shares, so that none of them starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody waits for it.
    High,
    /// As most are.
    #[default]
    Normal,
    /// It may take its time.
    Low,
}

impl Lane {
    /// All of them, the most wanted first.
    pub const ALL: [Lane; 3] = [Lane::High, Lane::Normal, Lane::Low];

    pub(crate) fn is_default(&self) -> bool {
        *self == Lane::default()
    }

    /// Returns its name in the envelope.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::High => "high",
            Lane::Normal => "normal",
            Lane::Low => "low",
        }
    }

    /// Returns its number in the ledger; a lower one is wanted sooner.
    pub fn number(self) -> i16 {
        match self {
            Lane::High => 1,
            Lane::Normal => 2,
            Lane::Low => 3,
        }
    }

    /// How many turns it has for each turn of the lane `low`.
    pub fn share(self) -> u32 {
        match self {
            Lane::High => 12,
            Lane::Normal => 3,
            Lane::Low => 1,
        }
    }
}

impl FromStr for Lane {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Lane::ALL.into_iter().find(|lane| lane.as_str() == text).ok_or_else(|| {
            format!("got \"{text}\", expected one of {}", Lane::ALL.map(Lane::as_str).join(", "))
        })
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Limit keys of one job, at most.
pub const MAX_LIMIT_KEYS: usize = 4;

/// What a job shares a bound with others by: its limit keys, each once, in order. A key has no bound until an operator sets
/// one for its tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct LimitKeys(BTreeSet<Name>);

impl LimitKeys {
    /// Returns these as the limit keys of one job.
    pub fn of(keys: impl IntoIterator<Item = Name>) -> Result<LimitKeys, DecodeError> {
        let mut all = LimitKeys::default();
        for key in keys {
            all.add(key).map_err(|problem| DecodeError::new("limits", problem))?;
        }
        all.check()?;
        Ok(all)
    }

    fn add(&mut self, key: Name) -> Result<(), String> {
        if self.0.contains(&key) {
            return Err(format!("got \"{key}\" twice, expected each key once"));
        }
        self.0.insert(key);
        Ok(())
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the keys.
    pub fn iter(&self) -> impl Iterator<Item = &Name> {
        self.0.iter()
    }

    /// Returns them as one text: the line in which the job waits, in its tenant and lane. A name has no comma.
    pub fn line(&self) -> String {
        self.0.iter().map(Name::as_str).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        match self.0.len() {
            0..=MAX_LIMIT_KEYS => Ok(()),
            count => {
                let problem = format!("got {count} keys, expected at most {MAX_LIMIT_KEYS}");
                Err(DecodeError::new("limits", problem))
            }
        }
    }
}

impl<'de> Deserialize<'de> for LimitKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = LimitKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LimitKeys, A::Error> {
                let mut keys = LimitKeys::default();
                while let Some(key) = seq.next_element()? {
                    keys.add(key).map_err(A::Error::custom)?;
                }
                Ok(keys)
            }
        }
        deserializer.deserialize_seq(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_make_one_line_in_whatever_order_they_are_given() {
        let keys = |text: &str| serde_json::from_str::<LimitKeys>(text);
        assert_eq!(keys(r#"["b","a"]"#).unwrap().line(), "a,b");
        assert_eq!(keys("[]").unwrap(), LimitKeys::default());
        assert!(keys(r#"["a","a"]"#).unwrap_err().to_string().contains("twice"));
        assert!(keys(r#"["a,b"]"#).is_err(), "a name has no comma");
        assert!(keys(r#"["a","b","c","d","e"]"#).unwrap().check().unwrap_err().problem.contains("at most 4"));
        assert_eq!(
            "urgent".parse::<Lane>().unwrap_err(),
            "got \"urgent\", expected one of high, normal, low"
        );
    }
}
