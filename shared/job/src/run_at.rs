//! When a job may start, if not at once.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::clip;

/// A moment to the millisecond. It is read from any RFC 3339 time, and written in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunAt(u64);

impl RunAt {
    /// This moment, as Unix time in milliseconds; `None` beyond the year 9999.
    pub fn of_unix_ms(unix_ms: u64) -> Option<RunAt> {
        let text = moment(unix_ms)?.to_rfc3339_opts(SecondsFormat::Millis, true);
        DateTime::parse_from_rfc3339(&text).is_ok().then_some(RunAt(unix_ms))
    }

    /// Returns it as Unix time in milliseconds.
    pub fn unix_ms(self) -> u64 {
        self.0
    }
}

fn moment(unix_ms: u64) -> Option<DateTime<chrono::Utc>> {
    DateTime::from_timestamp_millis(i64::try_from(unix_ms).ok()?)
}

impl FromStr for RunAt {
    type Err = String;

    fn from_str(text: &str) -> Result<RunAt, String> {
        let read = DateTime::parse_from_rfc3339(text).ok();
        let read = read.and_then(|time| u64::try_from(time.timestamp_millis()).ok());
        read.and_then(RunAt::of_unix_ms).ok_or_else(|| {
            let got = clip(&text.escape_default().to_string());
            format!("got \"{got}\", expected an RFC 3339 time such as 2026-03-29T06:30:00+02:00")
        })
    }
}

impl fmt::Display for RunAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = moment(self.0).expect("it was checked when it was made");
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl Serialize for RunAt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RunAt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RunAt, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_offset_is_read_and_utc_is_written() {
        let written = |text: &str| text.parse::<RunAt>().expect(text).to_string();
        assert_eq!(written("2026-03-29T06:30:00+02:00"), "2026-03-29T04:30:00.000Z");
        assert_eq!(written("2026-03-29t06:30:00.1239z"), "2026-03-29T06:30:00.123Z");
        for wrong in [
            "",
            "tomorrow",
            "2026-03-29",
            "2026-03-29T06:30:00",
            "1969-12-31T23:59:59Z",
            "2026-02-29T00:00:00Z",
        ] {
            let refused = wrong.parse::<RunAt>().expect_err(wrong);
            assert!(refused.contains("expected an RFC 3339 time"), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(unix_ms in 0u64..=253_402_300_799_999) {
            let moment = RunAt::of_unix_ms(unix_ms).expect("before the year 10000");
            prop_assert_eq!(moment.to_string().parse::<RunAt>().unwrap(), moment);
        }

        #[test]
        fn no_text_and_no_number_panics(text in ".*", unix_ms in any::<u64>()) {
            let _ = text.parse::<RunAt>();
            let _ = RunAt::of_unix_ms(unix_ms).map(|moment| moment.to_string());
        }
    }
}
