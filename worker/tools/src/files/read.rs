//! The text of a file, or a part of it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read as _};
use std::ops::RangeInclusive;

use serde::Deserialize;

use super::{Bounds, open, refused};
use crate::redaction::Redaction;
use crate::text;
use crate::workspace::Workspace;

/// What the note at the end takes, at most.
const NOTE_BYTES: usize = 256;

#[derive(Deserialize)]
pub struct Read {
    path: String,
    offset: Option<u64>,
    limit: Option<u64>,
}

/// Lines of a file, and what stands around them: a secret may begin before them, or end behind them.
#[derive(Default)]
struct Lines {
    before: VecDeque<u8>,
    shown: Vec<u8>,
    after: Vec<u8>,
    /// The line in which the room ended.
    cut: Option<u64>,
    /// Whether there are others behind the last one that was asked for.
    more: bool,
    /// How many lines were read.
    count: u64,
}

/// Shows a file from a line on.
pub fn read(workspace: &Workspace, read: &Read, bounds: &Bounds) -> Result<String, String> {
    let file = open(workspace, &read.path)?;
    let size = file.metadata().map_err(|error| refused(&read.path, &error))?.len();
    let first = read.offset.unwrap_or(1);
    let last = first.saturating_add(read.limit.unwrap_or(u64::MAX)).saturating_sub(1);
    let room = bounds.shown.saturating_sub(NOTE_BYTES);
    let path = &read.path;
    let mut file = BufReader::with_capacity(64 * 1024, file);
    let Some(mut lines) =
        lines(&mut file, first..=last, room, bounds).map_err(|error| refused(path, &error))?
    else {
        return Err(format!("{path} holds {size} bytes that are no text."));
    };
    bounds.check()?;
    if let Some(at) = lines.cut.filter(|at| *at > first) {
        let whole = lines.shown.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        lines.after.splice(..0, lines.shown.split_off(whole));
        let note = format!("[… {path} goes on: read it with offset = {at} …]");
        return Ok(lines.redacted(&bounds.redaction, room) + &note);
    }
    if lines.cut.is_some() {
        let note = format!(
            "\n[… this line of {path} is longer than can be shown; offset = {} is the next …]",
            first + 1
        );
        return Ok(lines.redacted(&bounds.redaction, room) + &note);
    }
    if lines.shown.is_empty() {
        let what = if lines.count == 0 && size == 0 { "is empty" } else { "has no line there" };
        return Ok(format!("({path} {what})"));
    }
    let note = if lines.more {
        format!("[… {path} goes on: read it with offset = {} …]", last + 1)
    } else {
        String::new()
    };
    Ok(lines.redacted(&bounds.redaction, room) + &note)
}

/// Reads these lines, as far as there is room. Returns nothing for what is no text.
fn lines(
    file: &mut impl BufRead,
    wanted: RangeInclusive<u64>,
    room: usize,
    bounds: &Bounds,
) -> io::Result<Option<Lines>> {
    let around = bounds.redaction.around();
    let mut lines = Lines::default();
    while bounds.check().is_ok() {
        let chunk = file.fill_buf()?;
        if chunk.contains(&0) {
            return Ok(None);
        }
        let line = lines.count + 1;
        lines.more = !chunk.is_empty() && line > *wanted.end();
        if chunk.is_empty() || lines.more {
            break;
        }
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let piece = &chunk[..newline.map_or(chunk.len(), |at| at + 1)];
        let mut used = piece.len();
        if wanted.contains(&line) {
            used = used.min(room - lines.shown.len());
            lines.shown.extend_from_slice(&piece[..used]);
        } else {
            lines.before.extend(&piece[piece.len().saturating_sub(around)..]);
            lines.before.drain(..lines.before.len().saturating_sub(around));
        }
        lines.cut = (used < piece.len()).then_some(line);
        file.consume(used);
        if lines.cut.is_some() {
            break;
        }
        lines.count += u64::from(newline.is_some());
    }
    file.take(around as u64).read_to_end(&mut lines.after)?;
    Ok(Some(lines))
}

impl Lines {
    /// Returns the text, which takes no more room even if much of it is no text.
    fn redacted(&mut self, redaction: &Redaction, room: usize) -> String {
        let mut text = text::clean(self.before.make_contiguous());
        let start = text.len();
        text.push_str(&text::clean(&self.shown));
        let end = text.len();
        text.push_str(&text::clean(&self.after));
        text::head(&redaction.part(&text, start..end), room).to_owned()
    }
}
