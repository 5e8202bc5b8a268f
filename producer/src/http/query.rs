//! The parameters of a request: each known to its route, given once, and of the right form.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::MatchedPath;
use axum::http::Method;
use axum::http::request::Parts;
use job::{Label, MAX_LABELS, shown};
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::{OpenApi, RefOr};

use super::problem::Problem;

/// The names of the parameters that each route reads: those that the document lists. Every request carries this.
#[derive(Clone)]
pub struct KnownNames(Arc<HashMap<(Method, String), Vec<String>>>);

impl KnownNames {
    /// Those of this document.
    pub fn of(document: &OpenApi) -> KnownNames {
        let mut known = HashMap::new();
        for (path, item) in &document.paths.paths {
            let methods =
                [(Method::GET, &item.get), (Method::POST, &item.post), (Method::DELETE, &item.delete)];
            for (method, operation) in methods {
                let Some(operation) = operation else { continue };
                let parameters = operation.parameters.iter().flatten();
                let queried = parameters.filter_map(|parameter| match parameter {
                    RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => {
                        Some(parameter.name.clone())
                    }
                    RefOr::T(_) | RefOr::Ref(_) => None,
                });
                known.insert((method, path.clone()), queried.collect());
            }
        }
        KnownNames(Arc::new(known))
    }

    fn refuse_others(&self, method: &Method, route: &str, given: Option<&str>) -> Result<(), Problem> {
        let method = if method == Method::HEAD { Method::GET } else { method.clone() };
        let Some(known) = self.0.get(&(method, route.to_owned())) else { return Ok(()) };
        for (name, _) in url::form_urlencoded::parse(given.unwrap_or_default().as_bytes()) {
            if !known.iter().any(|other| *other == name) {
                let expected =
                    if known.is_empty() { "none".to_owned() } else { format!("one of {}", known.join(", ")) };
                return Err(Problem::invalid(
                    shown(&name),
                    format!("an unknown parameter, expected {expected}"),
                ));
            }
        }
        Ok(())
    }
}

/// Refuses a request with a parameter that its route does not read. A filter with a wrong name would let all pass.
pub fn only_known(parts: &Parts) -> Result<(), Problem> {
    match (parts.extensions.get::<KnownNames>(), parts.extensions.get::<MatchedPath>()) {
        (Some(known), Some(route)) => known.refuse_others(&parts.method, route.as_str(), parts.uri.query()),
        _ => Ok(()),
    }
}

/// The parameter that may be given several times.
const REPEATED: &str = "label";

/// Parameters by name.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows the `?`; refuses a name that comes twice and must not. [`only_known`] has refused others.
    pub fn parse(given: Option<&str>) -> Result<Query, Problem> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(given.unwrap_or_default().as_bytes()) {
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
    fn parameters_are_given_once_and_well_formed() {
        let query = Query::parse(Some("limit=7&agent=a%20b")).unwrap();
        assert_eq!(query.one::<usize>("limit").unwrap(), Some(7));
        assert_eq!(query.one::<usize>("cursor").unwrap(), None);
        assert_eq!(query.one::<job::Name>("agent").unwrap_err().status(), 422);
        let query = Query::parse(Some("label=a%3D1&label=b=")).unwrap();
        assert_eq!(query.labels().unwrap().iter().map(Label::to_string).collect::<Vec<_>>(), ["a=1", "b="]);
        for wrong in ["label=a".to_owned(), "label=a=1&".repeat(9)] {
            let problem = Query::parse(Some(&wrong)).unwrap().labels().unwrap_err();
            assert_eq!(problem.status(), 422, "{wrong}");
        }
        let twice = Query::parse(Some("limit=7&limit=8"));
        assert_eq!(twice.err().map(|problem| problem.status()), Some(422));
    }

    #[test]
    fn a_route_reads_the_parameters_that_it_has_in_the_document() {
        let routes = HashMap::from([
            ((Method::GET, "/list".to_owned()), vec!["limit".to_owned(), "cursor".to_owned()]),
            ((Method::POST, "/list".to_owned()), Vec::new()),
        ]);
        let known = KnownNames(Arc::new(routes));
        let said = |method, route, given| {
            let refused = known.refuse_others(&method, route, given).err()?;
            Some(serde_json::to_value(refused).unwrap()["detail"].as_str().unwrap().to_owned())
        };
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(said(method.clone(), "/list", None), None);
            assert_eq!(said(method.clone(), "/list", Some("limit=7&%63ursor=c")), None);
            let expected = "an unknown parameter, expected one of limit, cursor";
            assert_eq!(said(method, "/list", Some("limit=7&memroy=7")).as_deref(), Some(expected));
        }
        let expected = "an unknown parameter, expected none";
        assert_eq!(said(Method::POST, "/list", Some("limit=7")).as_deref(), Some(expected));
        assert_eq!(said(Method::GET, "/docs", Some("limit=7")), None, "not described");
    }
}
