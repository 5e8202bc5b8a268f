//! Every command of every page is one that there is: its program, its subcommand, its flags, and the files it names.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Command, CommandFactory, error::ErrorKind};
use tests::Fleet;

use super::blocks::{self, Part};
use super::{Page, ROOT, files, pages};

/// Programs of others which no test runs from a page, and why. What can be known of their commands is checked: files that they name,
/// targets of make, crates and tests of cargo. `run` has a stand-in for each of them.
pub const NOT_RUN: [(&str, &str); 17] = [
    ("age-keygen", "process::backup makes keys with it, in its own folder"),
    ("cargo", "it would build within a test; its crates, programs and tests are looked up"),
    ("docker", "it needs a daemon; ops/check reads the Compose file, and CI builds and runs the image"),
    ("git", "it would change the configuration of this checkout"),
    ("install", "it writes into folders of the system; ops/check reads the units"),
    ("kubectl", "it needs a cluster; ops/check applies the manifests to an API server"),
    ("make", "it builds, or starts services of its own; its targets are looked up"),
    (
        "ops/dev/kubernetes",
        "it may download or build for minutes; kubernetes::programs runs it where it finds something",
    ),
    ("ops/dev/services", "the test's services are there already; each test run uses it"),
    ("perf", "it needs a kernel that lets it count"),
    ("pg_basebackup", "it needs an account for replication"),
    ("rabbitmq-diagnostics", "it needs the broker's cookie"),
    (
        "rabbitmqctl",
        "it needs the broker's cookie; the tests give the same permissions by the management API",
    ),
    ("systemctl", "it needs a systemd; ops/check reads the units"),
    ("tail", "it follows a log of `make up`"),
    ("curl", "it asks a process that serves; the tests in process::door ask the HTTP API"),
    (
        "autoscaler run",
        "it scales a cluster, or starts workers that outlive it; the tests in scaling and kubernetes run it",
    ),
];

/// What a shell or every Debian brings.
const SHELL: [&str; 11] = ["cd", "cp", "date", "env", "eval", "export", "grep", "psql", "sed", "sleep", "["];

fn programs() -> [Command; 3] {
    [producer::cli::Args::command(), worker::Args::command(), autoscaler::Args::command()]
}

/// A command's words as a shell parts them: quotes hold together.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in command.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// A line without the comment at its end.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, character) in line.char_indices() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, '#') if before.is_whitespace() => return &line[..at],
            _ => {}
        }
        before = character;
    }
    line
}

fn is_setting(word: &str) -> bool {
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    word.split_once('=').is_some_and(|(name, _)| !name.is_empty() && is_name(name))
}

/// The commands of a line: also within `$(…)`, behind `&&` and `|`, and those that a command starts (`kubectl exec … -- COMMAND`).
fn parted(line: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let starts = ["$(", " && ", " | ", "; ", " -- ", " harness-fleet:dev ", " exec producer "];
    let mut rest = vec![without_comment(line)];
    for start in starts {
        rest = rest.into_iter().flat_map(|part| part.split(start)).collect();
    }
    for command in rest {
        let command = command.trim().trim_end_matches(')').trim_end_matches(")\"");
        let unpaired = command.matches('"').count() % 2 == 1;
        let command = if unpaired { command.trim_end_matches('"') } else { command };
        let words = words(command).into_iter().skip_while(|word| is_setting(word) || word == "env");
        let words: Vec<String> = words.collect();
        // Flags behind `--` belong to the command before it.
        if words.first().is_some_and(|first| !first.starts_with('-')) {
            commands.push(words);
        }
    }
    commands
}

/// The commands in the `sh` blocks of a page, with their place.
fn commands(page: &Page) -> Vec<(String, Vec<String>)> {
    let mut commands = Vec::new();
    for block in blocks::blocks(page).into_iter().filter(|block| block.language == "sh") {
        for line in block.text.replace("\\\n", " ").lines() {
            let place = format!("{}:{}: {line}", page.path, block.line);
            commands.extend(parted(line).into_iter().map(|words| (place.clone(), words)));
        }
    }
    commands
}

/// What is wrong with a command, if so.
fn wrong(words: &[String], facts: &Facts) -> Option<String> {
    let (first, arguments) = words.split_first()?;
    for word in words {
        let of_ours = ["ops/", "docs/", "examples/", "tests/"].iter().any(|folder| word.starts_with(folder));
        if of_ours && !word.contains('*') && !exists(word) {
            return Some(format!("there is no {word}"));
        }
    }
    let name = first.strip_prefix("target/debug/").or(first.strip_prefix("target/release/"));
    let name = name.or(first.strip_prefix("target/profile/release/")).unwrap_or(first);
    if let Some(program) = programs().into_iter().find(|program| program.get_name() == name) {
        return refused(program, words);
    }
    match name {
        "make" => arguments
            .iter()
            .find(|target| !target.starts_with('-') && !facts.targets.contains(*target))
            .map(|target| format!("make has no target {target}")),
        "cargo" => wrong_for_cargo(arguments, facts),
        _ if SHELL.contains(&name) || NOT_RUN.iter().any(|(program, _)| *program == name) => None,
        _ if facts.programs.contains(name) => None,
        _ if first.starts_with("ops/") => None,
        _ => Some(format!("{name} is no program of ours; if no test can run it, NOT_RUN says why")),
    }
}

