//! A TOML file of settings: all its mistakes are reported, each with its line.
//!
//! serde stops at the first mistake. So the value at fault is noted and left out, and the rest is read again, until no
//! mistake is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

/// A value, and its place in the file.
pub type TomlValue<'i> = Spanned<DeValue<'i>>;

/// The place of a default, which is not in the file.
const NOWHERE: Range<usize> = usize::MAX..usize::MAX;

/// A file that is valid TOML, and the mistakes found in it so far.
pub struct TomlFile<'i> {
    text: &'i str,
    root: DeTable<'i>,
    /// The path at each place. A key and its value have the same path, such as `agents.echo.harness`.
    paths: Paths,
    wrong: BTreeSet<(usize, String)>,
    /// Paths of the mistakes that were noted while reading.
    unread: Vec<String>,
    /// The names of the settings whose values are not shown.
    secret: &'static [&'static str],
}

impl<'i> TomlFile<'i> {
    /// Parses a text. The error lists every reason why it is not TOML.
    pub fn parse(text: &'i str) -> Result<TomlFile<'i>, String> {
        // Some editors put this byte order mark before UTF-8.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut paths = Paths::new();
        index(root.get_ref(), "", &mut paths);
        let mut file = TomlFile {
            text,
            root: root.into_inner(),
            paths,
            wrong: BTreeSet::new(),
            unread: Vec::new(),
            secret: &[],
        };
        for error in errors {
            file.add(&error.span().unwrap_or(0..0), error.message());
        }
        if file.wrong.is_empty() { Ok(file) } else { Err(file.complaint()) }
    }

    /// Hides the values of settings of these names, and all values below them.
    pub fn hide(&mut self, names: &'static [&'static str]) {
        self.secret = names;
    }

