//! Memory: bounds what large jobs take while something is made of them.
//!
//! A job's input lies in memory several times while its message becomes a row of the ledger, and so do the entries of a
//! checkpoint until Postgres has answered. Elsewhere there is one text, which all share. So only so many bytes are on these
//! two ways at a time; what is more waits in its turn. (Without a bound, a thousand jobs of 200 kB that began at once took
//! 2 GB.)

use tokio::sync::{Semaphore, SemaphorePermit};

/// The unit in which bytes are counted.
const UNIT: usize = 1_024;
/// The most on each of the ways: four batches of the ledger's.
const MOST: usize = 4 * 1_024 * 1_024 / UNIT;

/// How much may still be on its way.
pub struct Memory {
    arriving: Semaphore,
    written: Semaphore,
}

/// A place on one of the ways, until this is dropped.
pub struct OnItsWay<'a> {
    _place: Option<SemaphorePermit<'a>>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { arriving: Semaphore::new(MOST), written: Semaphore::new(MOST) }
    }
}

impl Memory {
    /// Waits until a message of so many bytes may be read. It is on its way until its job is claimed.
    pub async fn arrives(&self, bytes: usize) -> OnItsWay<'_> {
        place(&self.arriving, bytes).await
    }

    /// Waits until a checkpoint of about so many bytes may be written. It is on its way until Postgres has answered.
    pub async fn is_written(&self, bytes: usize) -> OnItsWay<'_> {
        place(&self.written, bytes).await
    }
}

/// Takes a place. What is larger than all of it goes alone. Waiting can be given up at any time.
async fn place(way: &Semaphore, bytes: usize) -> OnItsWay<'_> {
    let units = bytes.div_ceil(UNIT).clamp(1, MOST);
    // It is never closed.
    OnItsWay { _place: way.acquire_many(u32::try_from(units).unwrap_or(u32::MAX)).await.ok() }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_is_too_much_at_a_time_waits_for_its_turn() {
        let memory = Memory::default();
        let half = MOST / 2 * UNIT;
        let (one, _other) = (memory.arrives(half).await, memory.arrives(half).await);
        let mut large = Box::pin(memory.arrives(usize::MAX));
        assert!((&mut large).now_or_never().is_none());
        assert!(memory.is_written(usize::MAX).now_or_never().is_some(), "each way has its own");
        drop(one);
        assert!(memory.arrives(1).now_or_never().is_none(), "the large one comes first");
        drop(large);
        assert!(memory.arrives(1).now_or_never().is_some());
    }
}
