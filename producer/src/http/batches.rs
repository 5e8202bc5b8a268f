//! How many batches are read at a time. Each holds some megabytes and keeps Postgres busy, so there is a bound for all, and
//! one for each tenant, so that no tenant takes all places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use job::Tenant;

use super::problem::{Kind, Problem};

/// Of all tenants together.
const MOST: usize = 16;
/// Of one tenant.
const MOST_OF_ONE: usize = 8;

/// The batches that are being read, by tenant.
#[derive(Clone, Default)]
pub struct Batches(Arc<Mutex<HashMap<Tenant, usize>>>);

impl Batches {
    /// A place for a batch of this tenant, until it is dropped.
    pub fn begin(&self, tenant: &Tenant) -> Result<Place, Problem> {
        let mut running = self.lock();
        let (all, own) = (running.values().sum::<usize>(), running.get(tenant).copied().unwrap_or_default());
        if all >= MOST || own >= MOST_OF_ONE {
            let detail = format!(
                "too many batches at a time, expected at most {MOST_OF_ONE} of a tenant and {MOST} in all"
            );
            return Err(Problem::new(Kind::Busy, detail));
        }
        running.insert(tenant.clone(), own + 1);
        Ok(Place { batches: self.clone(), tenant: tenant.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch's place.
pub struct Place {
    batches: Batches,
    tenant: Tenant,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.batches.lock();
        if let Some(own) = running.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                running.remove(&self.tenant);
            }
        }
    }
}
