//! Schedule: times of the day, week or year that have their own minimum.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Serialize};

/// A time window with its own minimum, as in KEDA's cron scaler: it is open when its end comes before its next start.
///
/// Its texts are parsed once, when it is made. [`super::Policy::check`] reports what is wrong with them; such a window
/// is never open.
#[derive(Debug, Serialize, Deserialize)]
#[serde(from = "Text", into = "Text")]
pub struct Window {
    text: Text,
    hours: Result<Hours, Vec<String>>,
    /// The last answer, and until when it holds.
    answer: Mutex<Option<Answer>>,
}

/// A window as it is written in a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    /// When it begins: a cron expression of five fields.
    start: String,
    /// When it ends: another one.
    end: String,
    /// An IANA time zone, such as Europe/Berlin.
    timezone: String,
    /// The fewest workers while it is open.
    min_replicas: u32,
}

#[derive(Clone, Debug)]
struct Hours {
    start: Cron,
    end: Cron,
    timezone: Tz,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    from_ms: u64,
    until_ms: u64,
    open: bool,
}

impl Window {
    /// Makes a window from `start` to `end`, with at least `min_replicas` workers. Both are cron expressions of five
    /// fields, in an IANA time zone.
    pub fn new(start: &str, end: &str, timezone: &str, min_replicas: u32) -> Window {
        Text { start: start.into(), end: end.into(), timezone: timezone.into(), min_replicas }.into()
    }

    /// The fewest workers while it is open.
    pub fn min_replicas(&self) -> u32 {
        self.text.min_replicas
    }

    /// Whether it is open at `now_ms`: from its start until its end.
    pub fn is_open(&self, now_ms: u64) -> bool {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = answer.filter(|known| (known.from_ms..known.until_ms).contains(&now_ms)) {
            return known.open;
        }
        let fresh = self.hours.as_ref().ok().and_then(|hours| hours.at(now_ms));
        *answer = fresh;
        fresh.is_some_and(|fresh| fresh.open)
    }

    /// Lists what is wrong with its texts. Each problem begins with the field's name.
    pub(super) fn problems(&self) -> &[String] {
        self.hours.as_ref().err().map_or(&[], Vec::as_slice)
    }
}

impl Hours {
    fn read(text: &Text) -> Result<Hours, Vec<String>> {
        let mut problems = Vec::new();
        let start = read_cron("start", &text.start).map_err(|problem| problems.push(problem));
        let end = read_cron("end", &text.end).map_err(|problem| problems.push(problem));
        let timezone = text.timezone.parse::<Tz>().map_err(|_| {
            let given = &text.timezone;
            problems
                .push(format!("timezone: {given:?} is not an IANA time zone, such as Europe/Berlin or UTC"));
        });
        match (start, end, timezone) {
            (Ok(start), Ok(end), Ok(timezone)) if start.pattern != end.pattern => {
                Ok(Hours { start, end, timezone })
            }
            (Ok(_), Ok(_), Ok(_)) => {
                Err(vec![format!("end: {:?} is the same as start, so the window is never open", text.end)])
            }
            _ => Err(problems),
        }
    }

    fn at(&self, now_ms: u64) -> Option<Answer> {
        let now = DateTime::<Utc>::from_timestamp_millis(i64::try_from(now_ms).ok()?)?
            .with_timezone(&self.timezone);
        let next = |cron: &Cron| {
            let next = cron.find_next_occurrence(&now, false).ok()?;
            u64::try_from(next.timestamp_millis()).ok()
        };
        let (start_ms, end_ms) = (next(&self.start)?, next(&self.end)?);
        Some(Answer { from_ms: now_ms, until_ms: start_ms.min(end_ms), open: end_ms < start_ms })
    }
}

fn read_cron(field: &str, text: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    let right = "five fields such as \"0 8 * * 1-5\" (minute, hour, day, month, weekday) are right";
    let cron = parser.parse(text).map_err(|error| format!("{field}: {text:?}: {error}; {right}"))?;
    match cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false) {
        Ok(_) => Ok(cron),
        Err(_) => Err(format!("{field}: {text:?} never comes; {right}")),
    }
}

impl From<Text> for Window {
    fn from(text: Text) -> Window {
        Window { hours: Hours::read(&text), text, answer: Mutex::new(None) }
    }
}

impl From<Window> for Text {
    fn from(window: Window) -> Text {
        window.text
    }
}

impl Clone for Window {
    fn clone(&self) -> Window {
        Window { text: self.text.clone(), hours: self.hours.clone(), answer: Mutex::new(None) }
    }
}

impl PartialEq for Window {
    fn eq(&self, other: &Window) -> bool {
        self.text == other.text
    }
}
