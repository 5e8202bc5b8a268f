//! An error on one line, with its causes.

use std::error::Error;

/// Returns the error and its causes, each once. Errors of many libraries already end with the text of their cause.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !says(&said, &text) {
            // If what was said so far ends with the beginning of this cause, only the rest is appended.
            let begins = text.match_indices(": ").map(|(end, _)| end);
            match begins.filter(|end| ends_with(&said, &text[..*end])).max() {
                Some(end) => said.push_str(&text[end..]),
                None => said = format!("{said}: {text}"),
            }
        }
        next = cause.source();
    }
    said
}

/// Whether `said` contains this text as a whole part, possibly in brackets. An error may show its causes itself.
fn says(said: &str, text: &str) -> bool {
    said.match_indices(text).any(|(at, _)| {
        let (before, after) = (&said[..at], &said[at + text.len()..]);
        (before.is_empty() || before.ends_with(": ") || before.ends_with('('))
            && (after.is_empty() || after.starts_with(": ") || after.starts_with(')'))
    })
}

/// Whether the last part of `said` is this text, and not only its last letters.
fn ends_with(said: &str, text: &str) -> bool {
    said.strip_suffix(text).is_some_and(|before| before.is_empty() || before.ends_with(": "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn no_cause_is_said_twice() {
        let chain = |causes: &[&'static str]| {
            let (last, outer) = causes.split_last().unwrap();
            let error = outer.iter().rev().fold(anyhow!(*last), |error, text| error.context(*text));
            with_causes(error.as_ref())
        };
        let refused = "Connection refused (os error 111)";
        for (causes, expected) in [
            (
                &["reading a job", "Postgres is away", refused][..],
                "reading a job: Postgres is away: Connection refused (os error 111)",
            ),
            (
                &["asking: Connection refused (os error 111)", refused],
                "asking: Connection refused (os error 111)",
            ),
            (
                &[
                    "making one: error connecting",
                    "error connecting: Connection refused (os error 111)",
                    refused,
                ],
                "making one: error connecting: Connection refused (os error 111)",
            ),
            (&["a: b: c", "b: c", "c"], "a: b: c"),
            (&["a (b: c), d", "b: c", "c"], "a (b: c), d"),
            (&["alone"], "alone"),
            // A text that only occurs inside a part is appended nevertheless.
            (&["timeout of job 15", "timeout", "5"], "timeout of job 15: timeout: 5"),
            (&["terror", "error: away"], "terror: error: away"),
        ] {
            assert_eq!(chain(causes), expected);
        }
    }
}
