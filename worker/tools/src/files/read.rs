//! The text of a file, or a part of it.

use std::io::{BufRead, BufReader};

use serde::Deserialize;

use super::{Bounds, open, refused};
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

/// Shows a file from a line on.
pub fn read(workspace: &Workspace, read: &Read, bounds: &Bounds) -> Result<String, String> {
    let file = open(workspace, &read.path)?;
    let size = file.metadata().map_err(|error| refused(&read.path, &error))?.len();
    let mut file = BufReader::with_capacity(64 * 1024, file);
    let first = read.offset.unwrap_or(1);
    let last = first.saturating_add(read.limit.unwrap_or(u64::MAX)).saturating_sub(1);
    let room = bounds.shown.saturating_sub(NOTE_BYTES);
    let mut shown = Vec::new();
    let mut line = 1;
    // The line in which the room ended.
    let mut cut = None;
    let mut more = false;
    loop {
        bounds.check()?;
        let chunk = file.fill_buf().map_err(|error| refused(&read.path, &error))?;
        if chunk.is_empty() {
            break;
        }
        if chunk.contains(&0) {
            return Err(format!("{} holds {size} bytes that are no text.", read.path));
        }
        if line > last {
            more = true;
            break;
        }
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let piece = &chunk[..newline.map_or(chunk.len(), |at| at + 1)];
        if line >= first {
            let fits = piece.len().min(room - shown.len());
            shown.extend_from_slice(&piece[..fits]);
            if fits < piece.len() {
                cut = Some(line);
                break;
            }
        }
        let used = piece.len();
        file.consume(used);
        line += u64::from(newline.is_some());
    }
    let path = &read.path;
    if let Some(at) = cut.filter(|at| *at > first) {
        let whole = shown.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        shown.truncate(whole);
        let note = format!("[… {path} goes on: read it with offset = {at} …]");
        return Ok(cleaned(&shown, room) + &note);
    }
    if cut.is_some() {
        let note = format!(
            "\n[… this line of {path} is longer than can be shown; offset = {} is the next …]",
            first + 1
        );
        return Ok(cleaned(&shown, room) + &note);
    }
    if shown.is_empty() {
        let lines = if line == 1 && size == 0 { "is empty" } else { "has no line there" };
        return Ok(format!("({path} {lines})"));
    }
    let note = if more {
        format!("[… {path} goes on: read it with offset = {} …]", last + 1)
    } else {
        String::new()
    };
    Ok(cleaned(&shown, room) + &note)
}

/// Returns text that takes no more room even if much of it is no text.
fn cleaned(bytes: &[u8], room: usize) -> String {
    text::head(&text::clean(bytes), room).to_owned()
}
