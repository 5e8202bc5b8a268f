//! ops/settings.md lists every setting as the programs know it, and what ops/ sets is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};

fn ops(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops").join(path)
}

fn programs() -> [Command; 3] {
    [producer::cli::Args::command(), worker::Args::command(), autoscaler::Args::command()]
}

/// A setting: all that is said of it but who reads it.
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
    let mut page = "<!-- Made from the programs' command lines: `UPDATE=1 cargo test -p tests --test process settings` writes it anew. -->\n\n\
        # Settings\n\n\
        Every setting is an environment variable and a flag of the same meaning; the flag wins. A variable that is set and empty is not set. A process that \
        cannot start reports all that is wrong at once and exits with 2. Secrets are never shown, and have no place in a file of ops/config. A secret `NAME` may \
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
        "ops/settings.md is not what the programs say, first at {differing:?}: UPDATE=1 cargo test -p tests --test process settings"
    );
}

#[test]
fn what_is_secret_is_marked_and_stands_in_no_file() {
    let all = settings();
    let secrets: BTreeSet<&str> =
        all.keys().filter(|setting| setting.secret).map(|setting| setting.name.as_str()).collect();
    assert!(secrets.contains("DATABASE_URL") && secrets.contains("AMQP_URL"), "{secrets:?}");
    let of_workers = all.iter().filter(|(setting, readers)| setting.secret && readers.contains("`worker`"));
    // Agents that call a provider without the gateway may name its key.
    let keys = ["ANTHROPIC_API_KEY", "CLAUDE_API_KEY", "OPENAI_API_KEY"];
    for (Setting { name, .. }, _) in of_workers.filter(|(setting, _)| !keys.contains(&setting.name.as_str()))
    {
        assert!(command::WITHHELD.contains(&name.as_str()), "an agent's env_allow may name {name}");
    }
    for setting in all.keys() {
        // Tokens of a minute are those of a model.
        let name = setting.name.trim_end_matches("_TOKENS_PER_MINUTE");
        let sounds_secret = ["_KEY", "_TOKEN", "PASSWORD", "SECRET"].iter().any(|part| name.contains(part));
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
