//! How many callers follow at a time: open streams, and waits for an end. Each costs memory for as long as its caller
//! likes, so there is a bound for all, for each tenant and for each key.

use std::time::Duration;

use job::Tenant;

use super::auth::Principal;
use super::problem::{Kind, Problem};
use super::shares::{Full, Share, Shares};

/// When a caller is asked to come back.
const AGAIN: Duration = Duration::from_secs(5);

/// Those who follow.
pub struct Followers {
    tenants: Shares<Tenant>,
    keys: Shares<String>,
}

/// A follower's place.
pub struct FollowerPlace {
    _of_tenant: Share<Tenant>,
    _of_key: Share<String>,
}

impl Followers {
    /// So many in all, of a tenant and of a key.
    pub fn new(most: usize, of_tenant: usize, of_key: usize) -> Followers {
        Followers { tenants: Shares::new(most, of_tenant), keys: Shares::new(usize::MAX, of_key) }
    }

    /// A place for this caller, until it is dropped.
    pub fn begin(&self, principal: &Principal) -> Result<FollowerPlace, Problem> {
        let key = Some(principal.key_id().to_owned()).filter(|key| !key.is_empty());
        let of_key = self.keys.take(key.as_ref(), 1).map_err(|full| refused("key", full))?;
        let of_tenant =
            self.tenants.take(Some(principal.tenant()), 1).map_err(|full| refused("tenant", full))?;
        Ok(FollowerPlace { _of_tenant: of_tenant, _of_key: of_key })
    }
}

fn refused(whose: &str, full: Full) -> Problem {
    let one =
        |most| format!("{most} streams and waits of the {whose} are open, which is its bound at one process");
    let all = |most| format!("{most} streams and waits are open, which is the bound of this process");
    full.problem("followers", Kind::TooManyFollowers, (one, all)).retry_after(AGAIN)
}
