//! Again and again by a rule, or once.

use chrono::{DateTime, SecondsFormat};
use chrono_tz::Tz;

use crate::rule::{on_the_wall, read_zone};
use crate::{Rule, Wrong};

/// The instants of a schedule.
#[derive(Clone, Debug)]
pub struct When {
    times: Times,
    zone: Tz,
}

#[derive(Clone, Debug)]
enum Times {
    Again(Box<Rule>),
    Once(u64),
}

impl When {
    /// Reads a cron expression or a moment (RFC 3339): one of the two, and the zone in which it is read and shown.
    pub fn read(cron: Option<&str>, at: Option<&str>, zone: &str) -> Result<When, Wrong> {
        let times = match (cron, at) {
            (Some(cron), None) => Times::Again(Box::new(Rule::read(cron, zone)?)),
            (None, Some(at)) => Times::Once(read_moment(at)?),
            (Some(_), Some(at)) => return Err(Wrong::new("at", at, " beside cron, expected one of the two")),
            (None, None) => {
                let problem = "neither cron nor at is given, expected one of the two".to_owned();
                return Err(Wrong { field: "cron", problem });
            }
        };
        Ok(When { times, zone: read_zone(zone)? })
    }

    /// Returns the first instant behind this one.
    pub fn after(&self, unix_ms: u64) -> Option<u64> {
        match &self.times {
            Times::Again(rule) => rule.after(unix_ms),
            Times::Once(at) => Some(*at).filter(|at| *at > unix_ms),
        }
    }

    /// Returns what the clock of the zone shows at an instant (RFC 3339), and how far it is ahead of UTC, in seconds.
    pub fn on_the_wall(&self, unix_ms: u64) -> Option<(String, i32)> {
        on_the_wall(self.zone, unix_ms)
    }
}

/// RFC 3339 goes up to the year 9999.
fn read_moment(at: &str) -> Result<u64, Wrong> {
    let read = DateTime::parse_from_rfc3339(at).ok();
    let read = read.and_then(|at| u64::try_from(at.timestamp_millis()).ok());
    read.ok_or_else(|| Wrong::new("at", at, ", expected an RFC 3339 time such as 2027-03-01T06:30:00+01:00"))
}

/// Writes a moment as RFC 3339, in UTC.
pub fn write_moment(unix_ms: u64) -> Option<String> {
    let at = DateTime::from_timestamp_millis(i64::try_from(unix_ms).ok()?)?;
    Some(at.to_rfc3339_opts(SecondsFormat::Secs, true))
}
