//! Schedules: makes the jobs that are due by the clock.
//!
//! Of all relays the one that leads (lease `line`) looks four times a second. One transaction writes the jobs of the
//! instants that fire to the inbox and moves each schedule to its next instant. From there a job goes the way of those
//! that services enqueue by SQL: the same decoder, the same bounds of its tenant. Its id follows from the schedule and
//! the instant, so an instant is one job, however often it is fired.
//!
//! No schedule holds up the others: a look writes a bounded number of bytes, and a schedule of which more is due goes behind
//! all that wait. Where the transaction fails for a reason that may lie in one schedule, each fires one instant alone, and one
//! that cannot is put off.

use std::sync::LazyLock;
use std::time::Duration;

use job::{JobId, Trouble};
use prometheus::{IntCounterVec, register_int_counter_vec};
use schedule::{Head, Kept, Plan, Wrong, firing_id};
use store::{DueSchedule, Fired, Instant, Leadership, MovedSchedule, Store, StoreError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Leader;
use crate::tick::pause_after;

const EVERY: Duration = Duration::from_millis(250);
/// The pause where more is due than one look takes.
const SHORT: Duration = Duration::from_millis(10);
/// Schedules of one look, instants of each that fire, and instants of all. The statement compares each instant with each schedule, and
/// has two seconds.
const SCHEDULES: i64 = 200;
const FIRINGS: usize = 50;
const MOST_FIRINGS: usize = 1_000;
/// Bytes of the jobs that one look writes; one job may go beyond.
const MOST_BYTES: u64 = 4 << 20;
/// When a schedule is looked at again that could not be fired. It is in time for its instant then, too.
const PUT_OFF_MS: u64 = 10_000;
/// When a schedule is looked at again that this release cannot read.
const UNREADABLE_MS: u64 = 600_000;
/// How often old schedules are forgotten, in looks: about once an hour.
const FORGET_EVERY: u32 = 14_400;

static METRICS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let metric = register_int_counter_vec!(
        "harness_schedule_instants_total",
        "Instants of schedules, by outcome: fired, skipped (the job before had not ended, or the tenant has as many jobs waiting as it may), missed (nobody led in time)",
        &["outcome"]
    )
    .expect("every metric has a name of its own, so that registering cannot fail");
    for outcome in ["fired", "skipped", "missed"] {
        metric.with_label_values(&[outcome]);
    }
    metric
});

/// Fires schedules while this process leads, until asked to stop.
pub(crate) async fn run(store: &Store, leader: &Leader, stop: &CancellationToken) {
    LazyLock::force(&METRICS);
    let (mut trouble, mut pause, mut looks) = (Trouble::default(), EVERY, 0_u32);
    while stop.run_until_cancelled(sleep(pause)).await.is_some() {
        let Some(leadership) = leader.leadership() else {
            pause = EVERY;
            continue;
        };
        let forgets = looks.is_multiple_of(FORGET_EVERY);
        looks = looks.wrapping_add(1);
        let looked = look(store, &leadership, forgets).await.map(|more| if more { SHORT } else { EVERY });
        pause = pause_after(looked, &mut trouble, "schedules cannot be fired");
    }
}

/// Fires what is due. Returns whether more is.
async fn look(store: &Store, leadership: &Leadership, forgets: bool) -> Result<bool, StoreError> {
    if forgets {
        store.forget_schedules().await?;
    }
    let due = store.due_schedules(SCHEDULES).await?;
    let moved = decide_within_bounds(&due);
    if moved.is_empty() {
        return Ok(false);
    }
    match store.fire_schedules(leadership, &moved).await {
        Ok(fired) => note(fired),
        Err(error) if error.may_lie_in_one_call() => {
            fire_each_alone(store, leadership, &due[..moved.len()]).await?;
        }
        Err(error) => return Err(error),
    }
    let full = due.len() as i64 == SCHEDULES || moved.len() < due.len();
    let left =
        moved.iter().zip(&due).any(|(moved, due)| moved.next.is_some_and(|next| next.due_ms <= due.now_ms));
    Ok(full || left)
}

fn note(fired: Fired) {
    let Fired { fired, skipped, missed } = fired;
    for (outcome, count) in [("fired", fired), ("skipped", skipped), ("missed", missed)] {
        METRICS.with_label_values(&[outcome]).inc_by(count);
    }
    if fired + skipped + missed > 0 {
        info!(fired, skipped, missed, "schedules were due");
    }
}

