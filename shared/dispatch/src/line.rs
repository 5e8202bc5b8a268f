//! The admitter: gives the jobs that wait in a pool's line their turns.
//!
//! Of all relays one admits at a time (the lease `admission`), and its transactions hold only while it does. It keeps as many
//! jobs on their way to the workers as these have free slots, and what they start in 50 ms, and one: so a slot never
//! waits for its next job, and a job that comes late and is wanted soon has few before it. Who is next, [`turns`] decides.
//!
//! What an admitter remembers ([`LineView`]) only saves reading: a successor begins with nothing, and finds the same.

mod turns;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use job::{Name, Trouble};
use prometheus::{Histogram, register_histogram};
use queue::BrokerStatus;
use store::{Admitted, InFlight, Leadership, LineBounds, LineFacts, PoolSeen, StoreError};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::turns::Places;
use self::view::LineView;
use crate::tick::{OTHER_LEADS, REST, SHORTEST_PAUSE, note, pause_after, rest};
use crate::{Dispatch, Leader};

const LEASE_NAME: &str = "admission";
const LEASE: Duration = Duration::from_secs(5);
/// The pause where no pool has a line.
const IDLE: Duration = Duration::from_millis(250);
/// How long what operators have set counts before it is read again; and how often what is seen is written down, at least,
/// and in relation to what that took.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// How much of the workers' future is on its way to them, at least; where looks take long, what they start until the next
/// look and half as much again.
const AHEAD_S: f64 = 0.05;
const AHEAD_LOOKS: f64 = 1.5;
const MOST_AHEAD_S: f64 = 2.0;
/// Jobs of one transaction, at most.
const BATCH: u64 = 512;
/// What was seen a while ago is unknown to the autoscaler, so it is written down sooner.
const NOTED_AFTER: Duration = Duration::from_secs(5);
/// How long to wait at the end for what is on its way to the broker.
const LAST_SENT: Duration = Duration::from_secs(2);
/// How many jobs leave lines of pools that have none any more, in a transaction, and how many of these in a second.
const LEAVING: i64 = 1_000;
const LEAVING_AT_ONCE: usize = 10;

