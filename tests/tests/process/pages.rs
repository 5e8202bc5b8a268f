//! The pages say what is so: their commands work, their links lead somewhere, and what they name is there.

mod blocks;
mod commands;
mod names;
mod run;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The repository's folder.
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository's folder")
});

/// A file of the repository.
struct Page {
    /// From the repository's folder.
    path: String,
    text: String,
}

/// Every file of the repository, by its path from there: not what was built or written beside them.
fn files() -> Vec<String> {
    let list = Command::new("git")
        .args(["ls-files", "-z", "-co", "--exclude-standard"])
        .current_dir(&*ROOT)
        .output();
    let list = list.expect("git");
    assert!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    let names = String::from_utf8(list.stdout).expect("names in UTF-8");
    // A file that was removed and is not committed yet is in the list still.
    names.split_terminator('\0').filter(|name| ROOT.join(name).is_file()).map(str::to_owned).collect()
}

impl Page {
    fn read(path: &str) -> Page {
        let text = std::fs::read_to_string(ROOT.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Page { path: path.to_owned(), text }
    }
}

/// Every page in Markdown.
fn pages() -> Vec<Page> {
    files().iter().filter(|path| path.ends_with(".md")).map(|path| Page::read(path)).collect()
}

/// The pages of this folder or file.
fn pages_below(prefixes: &[&str]) -> Vec<Page> {
    let below = |page: &Page| prefixes.iter().any(|prefix| page.path.starts_with(prefix));
    pages().into_iter().filter(below).collect()
}
