//! A workload's name, as it is written in a pool's settings.

use std::fmt;
use std::str::FromStr;

/// The object that is scaled: `Deployment/workers`, or in full `apps/v1/Deployment/workers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The API group; empty for the core group.
    pub group: String,
    /// The group's version.
    pub version: String,
    /// The kind, as in a manifest.
    pub kind: String,
    /// The object's name.
    pub name: String,
}

/// A text that names no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "got \"{given}\": {problem}, expected KIND/NAME such as Deployment/worker or StatefulSet/worker, or \
     GROUP/VERSION/KIND/NAME such as apps/v1/Deployment/worker"
)]
pub struct ReferenceError {
    given: String,
    problem: &'static str,
}

/// The kinds whose group can be left out.
const WELL_KNOWN: [&str; 3] = ["Deployment", "StatefulSet", "ReplicaSet"];

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(given: &str) -> Result<Reference, ReferenceError> {
        let error = |problem| ReferenceError { given: given.to_owned(), problem };
        let parts: Vec<&str> = given.split('/').collect();
        let (group, version, kind, name) = match parts[..] {
            [kind, name] => {
                let known = WELL_KNOWN.iter().find(|known| known.eq_ignore_ascii_case(kind));
                ("apps", "v1", *known.ok_or_else(|| error("the group of this kind is not known"))?, name)
            }
            [version, kind, name] => ("", version, kind, name),
            [group, version, kind, name] => (group, version, kind, name),
            _ => return Err(error("it has not two to four parts")),
        };
        if !(group.is_empty() && parts.len() == 3 || is_subdomain(group)) {
            return Err(error("the group is not valid"));
        }
        let alphanumeric = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
        if !alphanumeric(version) || !version.starts_with('v') {
            return Err(error("the version is not valid"));
        }
        if !alphanumeric(kind) || !kind.starts_with(|c: char| c.is_ascii_uppercase()) {
            return Err(error("the kind is not valid"));
        }
        if !is_subdomain(name) {
            return Err(error("the name is not valid"));
        }
        let [group, version, kind, name] = [group, version, kind, name].map(str::to_owned);
        Ok(Reference { group, version, kind, name })
    }
}

/// Returns whether a text is a DNS subdomain by RFC 1123, as Kubernetes wants for names and groups.
pub(super) fn is_subdomain(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |label: &str| {
        !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reference { group, version, kind, name } = self;
        let separator = if group.is_empty() { "" } else { "/" };
        write!(f, "{group}{separator}{version}/{kind}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_briefly_or_in_full() {
        for (given, full) in [
            ("deployment/worker", "apps/v1/Deployment/worker"),
            ("StatefulSet/a.b", "apps/v1/StatefulSet/a.b"),
            ("v1/ReplicationController/w", "v1/ReplicationController/w"),
            ("argoproj.io/v1alpha1/Rollout/w", "argoproj.io/v1alpha1/Rollout/w"),
        ] {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), full);
        }
    }

    #[test]
    fn a_wrong_name_is_refused_with_what_would_be_right() {
        for (given, problem) in [
            ("worker", "two to four parts"),
            ("Rollout/worker", "group of this kind"),
            ("/v1/Deployment/worker", "the group"),
            ("apps/1/Deployment/worker", "the version"),
            ("apps/v1/deployments/worker", "the kind"),
            ("Deployment/Worker", "the name"),
            ("Deployment/", "the name"),
            ("Deployment/../x", "the version"),
        ] {
            let error = given.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("apps/v1/Deployment/worker"), "{error}");
        }
    }
}