static ADMISSION: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(
        "harness_admission_seconds",
        "How long jobs have waited in their pool's line, from when they could run to their turn",
        vec![0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0]
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

/// Admits while this process leads, until asked to stop.
pub(crate) async fn run(dispatch: &Dispatch, stop: &CancellationToken) {
    LazyLock::force(&ADMISSION);
    let leader = Leader::new(LEASE_NAME.to_owned(), LEASE, |_| {});
    tokio::join!(leader.keep(&dispatch.store, stop), admit(dispatch, &leader, stop));
}

async fn admit(dispatch: &Dispatch, leader: &Leader, stop: &CancellationToken) {
    let (mut admitter, mut trouble) = (Admitter::default(), Trouble::default());
    let mut pause = SHORTEST_PAUSE;
    while stop.run_until_cancelled(sleep(pause)).await.is_some() {
        let Some(leadership) = leader.leadership() else {
            admitter = Admitter::default();
            pause = OTHER_LEADS;
            continue;
        };
        let looked = admitter.look(dispatch, &leadership, stop).await;
        pause = pause_after(looked, &mut trouble, "jobs that wait in line cannot be admitted");
    }
    let _ = timeout(LAST_SENT, admitter.sent()).await;
}

/// What it remembers.
#[derive(Default)]
struct Admitter {
    pools: HashMap<Name, LineView>,
    bounds: Option<(Instant, Arc<LineBounds>)>,
    /// When the last look began.
    last: Option<Instant>,
    /// When what was seen is written down again.
    note_at: Option<Instant>,
    unnoted: Trouble,
}

impl Admitter {
    /// Gives turns, and now and then writes down what waits. Returns the pause after that.
    async fn look(
        &mut self,
        dispatch: &Dispatch,
        leadership: &Leadership,
        stop: &CancellationToken,
    ) -> Result<Duration, StoreError> {
        let begun = Instant::now();
        let since_last = self.last.replace(begun).map_or(0.0, |last| (begun - last).as_secs_f64());
        let ahead_s = (since_last * AHEAD_LOOKS).clamp(AHEAD_S, MOST_AHEAD_S);
        let mut facts = dispatch.store.line_facts().await?;
        self.pools.retain(|pool, _| facts.pools.contains(pool));
        let more = self.give_turns(dispatch, leadership, &mut facts, ahead_s, stop).await;
        let noted = self.note(dispatch, leadership, &facts).await;
        note(&noted, &mut self.unnoted, "what waits in line cannot be written down");
        Ok(match more? {
            _ if facts.pools.is_empty() => IDLE,
            true => Duration::ZERO,
            false => rest(begun.elapsed()),
        })
    }

    /// Waits until nothing is on its way to the broker.
    async fn sent(&mut self) {
        for view in self.pools.values_mut() {
            view.sent().await;
        }
    }

    /// Gives as many turns as there are places. Returns whether there may be more at once.
    async fn give_turns(
        &mut self,
        dispatch: &Dispatch,
        leadership: &Leadership,
        facts: &mut LineFacts,
        ahead_s: f64,
        stop: &CancellationToken,
    ) -> Result<bool, StoreError> {
        // Without a broker, jobs are better left where they are: their turn can still change.
        let ready = matches!(*dispatch.broker.status().borrow(), BrokerStatus::Ready { .. });
        if facts.pools.is_empty() || !ready || dispatch.broker.held_up().is_some() {
            return Ok(false);
        }
        let bounds = self.bounds(dispatch).await?;
        let mut more = false;
        for pool in facts.pools.clone() {
            let view = self.pools.entry(pool.clone()).or_default();
            if stop.is_cancelled() || view.is_sending() {
                continue;
            }
            let places = Places::new(&pool, &facts.in_flight, &bounds);
            let room = window(&pool, facts, ahead_s).saturating_sub(on_its_way(&pool, &facts.in_flight));
            let room = room.min(BATCH);
            if room == 0 {
                continue;
            }
            view.find(&dispatch.store, &pool).await?;
            let takes = view.choose(room, &places);
            if takes.is_empty() {
                continue;
            }
            let admitted = dispatch.store.admit(leadership, &pool, &takes).await?;
            let may_have_more = view.note(&takes, &admitted.looked_at);
            let mut given = vec![0; takes.len()];
            for job in admitted.looked_at.iter().filter(|job| job.admitted) {
                ADMISSION.observe(job.waited.as_secs_f64());
                given[job.line] += 1;
            }
            // The places that the next pool finds taken.
            let given = takes.iter().zip(given).map(|(take, jobs)| InFlight {
                pool: pool.to_string(),
                tenant: take.place.tenant.clone(),
                line: take.place.line.clone(),
                running: false,
                jobs,
            });
            facts.in_flight.extend(given);
            more |= may_have_more && ((admitted.due.len() as u64) < room || room == BATCH);
            if !admitted.looked_at.is_empty() {
                view.sends(tokio::spawn(send(dispatch.clone(), admitted)));
            }
        }
        Ok(more)
    }

    /// What operators have set, as it was read within the last second.
    async fn bounds(&mut self, dispatch: &Dispatch) -> Result<Arc<LineBounds>, StoreError> {
        match &self.bounds {
            Some((read, bounds)) if read.elapsed() < FRESH_FOR => Ok(Arc::clone(bounds)),
            _ => {
                let bounds = Arc::new(dispatch.store.line_bounds().await?);
                self.bounds = Some((Instant::now(), Arc::clone(&bounds)));
                Ok(bounds)
            }
        }
    }

    /// Once a second: writes down what waits, and lets go what waits in pools that have no line any more.
    async fn note(
        &mut self,
        dispatch: &Dispatch,
        leadership: &Leadership,
        facts: &LineFacts,
    ) -> Result<(), StoreError> {
        let begun = Instant::now();
        if self.note_at.is_some_and(|at| begun < at) {
            return Ok(());
        }
        for _ in 0..LEAVING_AT_ONCE {
            if dispatch.store.leave_lines(LEAVING).await? < LEAVING as usize {
                break;
            }
        }
        let bounds = self.bounds(dispatch).await?;
        let mut seen: BTreeMap<Name, PoolSeen> = BTreeMap::new();
        for pool in &facts.pools {
            let view = self.pools.entry(pool.clone()).or_default();
            view.find(&dispatch.store, pool).await?;
            let places = Places::new(pool, &facts.in_flight, &bounds);
            seen.insert(pool.clone(), view.count(&dispatch.store, pool, places).await?);
        }
        if !seen.is_empty() {
            dispatch.store.note_seen(leadership, &seen).await?;
        }
        self.note_at = Some(begun + (begun.elapsed() * REST).clamp(FRESH_FOR, NOTED_AFTER));
        Ok(())
    }
}

/// Publishes what was admitted, and blocks what another job of its session stands before.
async fn send(dispatch: Dispatch, admitted: Admitted) {
    let Admitted { due, busy, looked_at: _ } = admitted;
    if !due.is_empty()
        && let Err(cause) = dispatch.publish(due).await
    {
        warn!(cause = cause.as_dyn(), "what the broker confirmed cannot be noted; these jobs come due again");
    }
    if !busy.is_empty()
        && let Err(cause) = dispatch.store.block(&busy).await
    {
        warn!(
            cause = cause.as_dyn(),
            "jobs whose sessions are busy cannot be blocked, trying again at their next turn"
        );
    }
}

/// How many jobs of a pool may be on their way to its workers.
fn window(pool: &Name, facts: &LineFacts, ahead_s: f64) -> u64 {
    let capacity = facts.capacity.get(pool.as_str()).copied().unwrap_or_default();
    capacity.free_slots + (capacity.starts_per_s * ahead_s).ceil().max(0.0) as u64 + 1
}

fn on_its_way(pool: &Name, in_flight: &[InFlight]) -> u64 {
    let of_pool = in_flight.iter().filter(|jobs| !jobs.running && jobs.pool == pool.as_str());
    of_pool.map(|jobs| jobs.jobs).sum()
}
