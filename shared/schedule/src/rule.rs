//! A cron expression of five fields, read in an IANA zone.
//!
//! Where a clock change leaves out or repeats a time of day, it goes as in Vixie cron. An expression with one minute and
//! one hour fires once a day in any case: at the end of the gap, or at the first of the two. Any other one follows the
//! clock on the wall: it skips what the gap leaves out, and fires twice in what is repeated. No instant comes twice.

use chrono::{DateTime, Offset, SecondsFormat, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::Wrong;

/// Minutes of the longest gap: a clock that crosses the date line leaves out a day.
const MOST_LEFT_OUT: i64 = 25 * 60;
const RIGHT: &str = "expected five fields such as \"0 8 * * 1-5\" (minute, hour, day, month, weekday)";

/// A cron expression in a zone.
#[derive(Clone, Debug)]
pub struct Rule {
    cron: Cron,
    zone: Tz,
    /// Whether it has one minute and one hour.
    is_fixed: bool,
}

impl Rule {
    /// Reads both. An expression that never fires is refused.
    pub fn read(cron: &str, zone: &str) -> Result<Rule, Wrong> {
        let wrong = |problem: String| Wrong::new("cron", cron, problem);
        let fields = cron.split_ascii_whitespace().count();
        // The parser takes names such as @hourly, which are not the same everywhere.
        if cron.contains('@') || fields != 5 {
            return Err(wrong(format!(", which has {fields} fields, {RIGHT}")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let parsed = parser.parse(cron).map_err(|error| wrong(format!(": {error}, {RIGHT}")))?;
        let zone = read_zone(zone)?;
        if parsed.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false).is_err() {
            return Err(wrong(format!(", which never comes, {RIGHT}")));
        }
        let is_number = |field: &str| field.bytes().all(|byte| byte.is_ascii_digit());
        let is_fixed = cron.split_ascii_whitespace().take(2).all(is_number);
        Ok(Rule { cron: parsed, zone, is_fixed })
    }

    /// Returns the first instant behind this one.
    pub fn after(&self, unix_ms: u64) -> Option<u64> {
        let from = moment(unix_ms)?.with_timezone(&self.zone);
        let next = match self.is_fixed {
            true => self.next_on_the_wall(&from)?,
            false => self.cron.find_next_occurrence(&from, false).ok()?,
        };
        u64::try_from(next.timestamp_millis()).ok().filter(|next| *next > unix_ms)
    }

    /// Goes by the clock on the wall alone, and then looks when it shows that time, or the first one behind the gap that leaves it
    /// out. (The parser's crate asks whether the day behind the gap matches; in Nuuk the gap is the last hour of a Saturday.)
    fn next_on_the_wall(&self, from: &DateTime<Tz>) -> Option<DateTime<Tz>> {
        let mut wall = from.naive_local();
        loop {
            wall = self.cron.find_next_occurrence(&wall.and_utc(), false).ok()?.naive_utc();
            let shown = (0..MOST_LEFT_OUT).map(|minute| wall + TimeDelta::minutes(minute));
            let next = shown.filter_map(|time| self.zone.from_local_datetime(&time).earliest()).next()?;
            if next > *from {
                return Some(next);
            }
        }
    }
}

/// Reads the name of a zone.
pub(crate) fn read_zone(zone: &str) -> Result<Tz, Wrong> {
    let right = ", expected an IANA time zone such as Europe/Berlin or UTC";
    zone.parse().map_err(|_| Wrong::new("zone", zone, right))
}

/// Returns what the clock of a zone shows at an instant, and how far it is ahead of UTC in seconds.
pub(crate) fn on_the_wall(zone: Tz, unix_ms: u64) -> Option<(String, i32)> {
    let at = moment(unix_ms)?.with_timezone(&zone);
    Some((at.to_rfc3339_opts(SecondsFormat::Secs, false), at.offset().fix().local_minus_utc()))
}

fn moment(unix_ms: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(i64::try_from(unix_ms).ok()?)
}
