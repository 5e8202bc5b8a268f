//! What a program wrote to stderr at its end.

use crate::redaction::Redaction;
use crate::text;

/// How many lines are kept. Fewer are shown: a secret of several lines is known by those before.
pub const LINES: usize = 128;
/// How much of each line is kept.
pub const LINE_BYTES: usize = 20_000;
/// How many lines are shown.
const SHOWN: usize = 20;
/// How much of each line is shown.
const SHOWN_BYTES: usize = 1_000;

/// Returns the last of these lines, redacted, in at most so many bytes.
pub fn shown(lines: &[String], redaction: &Redaction, bytes: usize) -> String {
    let text = lines.join("\n");
    let mut last = String::new();
    let mut at = text.len();
    for line in lines.iter().rev().take(SHOWN) {
        let start = at - line.len();
        let part = redaction.part(&text, start..start + line.floor_char_boundary(SHOWN_BYTES));
        let between = if last.is_empty() { "" } else { "\n" };
        let room = bytes.saturating_sub(between.len() + last.len());
        let end = text::tail(&part, room);
        if room > 0 {
            last = format!("{end}{between}{last}");
        }
        if end.len() < part.len() {
            break;
        }
        at = start.saturating_sub(1);
    }
    last
}
