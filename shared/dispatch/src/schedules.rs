//! Schedules: makes the jobs that are due by the clock.
//!
//! Of all relays the one that leads (lease `line`) looks four times a second. One transaction writes the jobs of the
//! instants that fire to the inbox and moves each schedule to its next instant. From there a job goes the way of those
//! that services enqueue by SQL: the same decoder, the same bounds of its tenant. Its id follows from the schedule and
//! the instant, so an instant is one job, however often it is fired.

use std::sync::LazyLock;
use std::time::Duration;

use job::{JobId, Trouble};
use prometheus::{IntCounterVec, register_int_counter_vec};
use schedule::{Kept, Plan, Wrong, firing_id};
use store::{DueSchedule, Fired, Instant, Leadership, MovedSchedule, Store, StoreError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Leader;

const EVERY: Duration = Duration::from_millis(250);
/// The pause where more is due than one look takes.
const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(1);
/// Schedules of one look, and instants of each that fire.
const SCHEDULES: i64 = 200;
const FIRINGS: usize = 50;
/// When a schedule is looked at again that this release cannot read.
const UNREADABLE_MS: u64 = 600_000;
/// How often old schedules are forgotten, in looks: about once an hour.
const FORGET_EVERY: u32 = 14_400;

static METRICS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let metric = register_int_counter_vec!(
        "harness_schedule_instants_total",
        "Instants of schedules, by outcome: fired, skipped (the job before had not ended), missed (nobody led in time)",
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
        pause = match look(store, &leadership, forgets).await {
            Ok(more) => {
                trouble.ends();
                if more { SHORT } else { EVERY }
            }
            Err(cause) => {
                if trouble.begins() {
                    warn!(cause = cause.as_dyn(), "schedules cannot be fired, retrying");
                }
                LONG
            }
        };
    }
}

/// Fires what is due. Returns whether more is.
async fn look(store: &Store, leadership: &Leadership, forgets: bool) -> Result<bool, StoreError> {
    if forgets {
        store.forget_schedules().await?;
    }
    let due = store.due_schedules(SCHEDULES).await?;
    if due.is_empty() {
        return Ok(false);
    }
    let moved: Vec<MovedSchedule> = due.iter().map(decide).collect();
    let Fired { fired, skipped, missed } = store.fire_schedules(leadership, &moved).await?;
    for (outcome, count) in [("fired", fired), ("skipped", skipped), ("missed", missed)] {
        METRICS.with_label_values(&[outcome]).inc_by(count);
    }
    if fired + skipped + missed > 0 {
        info!(fired, skipped, missed, "schedules were due");
    }
    let full = due.len() as i64 == SCHEDULES;
    let left =
        moved.iter().zip(&due).any(|(moved, due)| moved.next.is_some_and(|next| next.due_ms <= due.now_ms));
    Ok(full || left)
}

fn decide(due: &DueSchedule) -> MovedSchedule {
    let &DueSchedule { id, version, next_ms, closed, now_ms, .. } = due;
    let plan = match plan(due) {
        Ok(plan) => plan,
        Err(cause) => {
            warn!(%cause, schedule = due.name, tenant = due.tenant, "a schedule cannot be read, and does not fire");
            let next = Some(Instant { at_ms: next_ms, due_ms: now_ms + UNREADABLE_MS });
            return MovedSchedule { id, version, jobs: Vec::new(), missed: 0, next };
        }
    };
    let mut found = plan.look(next_ms, now_ms, FIRINGS);
    if closed {
        found.missed += found.fire.drain(..).len() as u64;
    }
    let job = |instant| JobId::of_ledger(firing_id(id, instant));
    let next = found.next.map(|at_ms| Instant { at_ms, due_ms: plan.due(at_ms) });
    MovedSchedule { id, version, jobs: found.fire.into_iter().map(job).collect(), missed: found.missed, next }
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