    /// Returns the whole file as one table.
    pub fn whole(&self) -> TomlValue<'i> {
        Spanned::new(0..0, DeValue::Table(self.root.clone()))
    }

    /// Returns the tables below the table of this name, such as `[agents.NAME]`, with their names. Notes what is not a
    /// table.
    pub fn tables(&mut self, name: &str) -> Vec<(String, TomlValue<'i>)> {
        let value = if self.root.get(name).is_some() {
            self.table(name)
        } else {
            Some(Spanned::new(0..0, DeValue::Table(DeTable::new())))
        };
        let Some((span, DeValue::Table(table))) = value.map(|value| (value.span(), value.into_inner()))
        else {
            return Vec::new();
        };
        if table.is_empty() {
            self.add(&span, format!("{name}: got none, expected at least one table [{name}.NAME]"));
        }
        let mut tables = Vec::new();
        for (key, value) in table {
            match value.get_ref() {
                DeValue::Table(_) => tables.push((key.get_ref().to_string(), value)),
                _ => self.add(&value.span(), format!("{name}.{key}: expected a table")),
            }
        }
        tables
    }

    /// Returns the table of this name, if there is one. Notes it if it is not a table.
    pub fn table(&mut self, name: &str) -> Option<TomlValue<'i>> {
        let value = self.root.get(name)?.clone();
        if !matches!(value.get_ref(), DeValue::Table(_)) {
            self.add(&value.span(), format!("{name}: expected a table"));
            return None;
        }
        Some(value)
    }

    /// Notes everything in the file except these names.
    pub fn only(&mut self, names: &[&str]) {
        let others = self.root.keys().filter(|key| !names.contains(&key.get_ref().as_ref()));
        let others: Vec<_> = others.map(|key| (key.span(), format!("{key}: unknown, expected "))).collect();
        for (span, other) in others {
            self.add(&span, other + &names.join(" or "));
        }
    }

    /// Reads a value whose path is `place`. Everything that does not fit is noted, and ignored as if it were absent.
    pub fn read<T>(
        &mut self,
        place: &str,
        mut value: TomlValue<'i>,
        read: impl Fn(ValueDeserializer<'i>) -> Result<T, Error>,
    ) -> Option<T> {
        let mut left_out: Vec<String> = Vec::new();
        loop {
            let error = match read(value.clone().into()) {
                Ok(read) => return Some(read),
                Err(error) => error,
            };
            let span = error.span().unwrap_or(value.span());
            let missing = missing_field(error.message());
            // This field is missing only because it was left out.
            if !missing.is_some_and(|name| left_out.iter().any(|left| left == name)) {
                let path = self.path(&span).unwrap_or(place).to_owned();
                let at = if span == NOWHERE { value.span() } else { span.clone() };
                let is_secret = path.split('.').any(|name| self.secret.contains(&name));
                let problem = if is_secret { expected(error.message()) } else { plain(error.message()) };
                self.add(&at, format!("{path}: {problem}"));
                self.unread.push(path);
            }
            match leave_out(&mut value, &span) {
                Some(name) => left_out.push(name),
                None => return None,
            }
        }
    }

    /// Notes what is wrong with a setting below a value, such as `command[0]`. `place` is the value's path.
    pub fn note(&mut self, place: &str, value: &TomlValue<'i>, setting: &str, problem: impl Display) {
        let (span, is_whole) = find(value, setting);
        let path = match self.path(&span).filter(|_| is_whole) {
            Some(path) => path.to_owned(),
            None if setting.is_empty() => place.to_owned(),
            None => format!("{place}.{setting}"),
        };
        // A value that could not be read is reported only once.
        let is_below = |above: &String| {
            path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        if !self.unread.iter().any(is_below) {
            self.add(&span, format!("{path}: {problem}"));
        }
    }

    fn path(&self, span: &Range<usize>) -> Option<&str> {
        self.paths.get(&(span.start, span.end)).map(String::as_str)
    }

    fn add(&mut self, span: &Range<usize>, problem: impl Display) {
        let before = self.text.get(..span.start.min(self.text.len())).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        self.wrong.insert((line, problem.to_string()));
    }

    /// Returns what was made of the file, if nothing is wrong with it.
    pub fn finish<T>(self, made: T) -> Result<T, String> {
        if self.wrong.is_empty() { Ok(made) } else { Err(self.complaint()) }
    }

    /// Returns what is wrong with the file, each with its line.
    pub fn problems(&self) -> Vec<String> {
        self.wrong.iter().map(|(line, problem)| format!("line {line}: {problem}")).collect()
    }

    /// Returns a line for each problem. They follow the name of the file.
    fn complaint(&self) -> String {
        self.problems().iter().map(|problem| format!("\n    {problem}")).collect()
    }
}

/// Returns the defaults of settings that a file does not set.
pub fn unsaid(text: &'static str) -> TomlValue<'static> {
    let table = DeTable::parse(text).expect("it was made from settings");
    place_nowhere(Spanned::new(NOWHERE, DeValue::Table(table.into_inner())))
}

fn place_nowhere(value: TomlValue<'_>) -> TomlValue<'_> {
    let value = match value.into_inner() {
        DeValue::Table(table) => {
            let nowhere = |(key, value): (Spanned<_>, _)| {
                (Spanned::new(NOWHERE, key.into_inner()), place_nowhere(value))
            };
            DeValue::Table(table.into_iter().map(nowhere).collect())
        }
        DeValue::Array(array) => DeValue::Array(array.into_iter().map(place_nowhere).collect()),
        other => other,
    };
    Spanned::new(NOWHERE, value)
}

type Paths = BTreeMap<(usize, usize), String>;

/// Notes the places of a table's keys and values.
fn index(table: &DeTable<'_>, above: &str, paths: &mut Paths) {
    for (key, value) in table {
        let path = if above.is_empty() { key.to_string() } else { format!("{above}.{key}") };
        paths.entry((key.span().start, key.span().end)).or_insert_with(|| path.clone());
        index_value(value, path, paths);
    }
}

fn index_value(value: &TomlValue<'_>, path: String, paths: &mut Paths) {
    match value.get_ref() {
        DeValue::Table(table) => index(table, &path, paths),
        DeValue::Array(array) => {
            for (at, inner) in array.iter().enumerate() {
                index_value(inner, format!("{path}[{at}]"), paths);
            }
        }
        _ => {}
    }
    paths.entry((value.span().start, value.span().end)).or_insert(path);
}

/// Removes the value at this place, or the array that holds it. Returns the name of what was removed.
fn leave_out(value: &mut TomlValue<'_>, span: &Range<usize>) -> Option<String> {
    let DeValue::Table(table) = value.get_mut() else { return None };
    let stands_there = |key: &Range<usize>, value: &TomlValue<'_>| {
        let within = |whole: Range<usize>| whole.start <= span.start && span.end <= whole.end;
        let holds = matches!(value.get_ref(), DeValue::Array(_)) && within(value.span());
        span != &NOWHERE && (key == span || value.span() == *span || holds)
    };
    let found = table.iter().find(|(key, value)| stands_there(&key.span(), value));
    if let Some(name) = found.map(|(key, _)| key.get_ref().to_string()) {
        table.remove(name.as_str());
        return Some(name);
    }
    table.iter_mut().find_map(|(_, value)| leave_out(value, span))
}

/// Returns the place of a setting, such as `scale_up.policies[0].value`, or of the nearest value that holds it, and
/// whether it is the setting itself.
fn find(value: &TomlValue<'_>, setting: &str) -> (Range<usize>, bool) {
    let mut at = value;
    let mut span = value.span();
    if setting.is_empty() {
        return (span, false);
    }
    for part in setting.split(['.', '[']) {
        let next = match (at.get_ref(), part.strip_suffix(']')) {
            (DeValue::Table(table), None) => table.get(part),
            (DeValue::Array(array), Some(index)) => {
                index.parse().ok().and_then(|index: usize| array.get(index))
            }
            _ => None,
        };
        match next {
            Some(next) if next.span() != NOWHERE => (at, span) = (next, next.span()),
            _ => return (span, false),
        }
    }
    (span, true)
}

fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// Returns what would be right, without what was given.
fn expected(message: &str) -> String {
    match plain(message).rsplit_once("expected ") {
        Some((_, right)) => format!("expected {right}"),
        None => "not valid".to_owned(),
    }
}

/// Rephrases a message for a user who does not know Rust.
fn plain(message: &str) -> String {
    let kinds = [
        ("u32", "a whole number"),
        ("u64", "a whole number"),
        ("usize", "a whole number"),
        ("f64", "a number"),
        ("a sequence", "a list"),
        ("a map", "a table"),
    ];
    let kind = kinds
        .iter()
        .find_map(|(rust, plain)| Some((message.strip_suffix(&format!("expected {rust}"))?, plain)));
    let message = kind.map_or(message.to_owned(), |(message, plain)| format!("{message}expected {plain}"));
    match message.split_once("expected struct ") {
        Some((message, _)) => format!("{message}expected a table"),
        None => message.replace("unknown field", "unknown").replace("missing field", "missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        size: u32,
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        inner: Option<Inner>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        ratio: f64,
    }

    fn things(text: &str) -> Result<Vec<Option<Thing>>, String> {
        let mut file = TomlFile::parse(text)?;
        file.only(&["things"]);
        let mut things = Vec::new();
        for (name, table) in file.tables("things") {
            things.push(file.read(&format!("things.{name}"), table.clone(), Thing::deserialize));
            if name == "noted" {
                file.note("things.noted", &table, "names[1]", "not this one");
                file.note("things.noted", &table, "size", "nor this");
            }
        }
        file.finish(things)
    }

    #[test]
    fn every_mistake_of_every_table_has_its_line_and_path() {
        let text = "[thing]\nx = 1\n[things.a]\nsize = 'x'\ncolour = 1\nnames = ['a',\n 2]\n[things.b]\n\
                    inner.ratio = 'y'\ninner.ration = 2\n[things]\nc = 3\n[things.noted]\nsize = 1\nnames = ['a',\n'b']\n";
        assert_eq!(
            things(text).unwrap_err().lines().skip(1).collect::<Vec<_>>(),
            [
                "    line 1: thing: unknown, expected things",
                "    line 4: things.a.size: invalid type: string \"x\", expected a whole number",
                "    line 5: things.a.colour: unknown `colour`, expected one of `size`, `names`, `inner`",
                "    line 7: things.a.names[1]: invalid type: integer `2`, expected a string",
                "    line 8: things.b: missing `size`",
                "    line 9: things.b.inner.ratio: invalid type: string \"y\", expected a number",
                "    line 10: things.b.inner.ration: unknown `ration`, expected `ratio`",
                "    line 12: things.c: expected a table",
                "    line 14: things.noted.size: nor this",
                "    line 16: things.noted.names[1]: not this one",
            ]
        );
        let right = "\u{feff}[things.a]\nsize = 1\r\n";
        assert_eq!(things(right).unwrap(), [Some(Thing { size: 1, names: Vec::new(), inner: None })]);
    }

    #[test]
    fn what_is_no_toml_is_reported_line_by_line() {
        let problems = things("[things.a]\nsize = \n[things.b]\nsize = 1\nsize = 2\n").unwrap_err();
        let problems: Vec<_> = problems.lines().skip(1).collect();
        assert!(
            problems[0].starts_with("    line 2: ") && problems[1].starts_with("    line 5: duplicate key"),
            "{problems:?}"
        );
    }
}
