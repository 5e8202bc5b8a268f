//! Text that can be stored and sent: valid UTF-8 without NUL, cut between characters.

use std::borrow::Cow;
use std::error::Error;

/// Returns the text of these bytes. What is no character, and NUL, becomes U+FFFD.
pub fn clean(bytes: &[u8]) -> String {
    clean_text(String::from_utf8_lossy(bytes)).into_owned()
}

/// Replaces NUL, which Postgres cannot hold.
pub fn clean_text(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { text }
}

/// Returns the longest start of a text that has at most so many bytes.
pub fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Returns the longest end of a text that has at most so many bytes.
pub fn tail(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

/// Returns the start of a text with a sign that it was cut, if it was.
pub fn clipped(text: &str, bytes: usize) -> String {
    let start = head(text, bytes);
    if start.len() < text.len() { format!("{start}…") } else { start.to_owned() }
}

/// Says an error with its causes, each once. What has come to more than so many bytes gets no further cause.
pub fn with_causes(error: &dyn Error, bytes: usize) -> String {
    let mut said = clipped(&error.to_string(), bytes);
    let mut next = error.source();
    while let Some(cause) = next
        && said.len() <= bytes
    {
        let text = cause.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {}", clipped(&text, bytes));
        }
        next = cause.source();
    }
    clean_text(said.into()).into_owned()
}

/// Replaces each half of a surrogate pair in a JSON text (`\ud800` alone), which is no character and which no parser
/// takes.
pub fn mend_surrogates(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 6).filter(|escape| escape.starts_with(b"\\u"))?;
        u16::from_str_radix(std::str::from_utf8(&digits[2..]).ok()?, 16).ok()
    };
    let mut mended: Option<String> = None;
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        let Some(code) = unit(at) else {
            at += 2;
            continue;
        };
        let pair = (0xd800..0xdc00).contains(&code)
            && unit(at + 6).is_some_and(|next| (0xdc00..0xe000).contains(&next));
        if pair {
            at += 12;
            continue;
        }
        if (0xd800..0xe000).contains(&code) {
            let mended = mended.get_or_insert_default();
            mended.push_str(&json[copied..at]);
            mended.push_str("\\ufffd");
            copied = at + 6;
        }
        at += 6;
    }
    match mended {
        Some(mut mended) => {
            mended.push_str(&json[copied..]);
            Cow::Owned(mended)
        }
        None => Cow::Borrowed(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_half_character_and_no_nul_is_left() {
        assert_eq!(clean(b"a\0b\xffc\xc3"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!((head("aé", 2), tail("éa", 2)), ("a", "a"));
        assert_eq!((head("aé", 9), tail("éa", 9)), ("aé", "éa"));
        assert_eq!(clipped("abc", 2), "ab…");
    }

    #[test]
    fn only_halves_of_surrogate_pairs_are_mended() {
        for (given, mended) in [
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""\ude00\ud83d\ude00\ud83dx""#, r#""\ufffd\ud83d\ude00\ufffdx""#),
            (r#""\\ud83d é \n""#, r#""\\ud83d é \n""#),
            (r#""\\\ud83d\""#, r#""\\\ufffd\""#),
            (r#"\u"#, r#"\u"#),
            (r#"\ud8"#, r#"\ud8"#),
            ("\\ué…é", "\\ué…é"),
        ] {
            assert_eq!(mend_surrogates(given), mended);
        }
    }
}
