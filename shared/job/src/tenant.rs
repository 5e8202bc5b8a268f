//! Tenants: groups of callers that do not see each other's work.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{IdError, Name};

/// The name of a tenant: a [`Name`] of at most 64 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

impl Tenant {
    /// The most characters of a name.
    const MAX: usize = 64;

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    /// Returns `default`, the tenant of what names none.
    fn default() -> Self {
        Tenant("default".to_owned())
    }
}

impl TryFrom<String> for Tenant {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        let name = Name::try_from(text)?;
        if name.as_str().len() > Tenant::MAX {
            return Err(IdError::LongTenant(crate::id::clip(name.as_str())));
        }
        Ok(Tenant(name.into()))
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
        tenant.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
