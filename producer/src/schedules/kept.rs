//! Schedules are checked and kept.

use std::collections::BTreeSet;

use anyhow::Context as _;
use job::{Limits, Name, Tenant};
use schedule::{Head, Kept, Overlap, Plan, When, Wrong, write_moment};
use serde::Serialize;
use store::{ChangedSchedule, CreatedSchedule, Instant, NewSchedule, OlderWorker, ScheduleView, Store};
use uuid::Uuid;

use super::content;
use crate::older::without_schedules;

/// The most schedules of a tenant.
pub const MOST: i64 = 1_000;
/// The most instants that are shown.
pub const MOST_FIRINGS: usize = 1_000;
/// The longest name: it is a label of each job.
const NAME: usize = 63;
const DAY_MS: u64 = 86_400_000;
/// For how long an instant is made up for, where nothing is said.
const WITHIN_MS: u64 = 3_600_000;

/// What a new schedule is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose jobs it makes.
    pub tenant: Tenant,
    /// Its name.
    pub name: String,
    /// A cron expression of five fields.
    pub cron: Option<String>,
    /// Or one moment: RFC 3339.
    pub at: Option<String>,
    /// An IANA time zone; UTC without one.
    pub zone: Option<String>,
    /// How long after its instant a firing may be due, in milliseconds.
    pub jitter_ms: Option<u64>,
    /// `skip`, `last` or `all`.
    pub catch_up: Option<String>,
    /// For how long an instant may be made up for, in milliseconds.
    pub within_ms: Option<u64>,
    /// `skip` or `on_busy`.
    pub overlap: Option<String>,
    /// The job: the object that is enqueued, as text.
    pub job: String,
    /// Whether it may name a queue for replies.
    pub may_reply: bool,
}

/// The answer to a request for a schedule.
pub enum Made {
    /// It is made.
    Done,
    /// A field is wrong.
    Refused {
        /// Which one.
        field: String,
        /// Why.
        why: String,
    },
    /// The tenant has one of this name.
    NameTaken,
    /// The tenant has [`MOST`].
    Full,
    /// There is no such tenant, or it is closed.
    NoTenant,
    /// This worker would lead and fire nothing.
    OlderWorker(OlderWorker),
}

/// The answer to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is changed.
    Done,
    /// It was so before.
    Before,
    /// Its one instant is over.
    Over,
}

/// An instant at which a schedule fires.
#[derive(Clone, Debug, Serialize)]
pub struct FiringView {
    /// RFC 3339, UTC.
    pub at: String,
    /// What the clock of the zone shows then: RFC 3339.
    pub local: String,
    /// By how many seconds that clock was changed since the firing before: forward, or back if negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_change_s: Option<i32>,
}

/// Makes a schedule.
pub async fn create(store: &Store, limits: &Limits, actor: &str, wanted: Wanted) -> anyhow::Result<Made> {
    let new = match check(wanted, limits) {
        Ok(new) => new,
        Err((field, why)) => return Ok(Made::Refused { field, why }),
    };
    let (new, pool) = new;
    let asked: BTreeSet<Name> = [pool.clone()].into();
    let served = store.served_pools(&asked).await.context("asking who serves the pool")?;
    if !served.contains(&pool) {
        let why = format!("got \"{pool}\", which no worker has ever served");
        return Ok(Made::Refused { field: "job.pool".to_owned(), why });
    }
    if let Some(older) = without_schedules(store).await? {
        return Ok(Made::OlderWorker(older));
    }
    Ok(match store.create_schedule(actor, &new, MOST).await.context("writing the schedule")? {
        CreatedSchedule::Done => Made::Done,
        CreatedSchedule::NameTaken => Made::NameTaken,
        CreatedSchedule::Full => Made::Full,
        CreatedSchedule::NoTenant => Made::NoTenant,
    })
}