/// Whether one of our programs refuses its command line.
fn refused(program: Command, words: &[String]) -> Option<String> {
    // The values that pages leave open.
    let words = words.iter().map(|word| match word.as_str() {
        "JOB" | "CALL" | "$job" => "0199f3b0-0000-7000-8000-000000000000",
        word => word,
    });
    let error = program.try_get_matches_from(words).err()?;
    let shown = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    (!shown).then(|| error.to_string())
}

fn wrong_for_cargo(arguments: &[String], facts: &Facts) -> Option<String> {
    let (mut group, mut filter) = (None, None);
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        let known = match word.as_str() {
            "-p" | "--package" => facts.crates.contains(words.next()?),
            "--bin" => facts.programs.contains(words.next()?.as_str()),
            "--test" => {
                group = words.next();
                exists(&format!("tests/tests/{}/main.rs", group?))
            }
            "--example" => exists(&format!("tests/examples/{}.rs", words.next()?)),
            "--target-dir" => words.next().is_some(),
            flag if flag.starts_with('-') => true,
            name => {
                filter = Some(name);
                true
            }
        };
        if !known {
            return Some(format!("cargo knows nothing by the name after {word}"));
        }
    }
    let (Some(group), Some(filter)) = (group, filter) else { return None };
    let (file, test) = filter.split_once("::").unwrap_or((filter, ""));
    let path = format!("tests/tests/{group}/{file}.rs");
    let found =
        std::fs::read_to_string(ROOT.join(&path)).is_ok_and(|text| text.contains(&format!("fn {test}")));
    (!found).then(|| format!("{path} has no test {test}"))
}

/// What there is in this repository.
struct Facts {
    targets: BTreeSet<String>,
    crates: BTreeSet<String>,
    programs: BTreeSet<String>,
}

impl Facts {
    fn gather() -> Facts {
        let makefile = Page::read("Makefile").text;
        let target = |line: &str| line.split_once(": ## ").map(|(name, _)| name.to_owned());
        let (mut crates, mut programs) = (BTreeSet::new(), BTreeSet::new());
        for manifest in files().iter().filter(|path| path.ends_with("/Cargo.toml")) {
            let text = Page::read(manifest).text;
            let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
            let name = name.unwrap_or_else(|| panic!("{manifest}: no name")).to_owned();
            let folder = Path::new(manifest).parent().expect("a folder").to_owned();
            if ROOT.join(&folder).join("src/main.rs").is_file() {
                programs.insert(name.clone());
            }
            for entry in std::fs::read_dir(ROOT.join(&folder).join("src/bin")).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                programs.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
            }
            crates.insert(name);
        }
        Facts { targets: makefile.lines().filter_map(target).collect(), crates, programs }
    }
}

fn exists(path: &str) -> bool {
    ROOT.join(path).exists()
}

#[test]
fn the_commands_of_the_pages_are_commands_that_there_are() {
    let (facts, mut found, mut count) = (Facts::gather(), Vec::new(), 0);
    for page in pages() {
        for (place, words) in commands(&page) {
            found.extend(wrong(&words, &facts).map(|problem| format!("{place}\n    {problem}")));
            count += 1;
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(count > 100, "only {count} commands were found");
}

/// The commands of ours in the prose. They may be shortened, so only the names of subcommands and flags are looked at.
#[test]
fn the_commands_in_the_prose_are_commands_of_the_programs() {
    let (mut found, mut count) = (Vec::new(), 0);
    let targets = Facts::gather().targets;
    for page in pages().into_iter().filter(|page| page.path != "CHANGELOG.md") {
        for part in blocks::parts(&page) {
            let Part::Prose { line, text } = part else { continue };
            for code in blocks::code(text) {
                let words: Vec<&str> = code.split_whitespace().skip_while(|word| is_setting(word)).collect();
                let Some((first, rest)) = words.split_first() else { continue };
                let problem = match programs().into_iter().find(|program| program.get_name() == *first) {
                    Some(program) => unknown(program, rest),
                    None if *first == "make" => rest
                        .first()
                        .filter(|target| !targets.contains(**target))
                        .map(|target| (*target).to_owned()),
                    None => continue,
                };
                count += 1;
                found.extend(
                    problem.map(|word| format!("{}:{line}: `{code}`: there is no {word}", page.path)),
                );
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(count > 30, "only {count} commands were found");
}

/// The first subcommand or flag that a program does not have.
fn unknown(mut command: Command, words: &[&str]) -> Option<String> {
    command.build();
    let mut command = &command;
    for word in words {
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or(flag);
            let known = |argument: &&clap::Arg| argument.get_long() == Some(flag);
            if !flag.is_empty() && !command.get_arguments().any(|argument| known(&argument)) {
                return Some((*word).to_owned());
            }
        } else if let Some(inner) = command.find_subcommand(word) {
            command = inner;
        } else if command.has_subcommands()
            && word.chars().all(|c| c.is_ascii_lowercase())
            && !word.is_empty()
        {
            return Some((*word).to_owned());
        }
    }
    None
}

#[tokio::test]
async fn the_queries_of_the_pages_work_on_the_ledger() {
    let fleet = Fleet::new().await;
    let mut count = 0;
    for page in pages() {
        for (place, words) in commands(&page).into_iter().filter(|(_, words)| words[0] == "psql") {
            for query in words.iter().filter(|word| word.starts_with("SELECT ")) {
                let ran =
                    std::process::Command::new("psql").arg(&fleet.database.url).args(["-c", query]).output();
                let ran = ran.expect("psql (Debian: postgresql-client)");
                assert!(ran.status.success(), "{place}: {}", String::from_utf8_lossy(&ran.stderr));
                count += 1;
            }
        }
    }
    assert!(count > 3, "only {count} queries were found");
}
