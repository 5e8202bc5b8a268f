//! A session's workspace, reached by its open folder: no path leads out of it, whatever links lie in it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};

/// Where outputs are kept that are too long for the model.
const OUTPUTS: [&str; 2] = [".harness", "output"];

/// The folder of a session.
pub struct Workspace {
    dir: Dir,
    path: PathBuf,
}

impl Workspace {
    /// Opens the folder. A link is refused, because it could lead to another session's.
    pub fn open(path: &Path) -> io::Result<Workspace> {
        if !std::fs::symlink_metadata(path)?.is_dir() {
            return Err(io::Error::from(ErrorKind::NotADirectory));
        }
        Ok(Workspace { dir: Dir::open_ambient_dir(path, ambient_authority())?, path: path.to_owned() })
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Returns where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a new file for an output. Returns the file, and its path within the workspace.
    pub fn new_output(&self, name: &str) -> io::Result<(std::fs::File, String)> {
        let mut dir = self.dir.try_clone()?;
        for step in OUTPUTS {
            match dir.create_dir(step) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => dir = dir.open_dir(step)?,
            }
        }
        let mut fresh = OpenOptions::new();
        fresh.write(true).create_new(true).mode(0o600);
        // An earlier attempt at the call may have left its file, and a tool anything else.
        let names = [name.to_owned(), format!("{name}.2"), format!("{name}.3")];
        let mut refused = io::Error::from(ErrorKind::AlreadyExists);
        for name in names {
            match dir.open_with(&name, &fresh) {
                Ok(file) => return Ok((file.into_std(), format!("{}/{name}", OUTPUTS.join("/")))),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }
}
