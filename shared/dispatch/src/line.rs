//! The admitter: gives the jobs that wait in a pool's line their turns.
//!
//! Of all relays one admits at a time (the lease `admission`), and its transactions hold only while it does. One that has no
//! broker for as long as a lease lasts leaves it to others. It keeps as many jobs on their way to the workers as these have free
//! slots, and what they start in 50 ms, and one: so a slot never waits for its next job, and a job that comes late and is wanted soon
//! has few before it. Who is next, [`turns`] decides.
//!
//! While nothing waits in a pool, it grants that window to all who take in new jobs: these publish one at once as long as fewer are
//! on their way, which each counts for itself. So a job of an idle pool waits for no look.
//!
//! What an admitter remembers ([`LineView`]) only saves reading: a successor begins with nothing, and finds the same.

mod question;
mod find;
mod offer;
mod asking;
mod turns;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::select_all;
use job::{Name, Trouble};
use prometheus::{Histogram, register_histogram};
use queue::BrokerStatus;
use store::{
    Admitted, AdmittedJob, Grant, InFlight, Leadership, LineBounds, LineFacts, LineTake, OldestInFlight,
    PoolSeen, Store, StoreError,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::asking::Asking;
use self::find::SLOW;
use self::question::Question;
use self::turns::Places;
use self::view::LineView;
use crate::tick::{OTHER_LEADS, REST, SHORTEST_PAUSE, note, pause_after};
use crate::{Dispatch, Leader};

const LEASE_NAME: &str = "admission";
const LEASE: Duration = Duration::from_secs(5);
/// What looking at an idle pool may take. Where all of them take longer, each is looked at for itself for a while.
const EACH_IDLE: Duration = Duration::from_micros(100);
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
/// Slots wait for the next look, and so do jobs that are wanted soon: a rest is no longer than this, or than so many times what
/// the look took.
const LONGEST_REST: Duration = Duration::from_millis(50);
const SLOW_REST: u32 = 3;
/// Jobs of one transaction, at most.
const BATCH: u64 = 512;
/// How often a pool's turns are given in one look, where lines had less than their turns.
const ROUNDS: usize = 8;
/// What was seen a while ago is unknown to the autoscaler, so it is written down sooner.
const NOTED_AFTER: Duration = Duration::from_secs(5);
/// A grant is for so many messages at most. It is used as often as they are taken, also after the free slots of the note are: so
/// many jobs may then stand before one that comes first.
const MOST_GRANTED: u64 = 32;
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
    let may_publish = || takes_messages(dispatch);
    tokio::join!(leader.keep_while(&dispatch.store, stop, may_publish), admit(dispatch, &leader, stop));
}

async fn admit(dispatch: &Dispatch, leader: &Leader, stop: &CancellationToken) {
    let (mut admitter, mut trouble) = (Admitter::default(), Trouble::default());
    let (mut pause, mut is_unheard) = (SHORTEST_PAUSE, false);
    while stop.run_until_cancelled(sleep(pause)).await.is_some() {
        let Some(leadership) = leader.leadership() else {
            (admitter, is_unheard) = (Admitter::default(), false);
            pause = OTHER_LEADS;
            continue;
        };
        // An admission whose answer is lost may arrive when its places were given to others. So it must not count any more.
        let looked = match is_unheard {
            true => leader.begin_anew(&dispatch.store).await.map(|()| SHORTEST_PAUSE),
            false => admitter.look(dispatch, &leadership, stop).await,
        };
        is_unheard = looked.is_err();
        pause = pause_after(looked, &mut trouble, "jobs that wait in line cannot be admitted");
    }
    let _ = timeout(LAST_SENT, admitter.sent()).await;
}

/// The turns of a look.
#[derive(Default)]
struct Given {
    /// Whether there may be more at once.
    may_have_more: bool,
    /// What it took to let these jobs go.
    admitting: Duration,
    /// Whether jobs may be left in a pool of which the last note says that none wait.
    is_news: bool,
    /// Whether a pool that may have more had no turns, because as much is on its way to the broker as may be.
    is_full: bool,
}

/// What the turns of a look are given by.
struct Look<'a> {
    store: &'a Store,
    leadership: &'a Leadership,
    bounds: &'a LineBounds,
    /// How much of the workers' future may be on its way to them.
    ahead_s: f64,
}

