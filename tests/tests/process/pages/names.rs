//! Every link of every page leads somewhere, and every file that a page or a comment names is there.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::blocks::{self, Part};
use super::{Page, ROOT, files, pages};

/// The targets of the links in a line: `[…](TARGET)`.
fn links(text: &str) -> Vec<String> {
    let text = blocks::without_code(text);
    let target = |rest: &str| rest.split_once(')').map(|(target, _)| target.to_owned());
    text.split("](").skip(1).filter_map(target).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for part in blocks::parts(page) {
        let Part::Prose { text, .. } = part else { continue };
        let Some((marks, heading)) = text.split_once(' ') else { continue };
        if marks.is_empty() || marks.chars().any(|c| c != '#') {
            continue;
        }
        let kept = heading.trim().to_lowercase().replace(' ', "-");
        let anchor: String = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect();
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let free = std::iter::once(anchor.clone()).chain(numbered).find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}

/// A path without its `.` and `..`; `None` if it leaves the repository.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => plain.pop().then_some(())?,
            other => plain.push(other),
        }
    }
    Some(plain)
}

fn folder_of(path: &str) -> &Path {
    Path::new(path).parent().expect("a file's folder")
}

#[test]
fn every_link_of_every_page_leads_somewhere() {
    let (mut found, mut count) = (Vec::new(), 0);
    for page in pages() {
        for part in blocks::parts(&page) {
            let Part::Prose { line, text } = part else { continue };
            for link in
                links(text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
            {
                let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
                let named = match file {
                    "" => PathBuf::from(&page.path),
                    file => folder_of(&page.path).join(file),
                };
                let target = plain(&named).filter(|target| ROOT.join(target).exists());
                let leads = target.is_some_and(|target| {
                    anchor.is_empty() || anchors(&Page::read(&target.to_string_lossy())).contains(anchor)
                });
                if !leads {
                    found.push(format!("{}:{line}: {link}", page.path));
                }
                count += 1;
            }
        }
    }
    assert!(found.is_empty(), "these links lead nowhere:\n{}", found.join("\n"));
    assert!(count > 30, "only {count} links were found");
}

fn shown(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// What the files of this repository are called, to hold names against.
struct Known {
    /// All files and folders, by their path.
    paths: BTreeSet<String>,
    /// The names of all files.
    names: BTreeSet<String>,
    /// Files and folders in the repository's own folder.
    top: BTreeSet<String>,
}

impl Known {
    fn gather() -> Known {
        let mut known = Known { paths: BTreeSet::new(), names: BTreeSet::new(), top: BTreeSet::new() };
        for file in files() {
            let path = Path::new(&file);
            known.names.insert(path.file_name().expect("a name").to_string_lossy().into_owned());
            known.top.extend(
                path.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned()),
            );
            known.paths.extend(path.ancestors().map(|folder| folder.to_string_lossy().into_owned()));
        }
        known
    }

    /// Whether a word looks like a file or folder of this repository which is not there. `from` is the file that has the word.
    fn misses(&self, word: &str, from: &str) -> bool {
        let word = word.trim_start_matches("./").trim_end_matches(['/', '.', ',', ':', ';']);
        let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if word.is_empty() || !word.chars().all(is_path) {
            return false;
        }
        // Not `a.md`, which is a name of some example.
        let bare = |ending: &str| word.strip_suffix(ending).is_some_and(|stem| stem.len() > 1);
        let Some((first, rest)) = word.split_once('/') else {
            return (bare(".rs") || bare(".md")) && !self.names.contains(word);
        };
        // Parts in capitals are left open: `ops/k8s/overlays/ENVIRONMENT`; a page may have such a name.
        let is_open = rest
            .split(['/', '.', '-'])
            .any(|part| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase()));
        if !self.top.contains(first) || (is_open && !rest.ends_with(".md")) {
            return false;
        }
        // A module may go by its crate: without its `src`, and without `.rs`.
        let module = format!("{first}/src/{rest}");
        let mut paths = folder_of(from).ancestors().map(|folder| folder.join(word)).map(shown);
        let found = paths.any(|path| self.paths.contains(&path));
        !found && !self.paths.contains(&module) && !self.paths.contains(&format!("{module}.rs"))
    }
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let (known, mut found) = (Known::gather(), Vec::new());
    // A change is described by the names of its time.
    for page in pages().into_iter().filter(|page| page.path != "CHANGELOG.md") {
        for part in blocks::parts(&page) {
            let Part::Prose { line, text } = part else { continue };
            let missing = blocks::code(text).filter(|word| known.misses(word, &page.path));
            found.extend(missing.map(|word| format!("{}:{line}: {word}", page.path)));
        }
    }
    assert!(found.is_empty(), "these are not there:\n{}", found.join("\n"));
}

/// How a comment begins in a file of this name, if we know.
fn comment_of(path: &str) -> Option<&'static str> {
    let name = Path::new(path).file_name()?.to_str()?;
    let (_, ending) = name.rsplit_once('.').unwrap_or(("", ""));
    match ending {
        "rs" => Some("//"),
        "sql" => Some("--"),
        "toml" | "yaml" | "yml" | "py" | "sh" | "bash" | "service" | "timer" | "env" | "example" => Some("#"),
        "" if path.starts_with("ops/") || path.starts_with(".ci/") || name == "Makefile" => Some("#"),
        _ => None,
    }
}

#[test]
fn every_file_that_a_comment_names_is_there() {
    let (known, mut found, mut count) = (Known::gather(), Vec::new(), 0);
    for path in files() {
        let Some(begin) = comment_of(&path) else { continue };
        for (at, line) in Page::read(&path).text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix(begin) else { continue };
            count += 1;
            let words = comment.split(|c: char| c.is_whitespace() || "`'\"()[]<>,;:|".contains(c));
            let missing = words.filter(|word| known.misses(word, &path));
            found.extend(missing.map(|word| format!("{path}:{}: {word}", at + 1)));
        }
    }
    assert!(found.is_empty(), "these are not there:\n{}", found.join("\n"));
    assert!(count > 1000, "only {count} lines of comments were found");
}

/// Cargo wants the manifest of every crate, also of one that the image does not hold.
#[test]
fn the_image_is_built_from_the_manifests_of_all_crates() {
    let ignored = Page::read(".dockerignore").text;
    let kept: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let manifests = files().into_iter().filter(|path| path.ends_with("Cargo.toml"));
    let missing: Vec<String> =
        manifests.filter(|path| !kept.iter().any(|kept| Path::new(path).starts_with(kept))).collect();
    assert!(missing.is_empty(), ".dockerignore leaves out {missing:?}");
}
