//! How much of a result a checkpoint and a session have room for. Pure.

use tools::{Content, Output};

/// What the model is told in the place of an image.
const NO_IMAGE: &str =
    "[An image is left out, because the session has no room for it now. Ask for fewer at a time.]";
/// A text of so many bytes is never cut: it may say what is wrong.
const SMALL: usize = 1024;
/// What the note in a text that is cut takes, at most.
const NOTE: usize = 128;

/// Returns the bytes of a result's content as JSON, but for its frame.
pub fn bytes(output: &Output) -> usize {
    let bytes = output.content.iter().map(|content| match content {
        Content::Text(text) => written(text),
        Content::Image { data, .. } => data.len(),
    });
    bytes.sum()
}

/// Leaves out what has no room: images as a whole, and of texts the middle.
pub fn fitted(output: Output, mut room: usize) -> Output {
    let content = output.content.into_iter().map(|content| {
        let content = match content {
            Content::Image { data, .. } if data.len() > room => Content::Text(NO_IMAGE.to_owned()),
            Content::Text(text) => Content::Text(cut(text, room.max(SMALL))),
            image @ Content::Image { .. } => image,
        };
        room = room.saturating_sub(match &content {
            Content::Text(text) => written(text),
            Content::Image { data, .. } => data.len(),
        });
        content
    });
    Output { content: content.collect(), ..output }
}

fn written(text: &str) -> usize {
    text.chars().map(escaped).sum()
}

/// Returns the bytes of a character in a text of JSON.
fn escaped(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..'\u{20}' => 6,
        _ => c.len_utf8(),
    }
}

/// Returns a text of at most so many bytes as JSON: all of it, or its head and its tail.
fn cut(text: String, most: usize) -> String {
    if written(&text) <= most {
        return text;
    }
    let half = most.saturating_sub(NOTE) / 2;
    let within = |bytes: &mut usize, c: char| {
        *bytes += escaped(c);
        (*bytes <= half).then(|| c.len_utf8())
    };
    let head: usize = text.chars().scan(0, within).sum();
    let tail: usize = text.chars().rev().scan(0, within).sum();
    let left_out = text.len() - head - tail;
    format!(
        "{}\n[… {left_out} bytes are left out, because the session has no room for them now …]\n{}",
        &text[..head],
        &text[text.len() - tail..]
    )
}

#[cfg(test)]
mod tests {
    use tools::Ended;

    use super::*;
    use crate::raw::quoted;

    fn output(content: Vec<Content>) -> Output {
        Output { content, is_error: false, ended: Ended::Done }
    }

    #[test]
    fn a_text_that_is_cut_has_its_ends_and_fits_whatever_its_letters_are() {
        for letters in ["x", "é", "\u{1}", "\"\n", "a\u{7f}\u{1f}😀"] {
            let text = letters.repeat(20_000);
            assert_eq!(written(&text), quoted(&text).len() - 2, "{letters:?}");
            for most in [1_024, 5_000, 19_999] {
                let cut = cut(text.clone(), most);
                assert!((most - 200..=most).contains(&written(&cut)), "{letters:?}: {}", written(&cut));
                assert!(cut.starts_with(letters) && text.ends_with(&cut[cut.len() - 4..]), "{letters:?}");
                assert!(cut.contains("bytes are left out"), "{letters:?}");
            }
            assert_eq!(cut(text.clone(), written(&text)), text);
        }
    }

    #[test]
    fn what_says_why_stays_where_there_is_no_room() {
        let image = |bytes| Content::Image { media_type: "image/png".to_owned(), data: "A".repeat(bytes) };
        let text = |text: &str| Content::Text(text.to_owned());
        let all = output(vec![text("why"), image(700), image(200), image(90)]);
        assert_eq!(bytes(&all), 993);
        assert_eq!(fitted(all.clone(), 993), all);
        let fits = fitted(all.clone(), 400);
        assert_eq!(fits.content, [text("why"), text(NO_IMAGE), image(200), image(90)]);
        let fits = fitted(all, 0);
        assert_eq!(fits.content, [text("why"), text(NO_IMAGE), text(NO_IMAGE), text(NO_IMAGE)]);
    }
}