/// What it remembers.
#[derive(Default)]
struct Admitter {
    pools: HashMap<Name, LineView>,
    bounds: Option<(Instant, Arc<LineBounds>)>,
    /// When the last look began.
    last: Option<Instant>,
    /// Where the messages of the next look begin, and when all are read again.
    oldest: OldestInFlight,
    read_all_at: Option<Instant>,
    /// How long reading from there took last: so long it takes all others, too, who count what is on its way.
    counting: Duration,
    /// Until when each pool without a known line is looked at for itself, because looking at all of them took long.
    apart_until: Option<Instant>,
    with_lines: Question<HashSet<Name>>,
    unasked: Trouble,
    /// What asks for jobs that wait and whose sessions are busy.
    asking: Asking,
    /// Which pool is the first of the next look: what a tenant's bound leaves over all pools is given there first.
    first: usize,
    /// When what was seen is written down again: at the latest, and at the soonest.
    note_at: Option<Instant>,
    note_rests_until: Option<Instant>,
    /// Whether the last note has granted something.
    grants: bool,
    unnoted: Trouble,
}

impl Admitter {
    /// Gives turns, and now and then writes down what waits. Returns the pause after that: a rest from what the look has cost
    /// beside the jobs that it let go. Were these counted, jobs would go in bursts, far ahead of what the workers can take.
    async fn look(
        &mut self,
        dispatch: &Dispatch,
        leadership: &Leadership,
        stop: &CancellationToken,
    ) -> Result<Duration, StoreError> {
        let begun = Instant::now();
        let since_last = self.last.replace(begun).map_or(0.0, |last| (begun - last).as_secs_f64());
        let ahead_s = (since_last * AHEAD_LOOKS).clamp(AHEAD_S, MOST_AHEAD_S);
        let (mut facts, all_read) = self.facts(dispatch).await?;
        // A look that reads all has its rest by the time until the next one.
        let counted_from = if all_read { Instant::now() } else { begun };
        self.pools.retain(|pool, _| facts.pools.contains(pool));
        if !facts.pools.is_empty() {
            self.asking.go_on(dispatch).await;
        }
        let idle = self.idle(dispatch, &facts).await?;
        let given = self.give_turns(dispatch, leadership, &mut facts, &idle, ahead_s, stop).await;
        let took = counted_from.elapsed();
        let is_news = given.as_ref().is_ok_and(|given| given.is_news);
        let noted = self.note(dispatch, leadership, &facts, &idle, is_news).await;
        note(&noted, &mut self.unnoted, "what waits in line cannot be written down");
        let given = given?;
        let rest = match given.may_have_more {
            _ if facts.pools.is_empty() => IDLE,
            true => Duration::ZERO,
            false => {
                let took = took.saturating_sub(given.admitting);
                (took * REST).clamp(SHORTEST_PAUSE, LONGEST_REST.max(took * SLOW_REST))
            }
        };
        if !given.is_full {
            return Ok(rest);
        }
        let _ = stop.run_until_cancelled(timeout(rest, self.one_sent())).await;
        Ok(Duration::ZERO)
    }

    /// Reads what is in flight: now and then all messages, else those from the oldest of the last look. Returns whether all were
    /// read.
    async fn facts(&mut self, dispatch: &Dispatch) -> Result<(LineFacts, bool), StoreError> {
        let begun = Instant::now();
        let all = self.read_all_at.is_none_or(|at| begun >= at);
        let from = if all { &OldestInFlight::new() } else { &self.oldest };
        let facts = dispatch.store.line_facts(from).await;
        match all {
            true => self.read_all_at = Some(begun + (begun.elapsed() * REST).max(FRESH_FOR)),
            false => self.counting = begun.elapsed(),
        }
        let facts = facts?;
        self.oldest.clone_from(&facts.oldest);
        Ok((facts, all))
    }

