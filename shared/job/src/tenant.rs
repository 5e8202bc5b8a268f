//! Tenants: whose work a job is, and the key under which the ledger keeps a tenant's sessions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::clip;
use crate::{IdError, Name};

/// The tenant of whatever names none: all raw AMQP messages, and all rows from before there were tenants.
const DEFAULT: &str = "default";
/// The longest name of a tenant, in bytes.
const MAX_BYTES: usize = 64;
/// How many shards there are for the text of sessions.
const SHARDS: u8 = 64;
/// The first character of the keys of other tenants' sessions. No [`Name`] can contain it.
const MARK: char = '~';

/// A tenant, by its name: a [`Name`] of at most 64 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(Name);

impl Tenant {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether this is the tenant `default`.
    pub fn is_default(&self) -> bool {
        self.as_str() == DEFAULT
    }

    /// Returns the name for a place that shows it only where it differs from `default`.
    pub fn unless_default(&self) -> Option<&str> {
        (!self.is_default()).then(|| self.as_str())
    }
}

impl TryFrom<String> for Tenant {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        if text.len() > MAX_BYTES {
            return Err(IdError::BadTenant(clip(&text)));
        }
        Name::try_from(text).map(Tenant).map_err(|error| match error {
            IdError::BadName(text) => IdError::BadTenant(text),
            other => other,
        })
    }
}

impl FromStr for Tenant {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.to_owned().try_into()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> String {
        tenant.0.into()
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The key of a session in the ledger: its name for the tenant `default`, else `~tenant/name`. So sessions of two
/// tenants never meet, even if their names are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionKey(String);

impl SessionKey {
    /// Returns the key of a tenant's session.
    pub fn new(tenant: &Tenant, session: &Name) -> SessionKey {
        SessionKey(match tenant.unless_default() {
            None => session.as_str().to_owned(),
            Some(tenant) => format!("{MARK}{tenant}/{session}"),
        })
    }

    /// Returns a key that the fleet has written. Only the fleet writes keys, so it is not checked again.
    pub fn of_ledger(key: impl Into<String>) -> SessionKey {
        SessionKey(key.into())
    }

    /// Returns the shard in which the session's text is streamed. All processes of all versions agree about it (FNV-1a).
    pub fn shard(&self) -> u8 {
        let hash = self.0.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash % u64::from(SHARDS)) as u8
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the bounds of a tenant's keys: they lie behind the first text and before the second one, in the order of
    /// their bytes.
    pub fn range(tenant: &Tenant) -> (String, String) {
        match tenant.unless_default() {
            // The mark comes after every character of a name.
            None => (String::new(), MARK.to_string()),
            // The character after the slash is a zero.
            Some(tenant) => (format!("{MARK}{tenant}/"), format!("{MARK}{tenant}0")),
        }
    }

    /// Splits a key from the ledger. Only the fleet writes keys, so the parts are not checked again.
    pub fn split(key: &str) -> (Tenant, Name) {
        let other = key.strip_prefix(MARK).and_then(|rest| rest.split_once('/'));
        match other {
            Some((tenant, session)) => (Tenant(Name::unchecked(tenant)), Name::unchecked(session)),
            None => (Tenant::default(), Name::unchecked(key)),
        }
    }
}

impl From<Name> for SessionKey {
    /// Returns the key of a session of the tenant `default`.
    fn from(session: Name) -> SessionKey {
        SessionKey(session.into())
    }
}

impl From<SessionKey> for String {
    fn from(key: SessionKey) -> String {
        key.0
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tenant_is_a_name_of_at_most_64_characters() {
        assert_eq!("default".parse(), Ok(Tenant::default()));
        for bad in ["", ".a", "a/b", "~a", "é", &"x".repeat(65)] {
            let error = bad.parse::<Tenant>().unwrap_err();
            assert!(error.to_string().contains("1 to 64 characters"), "{bad:?}: {error}");
        }
        assert_eq!("x".repeat(64).parse::<Tenant>().unwrap().as_str().len(), 64);
    }

    #[test]
    fn the_shard_of_a_session_never_changes() {
        let shard = |key: &str| SessionKey::of_ledger(key).shard();
        assert_eq!([shard(""), shard("s-1"), shard("~acme/s-1")], [37, 36, 51]);
    }

    proptest! {
        #[test]
        fn a_key_says_whose_session_it_is(
            tenant in "[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,63}",
            session in "[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,127}",
        ) {
            let (tenant, session): (Tenant, Name) = (tenant.parse().unwrap(), session.parse().unwrap());
            let key = SessionKey::new(&tenant, &session);
            prop_assert_eq!(SessionKey::split(key.as_str()), (tenant.clone(), session.clone()));
            prop_assert_eq!(key.as_str() == session.as_str(), tenant.is_default());
        }

        #[test]
        fn no_key_panics(key in any::<String>()) {
            let _ = SessionKey::split(&key);
        }
    }
}
