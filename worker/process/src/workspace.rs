//! The folder in which a session's programs run.

use std::fs::{DirBuilder, metadata, symlink_metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Makes the folder of this name below `dir`, unless it is there. `name` may have several steps, such as a tenant's and a
/// session's. A link is refused, because it could lead into another session's folder.
pub fn make_workspace(dir: &Path, name: &Path) -> io::Result<PathBuf> {
    // What lies there instead is the machine's fault, and no session's.
    if !metadata(dir)?.is_dir() {
        return Err(io::Error::other(format!("{} is not a directory", dir.display())));
    }
    let mut path = dir.to_owned();
    for step in name {
        path.push(step);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
        if !symlink_metadata(&path)?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
    }
    Ok(path)
}

/// Returns whether it is the session's own fault that its folder cannot be used: something else lies there, or its name is
/// too long for a file, here and on any other machine. All else is a shortage of the machine's.
pub fn is_of_the_session(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}
