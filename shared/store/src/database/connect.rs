//! How connections are opened, which of them have priority when Postgres has too few, and which are no longer
//! trusted.
//!
//! The heartbeat's connection counts as one of the store's, and has priority over all others. If Postgres has
//! no place left for it (SQLSTATE 53300), idle connections are closed, the next one that work gives back is
//! given up, and no other is opened until the heartbeat has its own. A connection that was idle is probed
//! before it is used, because a firewall that has forgotten it sends no sign of that.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use deadpool_postgres::{ClientWrapper, Connect, Hook, HookError, Metrics, Pool, WeakPool};
use postgres::{Address, connect};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error};
use tracing::debug;

/// A connection that was idle for this long may have been cut off without a sign.
const SLEPT: Duration = Duration::from_secs(2);
/// How long such a connection has for its answer to a probe.
const ASK_BOUND: Duration = Duration::from_secs(1);
/// How often a heartbeat without a connection checks whether there is a place for one.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

/// What the two pools of a store share.
#[derive(Clone, Default)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Whether the heartbeat waits for a connection.
    wanted: watch::Sender<bool>,
    /// Whether the next connection that work gives back is given up for it.
    gives_up_one: AtomicBool,
    work: OnceLock<WeakPool>,
}

impl Places {
    /// Sets the pool that makes room.
    pub(crate) fn made_by(&self, work: &Pool) {
        // Set once, when the store is made.
        let _ = self.0.work.set(work.weak());
    }

    fn drop_idle(&self, which: impl Fn(Metrics) -> bool) {
        if let Some(work) = self.0.work.get().and_then(WeakPool::upgrade) {
            work.retain(|_, metrics| !which(metrics));
        }
    }

    /// Returns a hook that probes each of work's connections before it is used again.
    pub(crate) fn look_before_use(&self) -> Hook {
        let places = self.clone();
        Hook::async_fn(move |client: &mut ClientWrapper, metrics: &Metrics| {
            let (places, slept) = (places.clone(), metrics.last_used() >= SLEPT);
            Box::pin(async move {
                if places.0.gives_up_one.swap(false, Ordering::Relaxed) {
                    return Err(HookError::message("given up for the heartbeat"));
                }
                if !slept || matches!(timeout(ASK_BOUND, client.simple_query("")).await, Ok(Ok(_))) {
                    return Ok(());
                }
                // The others that were idle for as long lead to the same place.
                places.drop_idle(|metrics| metrics.last_used() >= SLEPT);
                Err(HookError::message("no answer to a probe"))
            })
        })
    }
}

/// Opens connections for work, but not while the heartbeat waits for one. The pool bounds this wait.
pub(crate) struct ForWork(pub Address, pub Places);

impl Connect for ForWork {
    fn connect(&self, _: &Config) -> Connecting<'_> {
        Box::pin(async move {
            // This fails only when the sender is gone, and we hold the sender.
            let _ = self.1.0.wanted.subscribe().wait_for(|wanted| !wanted).await;
            Ok(connect(&self.0).await?.into_parts())
        })
    }
}

/// Opens the heartbeat's connection, and makes room for it. The pool bounds this as well.
pub(crate) struct ForBeats(pub Address, pub Places);

impl Connect for ForBeats {
    fn connect(&self, _: &Config) -> Connecting<'_> {
        Box::pin(async move {
            let mut wanting = None;
            loop {
                match connect(&self.0).await {
                    Err(error) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                        wanting.get_or_insert_with(|| Wanting::begin(&self.1));
                        self.1.drop_idle(|_| true);
                        sleep(LOOK_AGAIN).await;
                    }
                    other => return Ok(other?.into_parts()),
                }
            }
        })
    }
}

/// Keeps work from opening connections while it lives.
struct Wanting<'a>(&'a Places);

impl Wanting<'_> {
    fn begin(places: &Places) -> Wanting<'_> {
        debug!("no place is left for the heartbeat's connection: work gives one up");
        places.0.wanted.send_replace(true);
        places.0.gives_up_one.store(true, Ordering::Relaxed);
        Wanting(places)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.0.gives_up_one.store(false, Ordering::Relaxed);
        self.0.0.wanted.send_replace(false);
    }
}
