//! ops/settings.md lists every setting as the programs know it, and what ops/ calls and sets is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory, error::ErrorKind};

fn ops(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops").join(path)
}

fn programs() -> [Command; 3] {
    [producer::cli::Args::command(), worker::Args::command(), autoscaler::Args::command()]
}

/// A setting: all that is told of it but who reads it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Setting {
    name: String,
    flag: String,
    default: String,
    secret: bool,
    meaning: String,
}

impl Setting {
    /// A flag without a variable is an argument of its command, and no setting.
    fn of(argument: &Arg) -> Option<Setting> {
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        Some(Setting {
            name: argument.get_env()?.to_string_lossy().into_owned(),
            flag: argument.get_long().map(|long| format!("`--{long}`")).unwrap_or_default(),
            default: if defaults.is_empty() { String::new() } else { format!("`{}`", defaults.join(",")) },
            secret: argument.is_hide_env_values_set(),
            meaning: argument
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default()
                .replace('|', "\\|")
                .replace('\n', " "),
        })
    }
}

/// Collects a command's settings and those of its subcommands, with the commands that read them.
fn collect(command: &Command, path: &str, found: &mut BTreeMap<Setting, BTreeSet<String>>) {
    for argument in command.get_arguments() {
        if let Some(setting) = Setting::of(argument) {
            let reader = if argument.is_global_set() { path.split(' ').next().unwrap_or(path) } else { path };
            found.entry(setting).or_default().insert(format!("`{reader}`"));
        }
    }
    for subcommand in command.get_subcommands() {
        collect(subcommand, &format!("{path} {}", subcommand.get_name()), found);
    }
}

fn settings() -> BTreeMap<Setting, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for program in programs() {
        let name = program.get_name().to_owned();
        collect(&program, &name, &mut found);
    }
    found
}

fn page() -> String {
    let mut page = "<!-- Made from the programs' command lines: `UPDATE=1 cargo test -p tests --test settings` writes it anew. -->\n\n\
        # Settings\n\n\
        Every setting is an environment variable and a flag of the same meaning; the flag wins. A variable that is set and empty is not set. A process that \
        cannot start tells all that is wrong at once and exits with 2. Secrets are never shown, and have no place in a file of ops/config. A secret `NAME` may \
        stand in a file instead, which `NAME_FILE` names; not as a flag, which every user of the machine can read.\n\n\
        | setting | flag | default | secret | read by | meaning |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for (Setting { name, flag, default, secret, meaning }, readers) in settings() {
        let secret = if secret { "yes" } else { "" };
        let readers = readers.into_iter().collect::<Vec<_>>().join(", ");
        page += &format!("| `{name}` | {flag} | {default} | {secret} | {readers} | {meaning} |\n");
    }
    page
}

#[test]
fn the_page_of_settings_is_what_the_programs_say() {
    let path = ops("settings.md");
    let made = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = made.lines().find(|line| !written.lines().any(|other| other == *line));
    assert!(
        made == written,
        "ops/settings.md is not what the programs say, first at {differing:?}: UPDATE=1 cargo test -p tests --test settings"
    );
}

#[test]
fn what_is_secret_is_marked_and_stands_in_no_file() {
    let all = settings();
    let secrets: BTreeSet<&str> =
        all.keys().filter(|setting| setting.secret).map(|setting| setting.name.as_str()).collect();
    assert!(secrets.contains("DATABASE_URL") && secrets.contains("AMQP_URL"), "{secrets:?}");
    let of_workers = all.iter().filter(|(setting, readers)| setting.secret && readers.contains("`worker`"));
    for (Setting { name, .. }, _) in of_workers {
        assert!(command::WITHHELD.contains(&name.as_str()), "an agent's env_allow may name {name}");
    }
    for setting in all.keys() {
        let sounds_secret =
            ["_KEY", "_TOKEN", "PASSWORD", "SECRET"].iter().any(|part| setting.name.contains(part));
        assert!(!sounds_secret || setting.secret, "{} shows its value in --help", setting.name);
    }
    for file in ["base", "development", "staging", "production"] {
        let text = std::fs::read_to_string(ops(&format!("config/{file}.env"))).expect("a file of ops/config");
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (name, _) = line
                .split_once('=')
                .unwrap_or_else(|| panic!("{file}.env: got \"{line}\", expected NAME=value"));
            assert!(all.keys().any(|setting| setting.name == name), "{file}.env: nothing reads {name}");
            assert!(!secrets.contains(name), "{file}.env: {name} is a secret");
        }
    }
}

/// All pages of ops/, and the README.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![ops("../README.md")];
    let mut folders = vec![ops("")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "md" => pages.push(path),
                _ => {}
            }
        }
    }
    pages
}

/// A command's words as a shell parts them: quotes hold together, and a comment ends it.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in command.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// The commands in the `sh` blocks of the pages, with where they stand: also behind `kubectl exec … --`, in a container, within `$(…)`,
/// after `&&`, and with settings in front.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut commands = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page").replace("\\\n", " ");
        let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
        for line in blocks.flat_map(str::lines) {
            for command in line.split("$(").flat_map(|part| part.split(" && ")) {
                let behind = [" -- ", " harness-fleet:dev ", " exec producer "];
                let command = behind.iter().fold(command, |command, marker| {
                    command.split_once(marker).map_or(command, |(_, inner)| inner)
                });
                let command = command.trim().trim_end_matches(['"', ')']);
                let is_setting = |word: &String| {
                    word.split_once('=')
                        .is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
                };
                let words = words(command).into_iter().skip_while(is_setting).collect();
                commands.push((format!("{}: {line}", page.display()), words));
            }
        }
    }
    commands
}

#[test]
fn the_commands_of_the_pages_are_commands_of_the_programs() {
    let (mut of_programs, mut of_ops) = (0, 0);
    for (place, words) in commands() {
        let Some(first) = words.first() else { continue };
        if let Some(path) = first.strip_prefix("ops/") {
            assert!(ops(path).is_file(), "{place}: no such file");
            of_ops += 1;
        }
        let Some(program) = programs().into_iter().find(|program| program.get_name() == first) else {
            continue;
        };
        // A job's id is looked at closely.
        let words = words.iter().map(|word| match word.as_str() {
            "JOB" | "$job" => "0199f3b0-0000-7000-8000-000000000000",
            word => word,
        });
        if let Err(error) = program.try_get_matches_from(words) {
            let shown = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            assert!(shown, "{place}: {error}");
        }
        of_programs += 1;
    }
    assert!(
        of_programs > 35 && of_ops > 10,
        "only {of_programs} of the programs and {of_ops} of ops/ were found"
    );
}
