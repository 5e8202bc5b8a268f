//! What each tenant may submit, looked up in the ledger and kept for a few seconds.

use std::sync::Arc;

use job::Tenant;
use store::{Store, StoreError, TenantLimits};

use super::cache::Cache;

/// The limits of tenants. A change counts within 5 s.
pub struct Limits {
    store: Store,
    cache: Cache<TenantLimits>,
}

impl Limits {
    /// Looks limits up here.
    pub fn new(store: Store) -> Limits {
        Limits { store, cache: Cache::new() }
    }

    /// The limits of a tenant; a tenant that is not there has none.
    pub async fn of(&self, tenant: &Tenant) -> Result<Arc<TenantLimits>, StoreError> {
        let found = self.cache.get(tenant.as_str(), async || self.store.tenant_limits(tenant).await).await?;
        Ok(found.map(|(limits, _)| limits).unwrap_or_default())
    }
}
