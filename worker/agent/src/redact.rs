//! Takes out of what we add to a conversation what no provider is to read: what fits an agent's patterns, and the worker's
//! own keys. It happens before a text is first sent, and never later: a provider checks what it gets back.

use regex::Regex;
use secrecy::{ExposeSecret, SecretString};

/// What stands in its place.
const REDACTED: &str = "[redacted]";
/// Shorter ones are no keys, and would be found everywhere.
const SHORTEST_KEY: usize = 8;

/// What is taken out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redaction {
    patterns: Vec<Regex>,
    keys: Vec<SecretString>,
}

impl Redaction {
    pub fn new(patterns: Vec<Regex>, keys: Vec<SecretString>) -> Redaction {
        let keys = keys.into_iter().filter(|key| key.expose_secret().len() >= SHORTEST_KEY).collect();
        Redaction { patterns, keys }
    }

    /// Returns a text without it, and without what cannot be kept.
    pub fn clean(&self, text: &str) -> String {
        let mut text = crate::answer::storable(text.to_owned());
        for key in &self.keys {
            if text.contains(key.expose_secret()) {
                text = text.replace(key.expose_secret(), REDACTED);
            }
        }
        for pattern in &self.patterns {
            text = pattern.replace_all(&text, REDACTED).into_owned();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_keys_are_taken_out() {
        let patterns = vec![Regex::new(r"\b\d{16}\b").unwrap()];
        let redaction = Redaction::new(patterns, vec!["sk-real-key".into(), "no".into()]);
        let text = redaction.clean("card 4111111111111111, key sk-real-key.\0 no");
        assert_eq!(text, "card [redacted], key [redacted].\u{fffd} no");
    }
}
