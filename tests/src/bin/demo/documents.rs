//! The documents for the readers: copies of this repository's text files, because the originals may be edited
//! meanwhile.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::workload::DOCUMENTS;

/// The readers start with Markdown.
const ENDINGS: [&str; 6] = ["md", "toml", "sql", "py", "yml", "rs"];
const MAX_BYTES: u64 = 100_000;

/// Copies the text files below `root` to below `to`. Returns their relative paths, a multiple of [`DOCUMENTS`].
pub fn copy(root: &Path, to: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = find(root)?;
    ensure!(
        names.len() >= DOCUMENTS,
        "too few text files below {}, expected this repository",
        root.display()
    );
    // The documents of a job must differ, because each one is an iteration.
    names.truncate(names.len() / DOCUMENTS * DOCUMENTS);
    for name in &names {
        let copy = to.join(name);
        let folder = copy.parent().unwrap_or(to);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::copy(root.join(name), &copy))
            .with_context(|| format!("copying {name} to {}", copy.display()))?;
    }
    Ok(names)
}

fn find(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let reading = || format!("looking for text files in {}", folder.display());
        for entry in std::fs::read_dir(&folder).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let (path, kind) = (entry.path(), entry.file_type().with_context(reading)?);
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if kind.is_dir() && name != "target" {
                folders.push(path);
            } else if kind.is_file()
                && let Some(rank) = rank(name)
                && entry.metadata().is_ok_and(|meta| meta.len() <= MAX_BYTES)
                && let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str)
            {
                found.push((rank, name.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

fn rank(name: &str) -> Option<usize> {
    let (_, ending) = name.rsplit_once('.')?;
    ENDINGS.iter().position(|known| *known == ending)
}
