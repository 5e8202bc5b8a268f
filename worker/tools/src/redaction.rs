//! Takes out of texts what no provider is to read: what fits an agent's patterns, and the worker's own keys. It happens
//! before a text is cut, with what stands around the cut: half of a key fits nothing any more.

use std::ops::Range;

use regex::Regex;
use secrecy::{ExposeSecret, SecretString};

use crate::text;

/// What stands in its place.
const REDACTED: &str = "[redacted]";
/// Shorter ones are no keys, and would be found everywhere.
const SHORTEST_KEY: usize = 8;
/// How far around a cut is looked for what fits a pattern, in bytes.
const AROUND: usize = 16 * 1024;

/// What is taken out.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    patterns: Vec<Regex>,
    keys: Vec<SecretString>,
}

impl Redaction {
    /// Takes out what fits these patterns, and these keys.
    pub fn new(patterns: Vec<Regex>, keys: Vec<SecretString>) -> Redaction {
        let keys = keys.into_iter().filter(|key| key.expose_secret().len() >= SHORTEST_KEY).collect();
        Redaction { patterns, keys }
    }

    /// Returns a text without it, and without what cannot be kept.
    pub fn clean(&self, text: &str) -> String {
        let text = text::clean_text(text.into());
        self.part(&text, 0..text.len())
    }

    /// Returns how much of a text has to be known around a cut, in bytes.
    pub(crate) fn around(&self) -> usize {
        let longest = self.keys.iter().map(|key| key.expose_secret().len()).max();
        longest.unwrap_or(0).max(if self.patterns.is_empty() { 0 } else { AROUND })
    }

    /// Returns the start of a text that has at most so many bytes, without it.
    pub(crate) fn head(&self, text: &str, bytes: usize) -> String {
        let start = self.part(text, 0..text::head(text, bytes).len());
        text::head(&start, bytes).to_owned()
    }

    /// Returns the end of a text that has at most so many bytes, without it.
    pub(crate) fn tail(&self, text: &str, bytes: usize) -> String {
        let end = self.part(text, text.len() - text::tail(text, bytes).len()..text.len());
        text::tail(&end, bytes).to_owned()
    }

    /// Returns the start of a text without it, with a sign that it was cut, if it was.
    pub(crate) fn clipped(&self, text: &str, bytes: usize) -> String {
        let start = self.head(text, bytes);
        if text.len() > bytes { start + "…" } else { start }
    }

    /// Returns a part of a text without what is to be taken out of the text. What it has a piece of is taken out as a whole.
    pub(crate) fn part(&self, text: &str, part: Range<usize>) -> String {
        let mut cleaned = String::with_capacity(part.len());
        let mut at = part.start;
        for found in self.found(text) {
            if found.end <= part.start || found.start >= part.end {
                continue;
            }
            cleaned.push_str(&text[at..found.start.max(at)]);
            cleaned.push_str(REDACTED);
            at = found.end.min(part.end);
        }
        cleaned.push_str(&text[at..part.end]);
        cleaned
    }

    /// Returns where it is, in order. What overlaps is one.
    fn found(&self, text: &str) -> Vec<Range<usize>> {
        let keys = self.keys.iter().flat_map(|key| {
            let key = key.expose_secret();
            text.match_indices(key).map(|(at, key)| at..at + key.len())
        });
        let patterns = self.patterns.iter().flat_map(|pattern| pattern.find_iter(text));
        let mut all: Vec<Range<usize>> = keys.chain(patterns.map(|found| found.range())).collect();
        all.retain(|found| !found.is_empty());
        all.sort_unstable_by_key(|found| found.start);
        all.dedup_by(|next, found| {
            let overlaps = next.start < found.end;
            if overlaps {
                found.end = found.end.max(next.end);
            }
            overlaps
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redaction(patterns: &[&str], keys: &[&str]) -> Redaction {
        let patterns = patterns.iter().map(|pattern| Regex::new(pattern).unwrap()).collect();
        Redaction::new(patterns, keys.iter().map(|key| SecretString::from(*key)).collect())
    }

    #[test]
    fn patterns_and_keys_are_taken_out() {
        let redaction = redaction(&[r"\b\d{16}\b", r"real\S*", "x*"], &["sk-real-key", "no"]);
        let text = redaction.clean("card 4111111111111111, key sk-real-key.\0 no sk-real-key");
        assert_eq!(text, "card [redacted], key [redacted] no [redacted]");
    }

    #[test]
    fn no_cut_leaves_a_piece_of_it() {
        let redaction = redaction(&[r"\d{16}"], &["sk-real-key"]);
        let text = "é sk-real-key é 4111111111111111 é";
        for bytes in 0..text.len() + 2 {
            for shown in
                [redaction.head(text, bytes), redaction.tail(text, bytes), redaction.clipped(text, bytes)]
            {
                assert!(shown.len() <= bytes + "…".len(), "{bytes}: {shown}");
                let left = shown.replace("[redacted]", "").replace("redacted", "");
                assert!(!left.contains(['k', '1', '4']), "{bytes}: {shown}");
            }
        }
        assert_eq!(redaction.head(text, text.len()), "é [redacted] é [redacted] é");
        assert_eq!(redaction.head(text, 13), "é [redacted]");
    }
}
