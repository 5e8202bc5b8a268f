//! The parameters of a list: each known, given once, and of the right form.

use std::fmt::Display;
use std::str::FromStr;

use job::{Label, MAX_LABELS, shown};

use super::problem::Problem;

/// The parameter that may be given several times.
const REPEATED: &str = "label";

/// Parameters by name.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows the `?`; refuses a name that is not among these, or that comes twice and must not.
    pub fn parse(given: Option<&str>, known: &[&str]) -> Result<Query, Problem> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(given.unwrap_or_default().as_bytes()) {
            if !known.contains(&name.as_ref()) {
                let detail = format!("an unknown parameter, expected one of {}", known.join(", "));
                return Err(Problem::invalid(shown(&name), detail));
            }
            if name != REPEATED && parameters.iter().any(|(before, _)| *before == name) {
                return Err(Problem::invalid(name, "given twice, expected once"));
            }
            parameters.push((name.into_owned(), value.into_owned()));
        }
        Ok(Query(parameters))
    }

    /// A parameter's value.
    pub fn one<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Problem> {
        self.value(name).map(|value| read(name, value)).transpose()
    }

    /// The values of a parameter that are separated by commas.
    pub fn all<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Vec<T>, Problem> {
        let values = self.value(name).into_iter().flat_map(|value| value.split(','));
        values.map(|value| read(name, value.trim())).collect()
    }

    /// The labels that are asked for.
    pub fn labels(&self) -> Result<Vec<Label>, Problem> {
        let given = self.0.iter().filter(|(name, _)| name == REPEATED);
        let labels = given.map(|(name, value)| read(name, value)).collect::<Result<Vec<Label>, _>>()?;
        match labels.len() {
            0..=MAX_LABELS => Ok(labels),
            more => Err(Problem::invalid(REPEATED, format!("got {more}, expected at most {MAX_LABELS}"))),
        }
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// A time, as Unix time in milliseconds.
pub struct Moment(pub u64);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Moment, String> {
        let expected = || format!("got \"{text}\", expected a time such as 2026-01-31T08:00:00Z");
        let at = humantime::parse_rfc3339(text).map_err(|_| expected())?;
        let since_epoch = at.duration_since(std::time::UNIX_EPOCH).map_err(|_| expected())?;
        // The time in a job's id has 48 bits, which last until the year 10889.
        u64::try_from(since_epoch.as_millis()).map(Moment).map_err(|_| expected())
    }
}

fn read<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<T, Problem> {
    value.parse().map_err(|error: T::Err| {
        let error = error.to_string();
        let said = if error.starts_with("got ") { error } else { format!("got \"{value}\": {error}") };
        Problem::invalid(name, shown(&said))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_known_given_once_and_well_formed() {
        let query = Query::parse(Some("limit=7&agent=a%20b"), &["limit", "agent"]).unwrap();
        assert_eq!(query.one::<usize>("limit").unwrap(), Some(7));
        assert_eq!(query.one::<usize>("cursor").unwrap(), None);
        assert_eq!(query.one::<job::Name>("agent").unwrap_err().status(), 422);
        let query = Query::parse(Some("label=a%3D1&label=b="), &["label"]).unwrap();
        assert_eq!(query.labels().unwrap().iter().map(Label::to_string).collect::<Vec<_>>(), ["a=1", "b="]);
        for wrong in ["label=a".to_owned(), "label=a=1&".repeat(9)] {
            let problem = Query::parse(Some(&wrong), &["label"]).unwrap().labels().unwrap_err();
            assert_eq!(problem.status(), 422, "{wrong}");
        }
        for wrong in ["memroy=7", "limit=7&limit=8"] {
            assert_eq!(
                Query::parse(Some(wrong), &["limit"]).err().map(|problem| problem.status()),
                Some(422)
            );
        }
    }
}