    /// The pools in which nothing waits. One question is about all of them, and none about each: there may be hundreds. Where it has
    /// no answer soon, each is looked at for itself.
    async fn idle(&mut self, dispatch: &Dispatch, facts: &LineFacts) -> Result<HashSet<Name>, StoreError> {
        let begun = Instant::now();
        let was_open = self.with_lines.is_open();
        let is_unknown = |pool: &&Name| self.pools.get(*pool).is_none_or(LineView::is_empty);
        let unseen = |pool: &Name| (pool.clone(), self.pools.get(pool).and_then(LineView::unseen));
        let unknown: Vec<_> = facts.pools.iter().filter(is_unknown).map(unseen).collect();
        if !was_open {
            if unknown.is_empty() || self.apart_until.is_some_and(|until| begun < until) {
                return Ok(HashSet::new());
            }
            let (store, asked) = (dispatch.store.clone(), unknown.clone());
            self.with_lines.ask(async move { store.pools_with_lines(&asked).await });
        }
        let Some((with_lines, took)) = self.with_lines.answer().await else { return Ok(HashSet::new()) };
        let slow = SLOW.max(EACH_IDLE * unknown.len() as u32);
        let is_slow = was_open || took > slow || with_lines.is_err();
        self.apart_until = is_slow.then(|| Instant::now() + took * REST);
        note(
            &with_lines,
            &mut self.unasked,
            "pools cannot be asked together whether jobs wait in their lines",
        );
        let with_lines = match with_lines {
            Err(error) if !error.may_lie_in_one_call() => return Err(error),
            // An old answer says nothing.
            Ok(with_lines) if !was_open => with_lines,
            _ => return Ok(HashSet::new()),
        };
        let mut idle = HashSet::new();
        for (pool, unseen) in unknown {
            let view = self.pools.entry(pool.clone()).or_default();
            if with_lines.contains(&pool) {
                view.is_seen_waiting();
            } else {
                view.is_seen_empty(begun, unseen.is_none());
                idle.insert(pool);
            }
        }
        Ok(idle)
    }

    /// Waits until a pool that had no turns, because as much is on its way to the broker as may be, may have some again.
    async fn one_sent(&mut self) {
        let sending: Vec<_> = self.pools.values_mut().flat_map(LineView::in_the_way).collect();
        if !sending.is_empty() {
            // It logs what goes wrong.
            let _ = select_all(sending).await;
        }
    }

    /// Waits until nothing is on its way to the broker.
    async fn sent(&mut self) {
        for view in self.pools.values_mut() {
            view.sent().await;
        }
    }

    /// Gives as many turns as there are places.
    async fn give_turns(
        &mut self,
        dispatch: &Dispatch,
        leadership: &Leadership,
        facts: &mut LineFacts,
        idle: &HashSet<Name>,
        ahead_s: f64,
        stop: &CancellationToken,
    ) -> Result<Given, StoreError> {
        let mut all = Given::default();
        // Without a broker, jobs are better left where they are: their turn can still change.
        if facts.pools.is_empty() || !takes_messages(dispatch) {
            return Ok(all);
        }
        let bounds = &*self.bounds(dispatch).await?;
        let look = Look { store: &dispatch.store, leadership, bounds, ahead_s };
        let mut pools = facts.pools.clone();
        let first = self.first % pools.len();
        pools.rotate_left(first);
        self.first = first + 1;
        for pool in pools {
            let view = self.pools.entry(pool.clone()).or_default();
            if stop.is_cancelled() || view.rests() || idle.contains(&pool) {
                continue;
            }
            if view.is_sending() {
                all.is_full |= view.may_have_more();
                continue;
            }
            let mut admitted = Admitted::default();
            let given = view.give(&pool, &look, facts, &mut admitted).await;
            // What had its turn before a failure goes all the same.
            view.send(dispatch, admitted);
            match given {
                Ok(given) => {
                    view.works(given.may_have_more);
                    all.may_have_more |= given.may_have_more;
                    all.admitting += given.admitting;
                    all.is_news |= given.is_news;
                }
                Err(error) => view.fails(error, &pool)?,
            }
        }
        Ok(all)
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

    /// Once a second, and soon after jobs began to wait: writes down what waits, and lets go what waits in pools that have no
    /// line any more.
    async fn note(
        &mut self,
        dispatch: &Dispatch,
        leadership: &Leadership,
        facts: &LineFacts,
        idle: &HashSet<Name>,
        is_news: bool,
    ) -> Result<(), StoreError> {
        let begun = Instant::now();
        let waits = match is_news {
            // What the broker would not take is granted no longer.
            _ if self.grants && !takes_messages(dispatch) => None,
            true => self.note_rests_until,
            false => self.note_at,
        };
        if waits.is_some_and(|until| begun < until) {
            return Ok(());
        }
        let left = leave_lines(dispatch).await;
        let bounds = self.bounds(dispatch).await?;
        let may_grant = takes_messages(dispatch) && self.counting <= SLOW;
        let (mut noted, mut failed) = (BTreeMap::new(), left);
        for pool in &facts.pools {
            let view = self.pools.entry(pool.clone()).or_default();
            let seen = if idle.contains(pool) {
                view.clear();
                PoolSeen::default()
            } else {
                let places = Places::new(pool, &facts.in_flight, &bounds);
                match view.see(&dispatch.store, pool, places).await {
                    Ok(seen) => seen,
                    // The other pools' are written down all the same.
                    Err(error) => {
                        failed = Err(error);
                        continue;
                    }
                }
            };
            let messages = if may_grant && seen.waiting() == 0 {
                window(pool, facts, AHEAD_S).min(MOST_GRANTED)
            } else {
                0
            };
            let counted_from = facts.oldest.get(pool.as_str()).copied().unwrap_or_default();
            noted.insert(pool.clone(), (seen, Grant { messages, counted_from }));
        }
        if !noted.is_empty()
            && let Err(error) = dispatch.store.note_seen(leadership, &noted).await
        {
            failed = Err(error);
        }
        self.grants = noted.values().any(|(_, grant)| grant.messages > 0);
        let rest = begun.elapsed() * REST;
        self.note_at = Some(begun + rest.clamp(FRESH_FOR, NOTED_AFTER));
        self.note_rests_until = Some(begun + rest.min(NOTED_AFTER));
        failed
    }
}

impl LineView {
    /// Gives a pool's turns, as many as there is room for: in rounds, because a line may have had less than its turns.
    async fn give(
        &mut self,
        pool: &Name,
        look: &Look<'_>,
        facts: &mut LineFacts,
        admitted: &mut Admitted,
    ) -> Result<Given, StoreError> {
        let Look { store, leadership, bounds, ahead_s } = look;
        let mut given = Given::default();
        let room = window(pool, facts, *ahead_s).saturating_sub(on_its_way(pool, &facts.in_flight));
        let room = room.min(BATCH);
        let (mut left, mut round, mut had_less) = (room, 0, true);
        while left > 0 && had_less && round < ROUNDS {
            if round == 0 {
                self.find(store, pool).await?;
            }
            let has_workers = facts.capacity.contains_key(pool.as_str());
            let takes = self.choose(left, &Places::new(pool, &facts.in_flight, bounds), has_workers);
            if takes.is_empty() {
                break;
            }
            let begun = Instant::now();
            let now = store.admit(leadership, pool, &takes).await?;
            if !now.due.is_empty() {
                given.admitting += begun.elapsed();
            }
            had_less = self.note(&takes, &now.looked_at);
            left = left.saturating_sub(now.due.len() as u64);
            take_places(&mut facts.in_flight, pool, &takes, &now.looked_at);
            admitted.due.extend(now.due);
            admitted.busy.extend(now.busy);
            round += 1;
        }
        given.may_have_more = left < room && round == ROUNDS || left == 0 && room == BATCH;
        given.is_news = left == 0 && !self.is_noted();
        Ok(given)
    }

