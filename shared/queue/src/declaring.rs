//! What a connection declares, and when. A missing queue is declared only after it has been missing for a while.
//!
//! A queue that exists is declared only at a process's first connection, to check that its arguments are those of this
//! version. If it is deleted at just that moment, this declares it too early.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::address::Address;
use crate::declarations::DELETION_TIME;
use crate::link::Link;
use crate::{BrokerConfig, QueueError, topology};

/// How often to look for the queue meanwhile. Another client may declare it, and it may be deleted once more. Each look
/// that does not find it costs a channel.
const LOOK: Duration = Duration::from_millis(200);

/// Whether a queue that was deleted at that moment has now been missing for long enough, but not for much longer. A
/// late look may come when the queue has just been deleted once more.
fn is_settled(deleted: Option<std::time::Instant>) -> bool {
    deleted.is_some_and(|at| (DELETION_TIME..DELETION_TIME + 2 * LOOK).contains(&at.elapsed()))
}

impl Link {
    /// Connects, and declares the topology if the configuration says so. `deleted` is when the last deletion of a
    /// queue was seen. `redeclared` gets the pools whose queue was missing, and until when, even if something fails
    /// later.
    pub(crate) async fn open_and_declare(
        address: &Address,
        config: &BrokerConfig,
        pools: &[job::Name],
        deleted: Option<std::time::Instant>,
        redeclared: &mut BTreeMap<job::Name, std::time::Instant>,
        generation: u64,
    ) -> Result<Link, QueueError> {
        let link = Link::open(address, config, generation).await?;
        if config.declares
            && let Err(error) = link.declare(pools, deleted, redeclared).await
        {
            link.close(config.close_timeout).await;
            return Err(error);
        }
        Ok(link)
    }

    /// Declares what all pools share, and the queues of these pools.
    async fn declare(
        &self,
        pools: &[job::Name],
        deleted: Option<std::time::Instant>,
        redeclared: &mut BTreeMap<job::Name, std::time::Instant>,
    ) -> Result<(), QueueError> {
        let ours = pools.iter().map(topology::jobs_queue);
        let queues: Vec<String> = [topology::DEAD_QUEUE, topology::DEAD_SWEEP_QUEUE]
            .map(str::to_owned)
            .into_iter()
            .chain(ours)
            .collect();
        let at_first = self.missing_of(queues).await?;
        let mut missing = at_first.clone();
        // If no fleet was here before, nothing was deleted.
        if !missing.is_empty() && !is_settled(deleted) && self.has_exchange().await? {
            missing = self.still_missing(missing).await?;
        }
        let is_first = self.generation == 1;
        if is_first || !missing.is_empty() {
            self.declare_shared().await?;
        }
        for pool in pools {
            let queue = topology::jobs_queue(pool);
            if missing.contains(&queue) {
                self.declare_now(pool).await?;
                redeclared.insert(pool.clone(), std::time::Instant::now());
            } else if is_first && !at_first.contains(&queue) && self.depth(&queue).await?.is_some() {
                self.declare_now(pool).await?;
            }
        }
        Ok(())
    }

    /// Returns those of these queues that are missing.
    async fn missing_of(&self, queues: Vec<String>) -> Result<Vec<String>, QueueError> {
        let mut missing = Vec::new();
        for queue in queues {
            if self.depth(&queue).await?.is_none() {
                missing.push(queue);
            }
        }
        Ok(missing)
    }

    /// Returns those of these missing queues that stay missing for [`DELETION_TIME`].
    async fn still_missing(&self, mut missing: Vec<String>) -> Result<Vec<String>, QueueError> {
        let since = Instant::now();
        while !missing.is_empty() && since.elapsed() < DELETION_TIME {
            sleep(LOOK).await;
            missing = self.missing_of(missing).await?;
        }
        Ok(missing)
    }

    async fn has_exchange(&self) -> Result<bool, QueueError> {
        self.on_control("look for the exchange of jobs", topology::has_exchange).await
    }

    async fn declare_shared(&self) -> Result<(), QueueError> {
        self.on_control("declare the topology", async |channel| topology::declare_shared(channel).await).await
    }

    /// Declares a pool's queue if it is missing and stays missing for [`DELETION_TIME`]. Returns whether it was
    /// missing.
    pub(crate) async fn declare_missing(&self, pool: &job::Name) -> Result<bool, QueueError> {
        let asked = Instant::now();
        let queue = topology::jobs_queue(pool);
        let lock = self.declarations.lock(&queue);
        let mut refused = lock.lock().await;
        if self.declarations.known().get(&queue).is_some_and(|seen| *seen > asked) {
            return Ok(false);
        }
        if let Some((at, error)) = &*refused
            && *at > asked
        {
            return Err(error.clone());
        }
        let declaring = async {
            let missing = self.missing_of(vec![queue]).await?;
            let is_missing = !self.still_missing(missing).await?.is_empty();
            if is_missing {
                self.declare_now(pool).await?;
            }
            Ok(is_missing)
        };
        let declared = declaring.await;
        *refused = declared.as_ref().err().map(|error: &QueueError| (Instant::now(), error.clone()));
        declared
    }

    /// Declares a pool's queue. The broker refuses this if a queue of another kind has the name.
    pub(crate) async fn declare_now(&self, pool: &job::Name) -> Result<(), QueueError> {
        let queue = topology::jobs_queue(pool);
        let doing = format!("declare queue {queue}");
        self.on_control(&doing, async |channel| topology::declare_pool(channel, pool).await).await?;
        self.declarations.note(&queue);
        Ok(())
    }

    /// Makes sure that a queue exists before a slot consumes from it, because consuming from a missing queue would
    /// close the channel of all slots. `pool` is set if the queue is ours to declare. Returns whether the queue was
    /// missing.
    pub(crate) async fn ensure(&self, queue: &str, pool: Option<&job::Name>) -> Result<bool, QueueError> {
        if self.declarations.known().contains_key(queue) {
            return Ok(false);
        }
        match pool {
            Some(pool) => self.declare_missing(pool).await,
            None if self.depth(queue).await?.is_some() => Ok(false),
            None => {
                let doing = format!("consume from queue {queue}");
                Err(QueueError::Failed { doing, reason: "the queue does not exist".to_owned() })
            }
        }
    }
}
