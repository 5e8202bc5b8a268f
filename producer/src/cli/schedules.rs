//! `producer schedules`: jobs that are made by the clock.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use job::{Tenant, one_line, shown};
use service::{note, out};
use store::{ChangedSchedule, OlderWorker, ScheduleView, Store};

use super::age::parse_age;
use super::context::{Context, LedgerAccess};
use super::operator::operator;
use super::status;
use crate::intake_limits::IntakeLimits;
use crate::older::said;
use crate::schedules::{Change, MOST, MOST_FIRINGS, Made, Wanted, create, next, resume};

/// Schedules of one page.
const PAGE: usize = 500;

#[derive(Debug, Args)]
pub struct SchedulesArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a schedule, and print its next instants
    ///
    /// Exit codes: 0 made, 1 there is no such tenant, it is closed or has 1000 schedules, one of this name is there, or a
    /// worker of an older release runs, which fires none, 2 wrong arguments.
    Add(Box<Add>),
    /// List schedules
    List {
        /// Only those of this tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<Tenant>,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show a schedule and its job, as one JSON object
    Show(Which),
    /// Show when a schedule fires next, by the clock of its zone and in UTC
    Next {
        #[command(flatten)]
        which: Which,
        /// How many instants
        #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=MOST_FIRINGS as i64))]
        limit: u32,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Let a schedule fire no more, until it is resumed
    Pause(Which),
    /// Let a paused schedule go on; what was its instant meanwhile is not made up for
    ///
    /// Exit codes: 0 it fires, 1 there is no such schedule, its one instant is over, or a worker of an older release runs,
    /// 2 wrong arguments.
    Resume(Which),
    /// Remove a schedule; the jobs that it has made stay
    Remove(Which),
}

#[derive(Debug, Args)]
struct Which {
    /// Its name
    name: String,
    /// Whose it is
    #[arg(long, value_name = "TENANT", default_value = "default")]
    tenant: Tenant,
}

#[derive(Debug, Args)]
struct Add {
    #[command(flatten)]
    which: Which,
    /// When it fires: minute, hour, day, month, weekday, such as '0 8 * * 1-5'
    #[arg(long, value_name = "EXPRESSION", required_unless_present = "at")]
    cron: Option<String>,
    /// Or the one moment at which it fires, such as 2027-03-01T06:30:00+01:00
    #[arg(long, value_name = "TIME", conflicts_with = "cron")]
    at: Option<String>,
    /// The time zone in which the expression is read
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    zone: String,
    /// Fire by chance up to so much later, up to 1d: schedules of the same minute then do not start at once
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    jitter: Option<Duration>,
    /// What is done about instants that were not fired within a minute: skip them, fire the last of them, or all
    #[arg(long, value_name = "skip|last|all", default_value = "last")]
    catch_up: String,
    /// For how long an instant may be made up for, up to half of RETENTION_DAYS; an hour without it
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    within: Option<Duration>,
    /// What happens while the job before has not ended: skip the instant, or leave it to the job's on_busy
    #[arg(long, value_name = "skip|on_busy", default_value = "on_busy")]
    overlap: String,
    /// The job of each instant: the object that POST /v1/jobs takes, such as '{"agent_id":"report"}'; - reads stdin
    #[arg(long, value_name = "JSON")]
    job: String,
}

impl SchedulesArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let ledger = context.checked_ledger().await?;
        let store = &ledger.store;
        match self.command {
            Command::Add(add) => add.run(&ledger).await,
            Command::List { tenant, json } => list(store, tenant.as_ref(), json).await,
            Command::Show(which) => {
                let Some(schedule) = which.find(store).await? else { return Ok(which.none()) };
                out!("{}", one_line(serde_json::to_string(&schedule)?));
                Ok(ExitCode::SUCCESS)
            }
            Command::Next { which, limit, json } => {
                let Some(schedule) = which.find(store).await? else { return Ok(which.none()) };
                show_next(store, &schedule, limit as usize, json).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Pause(which) => {
                if which.find(store).await?.is_none() {
                    return Ok(which.none());
                }
                match store.pause_schedule(&operator(), &which.tenant, &which.name).await? {
                    ChangedSchedule::Done => out!("{} is paused", which.name),
                    ChangedSchedule::Before => out!("{} was so before", which.name),
                }
                Ok(ExitCode::SUCCESS)
            }
            Command::Resume(which) => {
                let Some(schedule) = which.find(store).await? else { return Ok(which.none()) };
                let now = store.clock().await.context("reading Postgres's clock")?.now_unix_ms();
                match resume(store, &operator(), &which.tenant, &schedule, now).await? {
                    Ok(Change::Done) => {
                        out!("{} fires again", which.name);
                        let Some(schedule) = which.find(store).await? else { return Ok(which.none()) };
                        show_next(store, &schedule, 1, false).await?;
                    }
                    Ok(Change::Before) => out!("{} was so before", which.name),
                    Ok(Change::Over) => {
                        note!("{}: its one instant is over; remove it, and add another", which.name);
                        return Ok(ExitCode::FAILURE);
                    }
                    Err(older) => return Ok(beside(&older)),
                }
                Ok(ExitCode::SUCCESS)
            }
            Command::Remove(which) => {
                if !store.remove_schedule(&operator(), &which.tenant, &which.name).await? {
                    return Ok(which.none());
                }
                out!("{} is removed", which.name);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Which {
    async fn find(&self, store: &Store) -> anyhow::Result<Option<ScheduleView>> {
        store.schedule(&self.tenant, &self.name).await.context("reading the schedule")
    }

    fn none(&self) -> ExitCode {
        let (name, tenant) = (shown(&self.name), &self.tenant);
        note!("{name}: tenant {tenant} has no such schedule; `producer schedules list` has them all");
        ExitCode::FAILURE
    }
}

impl Add {
    async fn run(self, ledger: &LedgerAccess) -> anyhow::Result<ExitCode> {
        let Add { which, cron, at, zone, jitter, catch_up, within, overlap, mut job } = self;
        if job == "-" {
            job.clear();
            // The size of a message bounds it.
            let most = ledger.max_message_bytes as u64 + 1;
            std::io::stdin().take(most).read_to_string(&mut job).context("reading the job from stdin")?;
        }
        let store = &ledger.store;
        let clock = store.clock().await.context("reading Postgres's clock")?;
        let limits =
            IntakeLimits::new(clock, ledger.max_message_bytes, ledger.retention, ledger.replies.clone());
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let wanted = Wanted {
            tenant: which.tenant.clone(),
            name: which.name.clone(),
            cron,
            at,
            zone: Some(zone),
            jitter_ms: jitter.map(ms),
            catch_up: Some(catch_up),
            within_ms: within.map(ms),
            overlap: Some(overlap),
            job,
            may_reply: true,
        };
        match create(store, &limits.current(), &operator(), wanted).await? {
            Made::Done => {
                let Some(schedule) = which.find(store).await? else { return Ok(which.none()) };
                show_next(store, &schedule, 3, false).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Made::Refused { field, why } => {
                note!("{}", shown(&format!("{field}: {why}")));
                return Ok(ExitCode::from(2));
            }
            Made::NameTaken => note!("{}: tenant {} has a schedule of this name", which.name, which.tenant),
            Made::Full => note!("{}: it has {MOST} schedules, as many as a tenant may have", which.tenant),
            Made::NoTenant => note!("{}: no such tenant, or it is closed", which.tenant),
            Made::OlderWorker(older) => return Ok(beside(&older)),
        }
        Ok(ExitCode::FAILURE)
    }
}

fn beside(older: &OlderWorker) -> ExitCode {
    note!("{}", shown(&said(older, "fires no schedules when it leads")));
    ExitCode::FAILURE
}

async fn show_next(store: &Store, schedule: &ScheduleView, limit: usize, json: bool) -> anyhow::Result<()> {
    let now = store.clock().await.context("reading Postgres's clock")?.now_unix_ms();
    let firings = next(schedule, now, limit)?;
    if schedule.paused_at.is_some() {
        note!("{} is paused: it fires at none of these", schedule.name);
    }
    if firings.is_empty() {
        note!("{} has no instant to come", schedule.name);
    }
    for firing in firings {
        if json {
            out!("{}", one_line(serde_json::to_string(&firing)?));
            continue;
        }
        let change = firing.clock_change_s.map(|seconds| {
            let way = if seconds > 0 { "forward" } else { "back" };
            let by = Duration::from_secs(seconds.unsigned_abs().into());
            format!("  the clock was put {way} by {}", humantime::format_duration(by))
        });
        out!("{}  {}{}", firing.local, firing.at, change.unwrap_or_default());
    }
    Ok(())
}

async fn list(store: &Store, tenant: Option<&Tenant>, json: bool) -> anyhow::Result<ExitCode> {
    let mut table = status::table();
    table.set_header([
        "tenant", "name", "fires", "zone", "next", "last", "last job", "fired", "missed", "skipped",
    ]);
    let mut last: Option<(String, String)> = None;
    loop {
        let behind = last.as_ref().map(|(tenant, name)| (tenant.as_str(), name.as_str()));
        let page = match tenant {
            Some(tenant) => store.schedules(tenant, behind.map(|(_, name)| name), PAGE).await,
            None => store.schedules_of_all(behind, PAGE).await,
        };
        let page = page.context("reading schedules")?;
        last = page.last().map(|schedule| (schedule.tenant.clone(), schedule.name.clone()));
        let full = page.len() == PAGE;
        for schedule in page {
            if json {
                out!("{}", one_line(serde_json::to_string(&schedule)?));
                continue;
            }
            let dash = || "-".to_owned();
            let fires = schedule.cron.or(schedule.at).unwrap_or_else(dash);
            let next =
                if schedule.paused_at.is_some() { Some("paused".to_owned()) } else { schedule.next_at };
            table.add_row([
                schedule.tenant,
                schedule.name,
                fires,
                schedule.zone,
                next.unwrap_or_else(dash),
                schedule.last_at.unwrap_or_else(dash),
                schedule.last_job.map_or_else(dash, |job| job.to_string()),
                schedule.fired.to_string(),
                schedule.missed.to_string(),
                schedule.skipped.to_string(),
            ]);
        }
        if !full {
            break;
        }
    }
    if !json {
        out!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}
