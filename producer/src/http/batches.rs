//! How many batches are read at a time. Each holds some megabytes and keeps Postgres busy, so there is a bound for all, and
//! one for each tenant, so that no tenant takes all places.

use job::Tenant;

use super::metrics;
use super::problem::{Kind, Problem};
use super::shares::{Share, Shares};

/// Of all tenants together.
const MOST: usize = 16;
/// Of one tenant.
const MOST_OF_ONE: usize = 8;

/// The batches that are being read, by tenant.
pub struct Batches(Shares<Tenant>);

impl Default for Batches {
    fn default() -> Batches {
        Batches(Shares::new(MOST, MOST_OF_ONE))
    }
}

impl Batches {
    /// A place for a batch of this tenant, until it is dropped.
    pub fn begin(&self, tenant: &Tenant) -> Result<Share<Tenant>, Problem> {
        self.0.take(Some(tenant), 1).map_err(|_| {
            metrics::met_bound("batches");
            let detail = format!(
                "too many batches at a time, expected at most {MOST_OF_ONE} of a tenant and {MOST} in all"
            );
            Problem::new(Kind::Busy, detail)
        })
    }
}