    /// Publishes what was admitted, and blocks what another job of its session stands before.
    fn send(&mut self, dispatch: &Dispatch, admitted: Admitted) {
        let Admitted { due, busy, looked_at: _ } = admitted;
        if !due.is_empty() {
            let dispatch = dispatch.clone();
            self.sends(tokio::spawn(async move {
                if let Err(cause) = dispatch.publish(due).await {
                    warn!(
                        cause = cause.as_dyn(),
                        "what the broker confirmed cannot be noted; these jobs come due again"
                    );
                }
            }));
        }
        if !busy.is_empty() {
            let store = dispatch.store.clone();
            self.blocks(async move {
                if let Err(cause) = store.block(&busy).await {
                    warn!(
                        cause = cause.as_dyn(),
                        "jobs whose sessions are busy cannot be blocked, trying again at their next turn"
                    );
                }
            });
        }
    }
}

/// Lets go what waits in pools that have no line any more.
async fn leave_lines(dispatch: &Dispatch) -> Result<(), StoreError> {
    for _ in 0..LEAVING_AT_ONCE {
        if dispatch.store.leave_lines(LEAVING).await? < LEAVING as usize {
            break;
        }
    }
    Ok(())
}

/// Whether the broker takes messages.
fn takes_messages(dispatch: &Dispatch) -> bool {
    let ready = matches!(*dispatch.broker.status().borrow(), BrokerStatus::Ready { .. });
    ready && dispatch.broker.held_up().is_none()
}

/// Notes the places of those that have their turn now: the next pool finds them taken.
fn take_places(in_flight: &mut Vec<InFlight>, pool: &Name, takes: &[LineTake], looked_at: &[AdmittedJob]) {
    let mut given = vec![0; takes.len()];
    for job in looked_at.iter().filter(|job| job.admitted) {
        ADMISSION.observe(job.waited.as_secs_f64());
        given[job.line] += 1;
    }
    in_flight.extend(takes.iter().zip(given).map(|(take, jobs)| InFlight {
        pool: pool.to_string(),
        tenant: take.place.tenant.clone(),
        line: take.place.line.clone(),
        running: false,
        jobs,
    }));
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
