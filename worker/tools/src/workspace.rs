//! A session's workspace, reached by its open folder: no path leads out of it, whatever links lie in it. What it keeps of
//! outputs is bounded; what else lies there is not.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use tracing::warn;

/// Where outputs are kept that are too long for the model.
const OUTPUTS: [&str; 2] = [".harness", "output"];
/// How many bytes of them are kept when another one is begun.
const KEPT_BYTES: u64 = 256 * 1024 * 1024;
/// So many files are looked at for that. A program may have put any number there.
const MOST_LISTED: usize = 100_000;
/// What a file takes on a disk, at the least. So their number is bounded as well.
const LEAST_BYTES: u64 = 4 * 1024;
/// How many files of one name there may be.
const MOST_OF_A_NAME: usize = 100;

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

    /// Makes a new file for an output, and room for it: the oldest ones go. Returns the file, and its path within the
    /// workspace.
    pub fn new_output(&self, name: &str) -> io::Result<(std::fs::File, String)> {
        let mut dir = self.dir.try_clone()?;
        for step in OUTPUTS {
            match dir.create_dir(step) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => dir = dir.open_dir(step)?,
            }
        }
        remove_oldest(&dir, KEPT_BYTES)?;
        let mut fresh = OpenOptions::new();
        fresh.write(true).create_new(true).mode(0o600);
        // An earlier attempt at the call may have left its file, and a tool anything else.
        let others = (2..=MOST_OF_A_NAME).map(|nth| format!("{name}.{nth}"));
        let mut refused = io::Error::from(ErrorKind::AlreadyExists);
        for name in [name.to_owned()].into_iter().chain(others) {
            match dir.open_with(&name, &fresh) {
                Ok(file) => return Ok((file.into_std(), format!("{}/{name}", OUTPUTS.join("/")))),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }
}

/// Removes the oldest files of a folder until the others have at most so many bytes.
fn remove_oldest(dir: &Dir, most_bytes: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in dir.entries()?.take(MOST_LISTED) {
        let entry = entry?;
        // A tool may have removed it meanwhile.
        let Ok(found) = entry.metadata() else { continue };
        if found.is_file() {
            let written = found.modified().map_or(SystemTime::UNIX_EPOCH, |at| at.into_std());
            files.push((written, found.len().max(LEAST_BYTES), entry.file_name()));
        }
    }
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, size, _)| size).sum();
    for (_, size, name) in files {
        if bytes <= most_bytes {
            break;
        }
        bytes -= size;
        if let Err(cause) = dir.remove_file(&name)
            && cause.kind() != ErrorKind::NotFound
        {
            warn!(?name, %cause, "an old output of a tool cannot be removed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn opened() -> (tempfile::TempDir, Workspace) {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(dir.path()).unwrap();
        (dir, workspace)
    }

    #[test]
    fn a_name_that_is_taken_is_counted_on() {
        let (_dir, workspace) = opened();
        let made = |_| workspace.new_output("call").map(|(_, path)| path);
        let paths: Vec<String> = (0..10).map(|at| made(at).unwrap()).collect();
        assert_eq!([&*paths[0], &*paths[9]], [".harness/output/call", ".harness/output/call.10"]);
    }

    #[test]
    fn the_oldest_outputs_make_room_for_a_new_one() {
        let (dir, workspace) = opened();
        let outputs = dir.path().join(".harness/output");
        let begun = SystemTime::now() - Duration::from_secs(100);
        for at in 0..5_u64 {
            let (file, _) = workspace.new_output(&format!("call_{at}")).unwrap();
            // A file of holes takes no room here.
            file.set_len(100 * 1024 * 1024).unwrap();
            file.set_modified(begun + Duration::from_secs(at)).unwrap();
        }
        fs::create_dir(outputs.join("of_a_tool")).unwrap();
        std::os::unix::fs::symlink("/", outputs.join("link")).unwrap();
        workspace.new_output("last").unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&outputs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["call_3", "call_4", "last", "link", "of_a_tool"]);
    }
}
