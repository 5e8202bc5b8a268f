//! Text from an unknown author, made safe for a terminal and for a single line.

use std::borrow::Cow;

/// Whether a terminal would act on this character, or show others in another order or place because of it. These are
/// control characters, line and paragraph separators, and those that set the writing direction (Unicode,
/// `Bidi_Control`).
fn acts(character: char) -> bool {
    let directs = matches!(character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || directs || matches!(character, '\u{2028}' | '\u{2029}')
}

/// Returns the text with such characters as escapes, such as `\u{1b}`. Text from outside reaches no terminal without
/// this.
pub fn shown(text: &str) -> Cow<'_, str> {
    escape(text, acts)
}

/// As [`shown`], but keeps line ends and tabs: for text of many lines.
pub fn shown_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| acts(character) && !matches!(character, '\n' | '\t'))
}

fn escape(text: &str, acts: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            _ if !acts(character) => shown.push(character),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            _ => shown.extend(character.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

/// Makes JSON one line for every reader. Some readers take U+0085, U+2028 and U+2029 for line ends as well, and
/// terminals act on more characters that JSON leaves as they are. Such characters occur only in strings, where an
/// escape means the same text. Between values, a line end is only white space.
pub fn one_line(json: String) -> String {
    escaped(json, ' ')
}

/// As [`one_line`], but keeps the line ends between values, for people.
pub fn pretty_lines(json: String) -> String {
    escaped(json, '\n')
}

fn escaped(json: String, between_lines: char) -> String {
    let stays = |character: char| !acts(character) || character == '\t' || character == between_lines;
    if json.chars().all(stays) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        match character {
            '\n' => escaped.push(between_lines),
            '\r' => escaped.push(' '),
            // All of them are in the Basic Multilingual Plane, so four digits are enough.
            _ if !stays(character) => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_would_act_on_is_written_as_an_escape() {
        assert_eq!(
            shown("boom\u{1b}[2J\u{7}\rSUCCEEDED\u{202e}txt\u{9b}31m\n\té\u{2028}"),
            "boom\\u{1b}[2J\\u{7}\\rSUCCEEDED\\u{202e}txt\\u{9b}31m\\n\\té\\u{2028}"
        );
        assert!(matches!(shown("plain é 😀 שלום"), Cow::Borrowed(_)));
        assert_eq!(shown_lines("one\n\ttwo\r\u{1b}[2J"), "one\n\ttwo\\r\\u{1b}[2J");
    }

    proptest! {
        #[test]
        fn no_text_acts_when_it_is_shown(text in any::<String>()) {
            prop_assert!(!shown(&text).contains(acts));
        }

        #[test]
        fn json_on_one_line_is_the_same_value(text in any::<String>(), control in "[\u{7f}-\u{9f}\u{2028}-\u{202e}]{0,9}") {
            let value = serde_json::json!({&text: [&control, &text]});
            for json in [value.to_string(), format!("{value:#}").replace('\n', "\r\n")] {
                let line = one_line(json);
                prop_assert!(!line.contains(acts));
                prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&line).unwrap(), &value);
            }
            let lines = pretty_lines(format!("{value:#}"));
            prop_assert!(lines.lines().count() > 3 && !lines.replace('\n', "").contains(acts));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&lines).unwrap(), value);
        }
    }
}
