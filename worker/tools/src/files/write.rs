//! Files that are made, replaced and edited. A file is replaced by a new one as a whole: a reader sees the old text or
//! the new one, and no other name of the old file is changed.

use std::io::{self, ErrorKind, Read, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use serde::Deserialize;

use super::{Bounds, open, refused, relative};
use crate::workspace::Workspace;

/// The largest file that is written or edited.
const FILE_BYTES: usize = 16 * 1024 * 1024;

#[derive(Deserialize)]
pub struct Write {
    path: String,
    text: String,
}

#[derive(Deserialize)]
pub struct Edit {
    path: String,
    old: String,
    new: String,
    #[serde(default)]
    all: bool,
}

/// Makes a file, or replaces all of it.
pub fn write(workspace: &Workspace, write: &Write, bounds: &Bounds) -> Result<String, String> {
    let made = replace(workspace, &write.path, write.text.as_bytes(), bounds)?;
    let done = if made { "Made" } else { "Replaced" };
    Ok(format!("{done} {} ({} bytes).", write.path, write.text.len()))
}

/// Replaces a text in a file.
pub fn edit(workspace: &Workspace, edit: &Edit, bounds: &Bounds) -> Result<String, String> {
    let path = &edit.path;
    if edit.old == edit.new {
        return Err("`old` and `new` are the same.".to_owned());
    }
    let mut file = open(workspace, path)?.take(FILE_BYTES as u64 + 1);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| refused(path, &error))?;
    if bytes.len() > FILE_BYTES {
        return Err(format!("{path} has more than {FILE_BYTES} bytes and cannot be edited."));
    }
    let text =
        String::from_utf8(bytes).map_err(|_| format!("{path} is no UTF-8 text and cannot be edited."))?;
    let count = match text.matches(&edit.old).count() {
        0 => return Err(format!("`old` is not in {path}. Read it again: every space and line end counts.")),
        count if count > 1 && !edit.all => {
            return Err(format!(
                "`old` is {count} times in {path}. Give more of the text around it, or set `all`."
            ));
        }
        count => count,
    };
    // A short text that is often there and a long one in its place make more than this machine's memory holds.
    let left = text.len() - count * edit.old.len();
    bounded(path, edit.new.len().saturating_mul(count).saturating_add(left))?;
    let edited = text.replace(&edit.old, &edit.new);
    replace(workspace, path, edited.as_bytes(), bounds)?;
    Ok(format!("Edited {path} in {count} {}.", if count == 1 { "place" } else { "places" }))
}

/// Refuses a file of so many bytes if it is too large.
fn bounded(path: &str, bytes: usize) -> Result<(), String> {
    if bytes <= FILE_BYTES {
        return Ok(());
    }
    Err(format!("{path} would have {bytes} bytes, expected at most {FILE_BYTES}."))
}

/// Puts a file with these bytes at a path. Returns whether there was none.
fn replace(workspace: &Workspace, path: &str, bytes: &[u8], bounds: &Bounds) -> Result<bool, String> {
    bounded(path, bytes.len())?;
    let within = relative(workspace, path)?;
    let wrong = |error: io::Error| refused(path, &error);
    let Some(name) = within.file_name() else { return Err(format!("{path} is no name of a file.")) };
    let above = within.parent().filter(|above| *above != Path::new(""));
    let folder = match above {
        None => workspace.dir().try_clone().map_err(wrong)?,
        Some(above) => {
            workspace.dir().create_dir_all(above).map_err(wrong)?;
            workspace.dir().open_dir(above).map_err(wrong)?
        }
    };
    let mode = match folder.symlink_metadata(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(wrong(error)),
        Ok(about) if about.is_symlink() => {
            return Err(format!("{path} is a link; write to what it leads to."));
        }
        Ok(about) if about.is_dir() => return Err(format!("{path} is a folder.")),
        Ok(about) if !about.is_file() => {
            return Err(format!("{path} is no file, but a pipe, a socket or a device."));
        }
        Ok(about) if about.nlink() > 1 => {
            return Err(format!(
                "{path} is not written: the file has {} names (hard links), and another may be outside of the \
                 workspace. Write to a new path.",
                about.nlink()
            ));
        }
        Ok(about) => Some(about.mode() & 0o777),
    };
    let own = own_name();
    let written = fill(&folder, &own, bytes, mode).and_then(|()| {
        bounds.check().map_err(io::Error::other)?;
        folder.rename(&own, &folder, name)
    });
    if written.is_err() {
        let _ = folder.remove_file(&own);
    }
    written.map_err(wrong)?;
    Ok(mode.is_none())
}

fn fill(folder: &Dir, name: &str, bytes: &[u8], mode: Option<u32>) -> io::Result<()> {
    let mut fresh = OpenOptions::new();
    fresh.write(true).create_new(true).mode(0o666);
    let mut file = folder.open_with(name, &fresh)?;
    file.write_all(bytes)?;
    match mode {
        Some(mode) => file.set_permissions(Permissions::from_mode(mode)),
        None => Ok(()),
    }
}

/// A name that no other call uses.
fn own_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".harness-{}-{}-{count}.tmp", std::process::id(), now.as_nanos())
}
