//! What a key allows.

use std::fmt;
use std::str::FromStr;

use job::Tenant;
use serde::Serialize;

/// One kind of thing that a caller may do. None includes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Submit jobs.
    Submit,
    /// See jobs and sessions: states, times, costs; sizes and hashes of what was said.
    Read,
    /// See what was said: inputs, outputs, sessions' states.
    Content,
    /// Cancel, redrive, drop, delete.
    Operate,
    /// What reaches beyond the tenant's own jobs, such as `reply_to`.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 5] = [Scope::Submit, Scope::Read, Scope::Content, Scope::Operate, Scope::Admin];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Submit => "submit",
            Scope::Read => "read",
            Scope::Content => "content",
            Scope::Operate => "operate",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no scope.
#[derive(Debug, thiserror::Error)]
#[error("got \"{0}\", expected one of submit, read, content, operate, admin")]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;
    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let found = Scope::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| UnknownScope(text.to_owned()))
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Returns the set of all scopes.
    pub fn all() -> Scopes {
        Scope::ALL.into_iter().collect()
    }

    /// Returns whether the set has this scope.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Returns the scopes in a fixed order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }

    /// Reads what the ledger holds. A scope that this release does not know allows nothing here.
    pub(crate) fn read(names: &[String]) -> Scopes {
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    pub(crate) fn names(self) -> Vec<&'static str> {
        self.iter().map(Scope::as_str).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Scopes(scopes.into_iter().fold(0, |set, scope| set | (1 << scope as u8)))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.names().join(","))
    }
}

impl Serialize for Scopes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// A caller that has shown a valid key: on whose behalf it asks, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Its tenant.
    pub tenant: Tenant,
    /// The key's public id.
    pub key_id: String,
    /// What the key allows.
    pub scopes: Scopes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in_and_no_other_scope() {
        let set: Scopes = [Scope::Read, Scope::Admin].into_iter().collect();
        for scope in Scope::ALL {
            assert_eq!(set.has(scope), matches!(scope, Scope::Read | Scope::Admin), "{scope}");
            assert_eq!(scope.to_string().parse::<Scope>().ok(), Some(scope));
        }
        assert_eq!(set.to_string(), "read,admin");
        let known = Scopes::read(&["admin".to_owned(), "of a later release".to_owned()]);
        assert_eq!(known.to_string(), "admin");
        assert_eq!(Scopes::all().iter().count(), 5);
        assert!("Read".parse::<Scope>().unwrap_err().to_string().contains("expected one of submit"));
    }
}