fn check(wanted: Wanted, limits: &Limits) -> Result<(NewSchedule, Name), (String, String)> {
    let Wanted { tenant, name, cron, at, zone, jitter_ms, catch_up, within_ms, overlap, job, may_reply } =
        wanted;
    let wrong = |field: &str, why: String| (field.to_owned(), why);
    let name: Name = name.parse().map_err(|error: job::IdError| wrong("name", error.to_string()))?;
    if name.as_str().len() > NAME {
        let why = format!("got {} characters, expected at most {NAME}", name.as_str().len());
        return Err(wrong("name", why));
    }
    let zone = zone.unwrap_or_else(|| "UTC".to_owned());
    let jitter_ms = jitter_ms.unwrap_or(0);
    if jitter_ms > DAY_MS {
        return Err(wrong("jitter_ms", format!("got {jitter_ms}, expected at most {DAY_MS} (a day)")));
    }
    // A job's id has the time of its instant, and must still be young when it is enqueued.
    let longest = u64::try_from(limits.retention.as_millis() / 2).unwrap_or(u64::MAX);
    let within_ms = within_ms.unwrap_or(WITHIN_MS.min(longest));
    if within_ms > longest {
        let why = format!("got {within_ms}, expected at most {longest} (half of RETENTION_DAYS)");
        return Err(wrong("within_ms", why));
    }
    let overlap: Overlap = match overlap {
        None => Overlap::OnBusy,
        Some(given) => given.parse().map_err(|why| wrong("overlap", why))?,
    };
    let id = Uuid::new_v4();
    let catch_up = catch_up.as_deref().unwrap_or("last");
    let kept =
        Kept { id, cron: cron.as_deref(), at: at.as_deref(), zone: &zone, jitter_ms, catch_up, within_ms };
    let plan = Plan::read(kept).map_err(|Wrong { field, problem }| wrong(field, problem))?;
    let first = first(&plan, limits.now_unix_ms).ok_or_else(|| {
        let got = at.as_deref().unwrap_or_default();
        wrong("at", format!("got \"{got}\", which is over, expected a moment to come"))
    })?;
    let of_job = |error: job::DecodeError| (format!("job.{}", error.field), error.problem);
    let (job, spec) = content::check(&job, &name, limits).map_err(of_job)?;
    if spec.reply_to.is_some() && !may_reply {
        return Err(wrong("job.reply_to", "given, which needs the scope \"admin\"".to_owned()));
    }
    let at_ms = at.map(|_| first.at_ms);
    let new = NewSchedule {
        id,
        tenant,
        name,
        cron,
        at_ms,
        zone,
        jitter_ms,
        catch_up: plan.catch_up.as_str(),
        within_ms,
        overlap: overlap.as_str(),
        job,
        may_reply,
        first,
    };
    Ok((new, spec.pool))
}

/// Lets a paused schedule go on. What was its instant meanwhile is not made up for.
pub async fn resume(
    store: &Store,
    actor: &str,
    tenant: &Tenant,
    schedule: &ScheduleView,
    now_unix_ms: u64,
) -> anyhow::Result<Result<Change, OlderWorker>> {
    if schedule.paused_at.is_none() {
        return Ok(Ok(Change::Before));
    }
    let plan = plan(schedule).context("reading the schedule")?;
    let Some(next) = first(&plan, now_unix_ms) else { return Ok(Ok(Change::Over)) };
    if let Some(older) = without_schedules(store).await? {
        return Ok(Err(older));
    }
    let changed = store.resume_schedule(actor, tenant, schedule, Some(next)).await;
    Ok(Ok(match changed.context("resuming the schedule")? {
        ChangedSchedule::Done => Change::Done,
        ChangedSchedule::Before => Change::Before,
    }))
}

/// Returns the next instants of a schedule, or of a rule of time.
pub fn next(schedule: &ScheduleView, now_unix_ms: u64, most: usize) -> anyhow::Result<Vec<FiringView>> {
    let plan = plan(schedule).context("reading the schedule")?;
    // Its next one may be over and about to fire.
    let first = match schedule.next_ms {
        Some(next) if schedule.paused_at.is_none() => Some(next),
        Some(_) => plan.when.after(now_unix_ms),
        None => None,
    };
    Ok(firings(&plan.when, first, now_unix_ms, most))
}

fn firings(when: &When, first: Option<u64>, now_unix_ms: u64, most: usize) -> Vec<FiringView> {
    let mut offset = when.on_the_wall(now_unix_ms).map(|(_, offset)| offset);
    let instants = std::iter::successors(first, |instant| when.after(*instant));
    let shown = |instant| {
        let (local, ahead) = when.on_the_wall(instant)?;
        let change = offset.replace(ahead).map(|before| ahead - before).filter(|change| *change != 0);
        Some(FiringView { at: write_moment(instant)?, local, clock_change_s: change })
    };
    instants.take(most).map_while(shown).collect()
}

fn plan(schedule: &ScheduleView) -> Result<Plan, Wrong> {
    Plan::read(Kept {
        id: schedule.id,
        cron: schedule.cron.as_deref(),
        at: schedule.at.as_deref(),
        zone: &schedule.zone,
        jitter_ms: schedule.jitter_ms.unsigned_abs(),
        catch_up: &schedule.catch_up,
        within_ms: schedule.within_ms.unsigned_abs(),
    })
}

fn first(plan: &Plan, now_unix_ms: u64) -> Option<Instant> {
    let Head { at, due } = plan.head(plan.when.after(now_unix_ms)?);
    Some(Instant { at_ms: at, due_ms: due })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_firings_show_when_the_clock_was_changed() {
        let when = When::read(Some("30 2 * * *"), None, "Europe/Berlin").unwrap();
        let now = When::read(None, Some("2026-03-27T12:00:00Z"), "UTC").unwrap().after(0).unwrap();
        let found = firings(&when, when.after(now), now, 3);
        let shown: Vec<_> =
            found.iter().map(|it| (it.at.as_str(), it.local.as_str(), it.clock_change_s)).collect();
        assert_eq!(
            shown,
            [
                ("2026-03-28T01:30:00Z", "2026-03-28T02:30:00+01:00", None),
                ("2026-03-29T01:00:00Z", "2026-03-29T03:00:00+02:00", Some(3_600)),
                ("2026-03-30T00:30:00Z", "2026-03-30T02:30:00+02:00", None),
            ]
        );
    }
}
