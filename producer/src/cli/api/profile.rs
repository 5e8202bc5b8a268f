//! Profiles: the addresses and keys of several fleets in one file of the user's.

use std::env;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;
use service::TomlFile;

/// The address and the key of a fleet.
#[derive(Debug, Default)]
pub struct Profile {
    pub url: Option<String>,
    pub key: Option<SecretString>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    url: Option<String>,
    key: Option<String>,
    key_file: Option<PathBuf>,
}

/// Reads a profile.
pub fn read(name: &str) -> Result<Profile, String> {
    let path = path().ok_or("HOME is not set, so there is no ~/.config/harness-fleet/profiles.toml")?;
    let shown = path.display();
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{shown}: {error}"))?;
    let table = parse(&text, name).map_err(|problem| format!("{shown}: {problem}"))?;
    let by_file = table.key_file.as_deref().map(|file| key(path.parent(), file)).transpose()?;
    Ok(Profile { url: table.url, key: table.key.map(SecretString::from).or(by_file) })
}

fn path() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(folder.join("harness-fleet/profiles.toml"))
}

fn parse(text: &str, name: &str) -> Result<Table, String> {
    let mut file = TomlFile::parse(text)?;
    file.hide(&["key"]);
    file.only(&["profiles"]);
    let tables = file.tables("profiles");
    let names: Vec<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
    let unknown = format!("no [profiles.{name}], there is {}", names.join(", "));
    let found = tables.into_iter().find(|(other, _)| other == name);
    let place = format!("profiles.{name}");
    let read = found.and_then(|(_, table)| file.read(&place, table, Table::deserialize));
    file.finish(read)?.ok_or(unknown)
}

/// A file's name that is not absolute is below the folder of the profiles.
fn key(folder: Option<&Path>, file: &Path) -> Result<SecretString, String> {
    let path = folder.unwrap_or(Path::new("")).join(file);
    let text = std::fs::read_to_string(&path);
    text.map(|text| text.trim().to_owned().into())
        .map_err(|error| format!("key_file {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_table_and_what_is_wrong_shows_no_key() {
        let text = "[profiles.one]\nurl = \"https://one\"\nkey = \"hfk_secret\"\n[profiles.two]\nkey_file = \"two\"\n";
        let one = parse(text, "one").unwrap();
        assert_eq!((one.url.as_deref(), one.key.is_some(), one.key_file), (Some("https://one"), true, None));
        assert!(parse(text, "two").unwrap().key_file.is_some());
        let unknown = parse(text, "three").err().unwrap();
        assert!(unknown.contains("one, two"), "{unknown}");
        for wrong in ["[profiles.one]\nkey = 77777", "[profiles.one]\nsecret = \"77777\"", "[profile.one]\n"]
        {
            let problem = parse(wrong, "one").err().unwrap();
            assert!(problem.contains("line ") && !problem.contains("77777"), "{problem}");
        }
    }
}
