//! The lines of text files that match a pattern.

use std::io::{BufRead, BufReader, Read};

use cap_std::fs::{Dir, DirEntry, OpenOptions, OpenOptionsExt};
use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use super::Bounds;
use super::walk::{glob, walk};
use crate::text;
use crate::workspace::Workspace;

/// How many lines are shown.
const SHOWN: usize = 500;
/// How much of a line is shown.
const LINE_BYTES: usize = 400;
/// How much of a line is looked at.
const MATCHED_BYTES: u64 = 64 * 1024;
/// How much a pattern may take, compiled.
const PATTERN_BYTES: usize = 1024 * 1024;

#[derive(Deserialize)]
pub struct Search {
    pattern: String,
    glob: Option<String>,
    #[serde(default)]
    ignore_case: bool,
    path: Option<String>,
}

/// Finds lines.
pub fn search(workspace: &Workspace, search: &Search, bounds: &Bounds) -> Result<String, String> {
    let mut pattern = RegexBuilder::new(&search.pattern);
    pattern.case_insensitive(search.ignore_case).size_limit(PATTERN_BYTES);
    let pattern = pattern.build().map_err(|error| format!("pattern: {error}."))?;
    let names = search.glob.as_deref().map(glob).transpose()?;
    let path = search.path.as_deref().unwrap_or(".");
    let mut lines = Vec::new();
    let mut bytes = 0;
    let whole = walk(workspace, path, bounds, |folder, entry, within| {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || names.as_ref().is_some_and(|names| !names.is_match(within)) {
            return Ok(true);
        }
        let found = |number: usize, line: &[u8]| {
            let line = bounds.redaction.clipped(text::clean(line).trim_end(), LINE_BYTES);
            lines.push(format!("{}:{number}: {line}", within.display()));
            bytes += LINE_BYTES.min(line.len()) + 20;
            lines.len() < SHOWN && bytes < 4 * bounds.shown
        };
        matching(folder, entry, &pattern, bounds, found)
    })?;
    if lines.is_empty() {
        lines.push("(nothing found)".to_owned());
    }
    if !whole {
        lines.push("[… there may be more: look in a folder, or for less …]".to_owned());
    }
    Ok(lines.join("\n"))
}

/// Passes the matching lines of a file to `found`, until it returns false. What is no text is left out.
fn matching(
    folder: &Dir,
    entry: &DirEntry,
    pattern: &Regex,
    bounds: &Bounds,
    mut found: impl FnMut(usize, &[u8]) -> bool,
) -> Result<bool, String> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_NONBLOCK | O_NOCTTY | O_NOFOLLOW);
    let Ok(file) = folder.open_with(entry.file_name(), &options) else { return Ok(true) };
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return Ok(true);
    }
    let mut file = BufReader::with_capacity(64 * 1024, file);
    let mut line = Vec::new();
    for number in 1.. {
        bounds.check()?;
        line.clear();
        let Ok(got) = (&mut file).take(MATCHED_BYTES).read_until(b'\n', &mut line) else { return Ok(true) };
        if got == 0 || line.contains(&0) {
            return Ok(true);
        }
        let whole = line.ends_with(b"\n");
        if pattern.is_match(line.strip_suffix(b"\n").unwrap_or(&line)) && !found(number, &line) {
            return Ok(false);
        }
        if !whole && got as u64 == MATCHED_BYTES && !skip_line(&mut file, bounds)? {
            return Ok(true);
        }
    }
    Ok(true)
}

/// Skips the rest of a line. Returns whether the file goes on.
fn skip_line(file: &mut impl BufRead, bounds: &Bounds) -> Result<bool, String> {
    loop {
        bounds.check()?;
        let Ok(chunk) = file.fill_buf() else { return Ok(false) };
        if chunk.is_empty() {
            return Ok(false);
        }
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let used = newline.map_or(chunk.len(), |at| at + 1);
        file.consume(used);
        if newline.is_some() {
            return Ok(true);
        }
    }
}
