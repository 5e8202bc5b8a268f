//! Folders of the workspace, and what lies below them. Links are shown, and never followed.

use std::path::{Path, PathBuf};

use cap_std::fs::{Dir, DirEntry};
use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;

use super::{Bounds, refused, relative};
use crate::workspace::Workspace;

/// How much of a folder is listed.
const LISTED: usize = 2_000;
/// How many files are found.
const FOUND: usize = 1_000;
/// How many files and folders are looked at.
const LOOKED_AT: usize = 200_000;
/// How deep folders are looked into.
const DEPTH: usize = 64;

#[derive(Deserialize)]
pub struct List {
    path: Option<String>,
}

#[derive(Deserialize)]
pub struct Find {
    glob: String,
    path: Option<String>,
}

/// Lists a folder.
pub fn list(workspace: &Workspace, list: &List, bounds: &Bounds) -> Result<String, String> {
    let path = list.path.as_deref().unwrap_or(".");
    let folder = folder(workspace, path)?;
    let mut lines = Vec::new();
    let mut more = false;
    for entry in folder.entries().map_err(|error| refused(path, &error))? {
        bounds.check()?;
        let entry = entry.map_err(|error| refused(path, &error))?;
        if lines.len() == LOOKED_AT {
            more = true;
            break;
        }
        lines.push(line(&entry));
    }
    lines.sort();
    more |= lines.len() > LISTED;
    lines.truncate(LISTED);
    if lines.is_empty() {
        return Ok(format!("({path} is empty)"));
    }
    if more {
        lines.push(format!("[… only {LISTED} are shown …]"));
    }
    Ok(lines.join("\n"))
}

fn line(entry: &DirEntry) -> String {
    let name = entry.file_name().to_string_lossy().into_owned();
    match entry.metadata() {
        Ok(about) if about.is_dir() => format!("{name}/"),
        Ok(about) if about.is_symlink() => format!("{name}@"),
        Ok(about) if about.is_file() => format!("{name} {} bytes", about.len()),
        _ => format!("{name} (no file)"),
    }
}

/// Finds files by their paths.
pub fn find(workspace: &Workspace, find: &Find, bounds: &Bounds) -> Result<String, String> {
    let glob = glob(&find.glob)?;
    let path = find.path.as_deref().unwrap_or(".");
    let mut found = Vec::new();
    let whole = walk(workspace, path, bounds, |_, entry, within| {
        if entry.file_type().is_ok_and(|kind| !kind.is_dir()) && glob.is_match(within) {
            found.push(within.display().to_string());
        }
        Ok(found.len() < FOUND)
    })?;
    found.sort();
    if found.is_empty() {
        found.push("(nothing found)".to_owned());
    }
    if !whole {
        found.push("[… there may be more: look in a folder, or for less …]".to_owned());
    }
    Ok(found.join("\n"))
}

/// Reads a glob. One without a slash is about names, in any folder.
pub fn glob(glob: &str) -> Result<GlobMatcher, String> {
    let anywhere =
        if glob.contains('/') { glob.trim_start_matches("./").to_owned() } else { format!("**/{glob}") };
    let built = GlobBuilder::new(&anywhere).literal_separator(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|error| format!("glob: {}.", error.kind()))
}

fn folder(workspace: &Workspace, path: &str) -> Result<Dir, String> {
    let within = relative(workspace, path)?;
    workspace.dir().open_dir(&within).map_err(|error| refused(path, &error))
}

/// Shows everything below a folder to `visit`, with its path from the folder, until `visit` returns false. Returns
/// whether it was everything.
pub fn walk(
    workspace: &Workspace,
    path: &str,
    bounds: &Bounds,
    mut visit: impl FnMut(&Dir, &DirEntry, &Path) -> Result<bool, String>,
) -> Result<bool, String> {
    let mut waiting = vec![(PathBuf::new(), 0)];
    let root = folder(workspace, path)?;
    let mut looked_at = 0;
    let mut whole = true;
    while let Some((within, depth)) = waiting.pop() {
        // Only one folder is open at a time. One that is gone or closed is left out.
        let opened = if depth == 0 { root.try_clone() } else { root.open_dir(&within) };
        let Ok(folder) = opened else { continue };
        let Ok(entries) = folder.entries() else { continue };
        for entry in entries.flatten() {
            bounds.check()?;
            looked_at += 1;
            if looked_at > LOOKED_AT {
                return Ok(false);
            }
            let name = entry.file_name();
            let below = within.join(&name);
            if !visit(&folder, &entry, &below)? {
                return Ok(false);
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && name != ".git" {
                if depth < DEPTH {
                    waiting.push((below, depth + 1));
                } else {
                    whole = false;
                }
            }
        }
    }
    Ok(whole)
}