/// Fires one instant of each schedule. One that cannot be fired is put off.
async fn fire_each_alone(
    store: &Store,
    leadership: &Leadership,
    due: &[DueSchedule],
) -> Result<(), StoreError> {
    for due in due {
        match store.fire_schedules(leadership, &[decide(due, 1)]).await {
            Ok(fired) => note(fired),
            Err(cause) if cause.may_lie_in_one_call() => {
                warn!(
                    cause = cause.as_dyn(),
                    schedule = due.name,
                    tenant = due.tenant,
                    "a schedule cannot be fired, trying again later"
                );
                store.fire_schedules(leadership, &[put_off(due, PUT_OFF_MS)]).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Decides about the first ones of these, until they fire as much as one look may write.
fn decide_within_bounds(due: &[DueSchedule]) -> Vec<MovedSchedule> {
    let (mut moved, mut room, mut firings) = (Vec::new(), MOST_BYTES, MOST_FIRINGS);
    for due in due {
        let fit = usize::try_from(room / due.bytes.max(1)).unwrap_or(FIRINGS);
        let fit = if moved.is_empty() { fit.max(1) } else { fit };
        let most = fit.min(FIRINGS).min(firings);
        if most == 0 {
            break;
        }
        let decided = decide(due, most);
        firings -= decided.jobs.len();
        room = room.saturating_sub(due.bytes * decided.jobs.len() as u64);
        moved.push(decided);
    }
    moved
}

fn decide(due: &DueSchedule, most: usize) -> MovedSchedule {
    let &DueSchedule { id, version, next, closed, now_ms, .. } = due;
    let plan = match plan(due) {
        Ok(plan) => plan,
        Err(cause) => {
            warn!(%cause, schedule = due.name, tenant = due.tenant, "a schedule cannot be read, and does not fire");
            return put_off(due, UNREADABLE_MS);
        }
    };
    let mut found = plan.look(Head { at: next.at_ms, due: next.due_ms }, now_ms, most);
    if closed {
        found.missed += found.fire.drain(..).len() as u64;
    }
    let job = |instant| JobId::of_ledger(firing_id(id, instant));
    let next = found.next.map(|Head { at, due }| Instant { at_ms: at, due_ms: due });
    MovedSchedule { id, version, jobs: found.fire.into_iter().map(job).collect(), missed: found.missed, next }
}

/// Nothing fires yet.
fn put_off(due: &DueSchedule, for_ms: u64) -> MovedSchedule {
    let &DueSchedule { id, version, next, now_ms, .. } = due;
    let next = Some(Instant { due_ms: now_ms + for_ms, ..next });
    MovedSchedule { id, version, jobs: Vec::new(), missed: 0, next }
}

fn plan(due: &DueSchedule) -> Result<Plan, Wrong> {
    Plan::read(Kept {
        id: due.id,
        cron: due.cron.as_deref(),
        at: due.at.as_deref(),
        zone: &due.zone,
        jitter_ms: due.jitter_ms,
        catch_up: &due.catch_up,
        within_ms: due.within_ms,
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_look_fires_a_bounded_number_of_instants_and_leaves_the_other_schedules_to_the_next() {
        const MINUTE: u64 = 60_000;
        let now_ms = 1_800_000_000_000;
        // Each has missed an hour of its minutes.
        let next = Instant { at_ms: now_ms - 60 * MINUTE, due_ms: now_ms - 60 * MINUTE };
        let due = |number: u128| DueSchedule {
            id: Uuid::from_u128(number),
            version: 1,
            tenant: "default".to_owned(),
            name: format!("s-{number}"),
            cron: Some("* * * * *".to_owned()),
            at: None,
            zone: "UTC".to_owned(),
            jitter_ms: 0,
            catch_up: "all".to_owned(),
            within_ms: 600 * MINUTE,
            overlap: "enqueue".to_owned(),
            next,
            closed: false,
            bytes: 20,
            now_ms,
        };
        let all: Vec<DueSchedule> = (0..SCHEDULES as u128).map(due).collect();
        let moved = decide_within_bounds(&all);
        assert_eq!(moved.len(), MOST_FIRINGS / FIRINGS);
        assert!(moved.iter().all(|moved| moved.jobs.len() == FIRINGS));
    }
}
