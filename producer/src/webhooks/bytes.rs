//! How many bytes of large bodies are under way at a time: of a webhook, of a tenant and in all.
//!
//! A body is in memory for as long as its receiver takes, and tenants decide how large it is. So its bytes are taken before
//! it is read: first those of its webhook, then those of its tenant, then those of all. A body that waits for its webhook's
//! bytes has taken none of its tenant's. Bytes are given in the order in which they were asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// In all. A relay may have 256 MiB.
const IN_ALL: u32 = 32 << 20;
/// Of one tenant, so that it leaves some for the others.
const OF_TENANT: u32 = IN_ALL / 4;
/// Of one webhook, likewise.
const OF_WEBHOOK: u32 = OF_TENANT / 4;
/// Smaller bodies are not counted: the places bound them.
const SMALL: u64 = 64 << 10;

/// The bytes that are free.
pub(super) struct Bytes {
    all: Arc<Semaphore>,
    /// Those of tenants and of webhooks that have some under way.
    parts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Bytes that were taken; they are free again when this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    _webhook: OwnedSemaphorePermit,
    _tenant: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Bytes {
    pub(super) fn new() -> Bytes {
        Bytes { all: Arc::new(Semaphore::new(IN_ALL as usize)), parts: Mutex::default() }
    }

    /// Waits until a body of this size may be under way. One that is larger than a bound waits until nothing else is counted
    /// there.
    pub(super) async fn take(&self, tenant: &str, webhook: &str, bytes: u64) -> Option<Taken> {
        if bytes <= SMALL {
            return None;
        }
        // No webhook has the name of a tenant.
        let webhook = taken(self.part(format!("webhook {webhook}"), OF_WEBHOOK), OF_WEBHOOK, bytes).await;
        let tenant = taken(self.part(format!("tenant {tenant}"), OF_TENANT), OF_TENANT, bytes).await;
        let all = taken(self.all.clone(), IN_ALL, bytes).await;
        Some(Taken { _webhook: webhook, _tenant: tenant, _all: all })
    }

    fn part(&self, of: String, bytes: u32) -> Arc<Semaphore> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = parts.get(&of).and_then(Weak::upgrade) {
            return part;
        }
        parts.retain(|_, part| part.strong_count() > 0);
        let part = Arc::new(Semaphore::new(bytes as usize));
        parts.insert(of, Arc::downgrade(&part));
        part
    }
}

async fn taken(from: Arc<Semaphore>, of: u32, bytes: u64) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(of);
    from.acquire_many_owned(bytes).await.expect("it is never closed")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn a_webhook_a_tenant_and_all_have_a_bound_and_one_body_alone_may_be_larger() {
        let bytes = Bytes::new();
        let take = |tenant, webhook, size| bytes.take(tenant, webhook, size).now_or_never();
        let mut under_way = vec![take("a", "1", MIB).unwrap(), take("a", "1", MIB).unwrap()];
        assert!(take("a", "1", MIB).is_none(), "a webhook has 2 MiB");
        assert!(take("a", "1", SMALL).is_some_and(|taken| taken.is_none()), "small ones are not counted");
        under_way.extend(["2", "3", "4"].map(|webhook| take("a", webhook, 2 * MIB).unwrap()));
        assert!(take("a", "5", MIB).is_none(), "a tenant has 8 MiB");
        under_way.extend(["b", "c"].map(|tenant| take(tenant, tenant, 8 * MIB).unwrap()));
        assert!(
            take("d", "d", 9 * MIB).is_none() && take("d", "d", 100 * MIB).is_none(),
            "24 of 32 MiB are taken"
        );
        under_way.push(take("d", "d", 8 * MIB).unwrap());
        assert!(take("e", "e", MIB).is_none());
        under_way.clear();
        let alone = take("d", "d", 100 * MIB).unwrap();
        assert!(alone.is_some() && take("e", "e", MIB).is_none());
        drop(alone);
        assert!(
            take("e", "e", MIB).is_some() && bytes.parts.lock().unwrap().len() <= 2,
            "parts are forgotten"
        );
    }
}
