//! Observe: what is known of each pool. Each source is read independently, and each reading has its own age.
//!
//! | source | what | asked |
//! |---|---|---|
//! | queue | messages ready, by passive declares on one connection | each round |
//! | ledger | jobs and workers; Postgres's clock | each round |
//! | durations | how long jobs ran, from the ledger | every 10 s |
//! | management | messages ready by RabbitMQ's management API, if its address is set | every 5 s |
//!
//! What cannot be read is unknown, never zero: a missing queue has no reading, and a source that fails keeps its last
//! reading, which ages. Every source is asked in its own task, and a round waits for each no longer than its bound, so
//! a source that hangs delays nothing else.
//!
//! A queue that claims to be empty is unknown, too, if the ledger's jobs have been waiting in it for seconds: it has
//! lost its leader, or its messages, and they will be there again.
//!
//! A reading is dated by when it was asked for. Between two readings of Postgres's clock, time advances by our own
//! monotonic clock, so ages are right whatever time this machine's clock shows.

mod account;
mod ledger;
mod management;
mod source;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use job::Name;
use queue::{Broker, Depth, Depths, QueueError, jobs_queue};
use store::{Clock, Store};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::decide::{Demand, Observation, Reading, ServiceTime};
use ledger::WatchedPools;
use source::{Answer, Source};

pub use account::Account;
pub use ledger::Watched;
pub use management::Management;

/// How often rounds begin.
const ROUND: Duration = Duration::from_secs(1);
/// How long a round waits for its sources. A later answer counts in the next round.
const TIMEOUT: Duration = Duration::from_millis(800);
/// How long the broker has for all queues together: less than a round waits, so that its answer still counts in it.
const LOOK: Duration = Duration::from_millis(700);
const DURATIONS_EVERY: Duration = Duration::from_secs(10);
/// A job that has waited for this long, and still waits, is in the queue or on its way into it.
const WAITING_MS: u64 = 5_000;
/// RabbitMQ's statistics are up to 5 s old themselves.
const MANAGEMENT_EVERY: Duration = Duration::from_secs(5);

/// Observes pools, round by round.
pub struct Observer {
    sources: tokio::sync::Mutex<Sources>,
    seen: Mutex<Seen>,
    rounds: watch::Sender<u64>,
}

/// The health of all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The broker.
    pub queue: SourceHealth,
    /// Postgres.
    pub ledger: SourceHealth,
    /// RabbitMQ's management API; healthy if it is not read.
    pub management: SourceHealth,
}

/// The health of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceHealth {
    /// Why it could not be read in the last round, as a whole or in part; `None` if it could.
    pub error: Option<String>,
    /// Questions that failed since the start.
    pub failures: u64,
}

/// The depths of all queues in their order; `None` for a queue that does not exist.
type Look = Vec<Result<Option<Depth>, QueueError>>;

/// The sources to read.
struct Sources {
    ledger: Source<(Clock, Vec<Demand>)>,
    queue: Source<Look>,
    durations: Source<Vec<Option<ServiceTime>>>,
    management: Option<Source<HashMap<String, u64>>>,
}

/// What the sources answered.
struct Seen {
    clock: Option<Clock>,
    /// How often Postgres's clock was set.
    clock_steps: u64,
    /// In the order in which the sources are asked about them.
    pools: Vec<Pool>,
    places: HashMap<Name, usize>,
    health: Health,
}

#[derive(Default)]
struct Pool {
    queue: String,
    ready: Option<Answer<u64>>,
    /// Why the last look at the queue found no depth.
    ready_unknown: Option<String>,
    demand: Option<Answer<Demand>>,
    service: Option<ServiceTime>,
    managed: Option<Answer<u64>>,
}

impl Observer {
    /// Makes an observer of these pools, which has asked nothing yet. The broker may be one that only looks
    /// ([`queue::BrokerConfig::only_looking`]).
    pub fn new(
        broker: Broker,
        store: Store,
        pools: Vec<Watched>,
        management: Option<Management>,
    ) -> Observer {
        let unseen = |watched: &Watched| Pool { queue: jobs_queue(&watched.pool), ..Pool::default() };
        let seen = Seen {
            clock: None,
            clock_steps: 0,
            pools: pools.iter().map(unseen).collect(),
            places: pools.iter().enumerate().map(|(at, watched)| (watched.pool.clone(), at)).collect(),
            health: Health::default(),
        };
        let sources = tokio::sync::Mutex::new(Sources::new(&broker, store, &pools, management));
        Observer { sources, seen: Mutex::new(seen), rounds: watch::Sender::new(0) }
    }

    /// Runs a round each second, until asked to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            if stop.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    /// Runs one round: asks every source that is due, and waits for the answers for at most 0.8 s.
    pub async fn look(&self) {
        let mut sources = self.sources.lock().await;
        let Sources { ledger, queue, durations, management } = &mut *sources;
        let deadline = Instant::now() + TIMEOUT;
        let managed = async {
            match management.as_mut() {
                Some(management) => management.read(deadline).await,
                None => None,
            }
        };
        let answers =
            tokio::join!(ledger.read(deadline), queue.read(deadline), durations.read(deadline), managed);
        let health = Health {
            queue: queue.health(),
            ledger: ledger.health().and(durations.health()),
            management: management.as_ref().map(Source::health).unwrap_or_default(),
        };
        if self.seen().take(answers, health) {
            self.rounds.send_modify(|round| *round += 1);
        }
    }

    /// Counts the rounds. No round is announced until Postgres's clock has been read for the first time.
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Returns the time, in Unix milliseconds: Postgres's, or this machine's until Postgres has answered for the first
    /// time.
    pub fn now_ms(&self) -> u64 {
        let here = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        self.seen().clock.map_or_else(here, |clock| clock.now_unix_ms())
    }

    /// Returns how often Postgres's clock was set since this process began. Earlier dates are then by another clock.
    pub fn clock_steps(&self) -> u64 {
        self.seen().clock_steps
    }

    /// Returns the last readings of a pool. There are none for a pool that is not observed, or until Postgres's clock,
    /// which dates them, has been read. The workload and the budget are not observed here.
    pub fn latest(&self, pool: &Name) -> Observation {
        let seen = self.seen();
        match (seen.clock, seen.pool(pool)) {
            (Some(clock), Some(pool)) => pool.observation(clock.now_unix_ms()),
            _ => Observation::default(),
        }
    }

    /// Returns the health of all sources.
    pub fn health(&self) -> Health {
        self.seen().health.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    fn new(broker: &Broker, store: Store, pools: &[Watched], management: Option<Management>) -> Sources {
        let ledger = Arc::new(WatchedPools::new(store, pools));
        let queues = pools.iter().map(|watched| jobs_queue(&watched.pool));
        let depths = Arc::new(tokio::sync::Mutex::new(Depths::new(broker.clone(), queues)));
        let ask_demand = {
            let ledger = ledger.clone();
            move || ledger.clone().demand()
        };
        let ask_queues = move || {
            let depths = depths.clone();
            async move { Ok(depths.lock().await.look(LOOK).await) }
        };
        // A look at many queues can fail for some of them.
        let first_error =
            |depths: &Look| depths.iter().find_map(|depth| depth.as_ref().err()).map(QueueError::to_string);
        let ask_management = |management: Management| {
            Source::new("the management API", MANAGEMENT_EVERY, move || management.clone().ready())
        };
        Sources {
            ledger: Source::new("the ledger", Duration::ZERO, ask_demand),
            queue: Source::new("the queues", Duration::ZERO, ask_queues).judged_by(first_error),
            durations: Source::new("the jobs' durations", DURATIONS_EVERY, move || {
                ledger.clone().durations()
            }),
            management: management.map(ask_management),
        }
    }
}

/// One round's answers; `None` for a source that was not asked or has not answered.
type Answers = (
    Option<Answer<(Clock, Vec<Demand>)>>,
    Option<Answer<Look>>,
    Option<Answer<Vec<Option<ServiceTime>>>>,
    Option<Answer<HashMap<String, u64>>>,
);

impl Seen {
    /// Takes the answers of a round. Returns whether the time is known by now.
    fn take(&mut self, (ledger, queue, durations, managed): Answers, health: Health) -> bool {
        self.health = health;
        if let Some(Answer { value: (clock, demands), asked }) = ledger {
            let last = self.clock.replace(clock);
            if let Some(step) = last.and_then(|last| clock.step_since(&last)) {
                self.clock_steps += 1;
                warn!(
                    ?step,
                    "Postgres's clock was set, or this host has slept: pools continue at their current size"
                );
            }
            for (pool, value) in self.pools.iter_mut().zip(demands) {
                pool.demand = Some(Answer { value, asked });
            }
        }
        if let Some(Answer { value: depths, asked }) = queue {
            for (pool, depth) in self.pools.iter_mut().zip(depths) {
                pool.take_depth(depth, asked);
            }
        }
        if let Some(Answer { value: durations, .. }) = durations {
            for (pool, service) in self.pools.iter_mut().zip(durations) {
                pool.service = service;
            }
        }
        if let Some(Answer { value: managed, asked }) = managed {
            for pool in &mut self.pools {
                let ready = managed.get(&pool.queue);
                pool.managed = ready.map(|ready| Answer { value: *ready, asked });
            }
        }
        self.clock.is_some()
    }

    fn pool(&self, name: &Name) -> Option<&Pool> {
        self.pools.get(*self.places.get(name)?)
    }
}

impl Pool {
    fn take_depth(&mut self, depth: Result<Option<Depth>, QueueError>, asked: Instant) {
        match depth {
            Ok(Some(depth)) => {
                self.ready = Some(Answer { value: depth.ready, asked });
                self.ready_unknown = None;
            }
            Ok(None) => {
                self.ready = None;
                self.ready_unknown = Some(format!("there is no queue {}", self.queue));
            }
            Err(error) => self.ready_unknown = Some(error.to_string()),
        }
    }

    /// The depth, unless the queue claims to be empty although, by the ledger, jobs have been waiting in it.
    fn ready(&self) -> Option<&Answer<u64>> {
        self.ready.as_ref().filter(|ready| ready.value > 0 || self.waited_ms() < WAITING_MS)
    }

    /// How long the oldest job that could run has waited.
    fn waited_ms(&self) -> u64 {
        self.demand.as_ref().and_then(|demand| demand.value.oldest_waiting_ms).unwrap_or_default()
    }

    fn why_ready_is_unknown(&self, queue: &SourceHealth) -> Option<String> {
        match (&self.ready_unknown, self.ready(), &self.ready) {
            (Some(why), _, _) => Some(why.clone()),
            (None, Some(_), _) => None,
            (None, None, None) => queue.error.clone(),
            (None, None, Some(_)) => {
                let waited_s = self.waited_ms() / 1_000;
                Some(format!(
                    "queue {} claims to be empty, but a job has waited for {waited_s} s",
                    self.queue
                ))
            }
        }
    }

    fn observation(&self, now_ms: u64) -> Observation {
        let demand = self.demand.as_ref().map(|demand| demand.reading(now_ms));
        Observation {
            ready: self.ready().map(|ready| ready.reading(now_ms)),
            demand: demand
                .map(|it| Reading { value: Demand { service: self.service, ..it.value }, at_ms: it.at_ms }),
            managed_ready: self.managed.as_ref().map(|managed| managed.reading(now_ms)),
            ..Observation::default()
        }
    }
}

impl SourceHealth {
    /// Combines the health of two questions to one place.
    fn and(self, other: SourceHealth) -> SourceHealth {
        SourceHealth { error: self.error.or(other.error), failures: self.failures + other.failures }
    }
}
