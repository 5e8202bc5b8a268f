//! A look at a schedule: which of its instants fire now.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::{When, Wrong, delay_ms};

/// What is done about instants that nobody fired in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// Nothing: they are missed.
    Skip,
    /// The last one fires.
    Last,
    /// All fire.
    All,
}

/// What happens when the job of the firing before has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// The instant is skipped.
    Skip,
    /// It fires, and the job's `on_busy` decides.
    OnBusy,
}

macro_rules! named {
    ($kind:ty, $($value:path => $name:literal),+) => {
        impl $kind {
            /// Returns its name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($value => $name,)+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $kind {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let all = [$($value),+];
                let names = [$($name),+].join(", ");
                let got: String = text.chars().take(100).flat_map(char::escape_default).collect();
                let found = all.into_iter().find(|value| value.as_str() == text);
                found.ok_or_else(|| format!("got \"{got}\", expected one of {names}"))
            }
        }
    };
}
named!(CatchUp, CatchUp::Skip => "skip", CatchUp::Last => "last", CatchUp::All => "all");
named!(Overlap, Overlap::Skip => "skip", Overlap::OnBusy => "on_busy");

/// An instant that is due for longer was not fired in time.
pub const IN_TIME_MS: u64 = 60_000;

/// Instants that one look goes through, at most.
const STEPS: usize = 10_000;

/// How a schedule fires.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The schedule's id.
    pub id: Uuid,
    /// Its instants.
    pub when: When,
    /// How long after its instant a firing may be due.
    pub jitter_ms: u64,
    /// What is done about instants that were not fired in time.
    pub catch_up: CatchUp,
    /// For how long an instant may be made up for.
    pub within_ms: u64,
}

/// A schedule's next instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// When it is.
    pub at: u64,
    /// When it is looked at: its firing is due, and those of the instants before it were.
    pub due: u64,
}

/// What a look at a schedule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The instants that fire now, oldest first.
    pub fire: Vec<u64>,
    /// How many instants are missed.
    pub missed: u64,
    /// The next instant; `None`: there is none.
    pub next: Option<Head>,
}

/// A schedule as it is written down.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Its id.
    pub id: Uuid,
    /// A cron expression of five fields, or else a moment.
    pub cron: Option<&'a str>,
    /// RFC 3339.
    pub at: Option<&'a str>,
    /// An IANA time zone.
    pub zone: &'a str,
    /// How long after its instant a firing may be due.
    pub jitter_ms: u64,
    /// The name of a [`CatchUp`].
    pub catch_up: &'a str,
    /// For how long an instant may be made up for.
    pub within_ms: u64,
}

impl Plan {
    /// Reads how a schedule fires.
    pub fn read(kept: Kept<'_>) -> Result<Plan, Wrong> {
        let Kept { id, cron, at, zone, jitter_ms, catch_up, within_ms } = kept;
        let when = When::read(cron, at, zone)?;
        let catch_up = catch_up.parse().map_err(|problem| Wrong { field: "catch_up", problem })?;
        Ok(Plan { id, when, jitter_ms, catch_up, within_ms })
    }

    /// Decides at `now` about the instants from `next` on, until `most` of them fire. What is left is due: the next look
    /// finds it.
    ///
    /// An instant may be due before the one before it, if the jitter is longer than the time between them. Its turn comes when
    /// that one has had its own, and it is late from then on.
    pub fn look(&self, next: Head, now: u64, most: usize) -> Look {
        // An older row, or one that was put off, may say something else.
        let due = next.due.min(next.at.saturating_add(self.jitter_ms)).max(self.due(next.at));
        let mut found = Look { fire: Vec::new(), missed: 0, next: Some(Head { due, ..next }) };
        for _ in 0..STEPS {
            let Some(head) = found.next.filter(|head| head.due <= now) else { return found };
            if found.fire.len() == most {
                break;
            }
            let following = self.when.after(head.at);
            let following = following.map(|at| Head { at, due: self.due(at).max(head.due) });
            let late = now - head.due;
            let superseded = following.is_some_and(|following| following.due <= now);
            let fires = late <= IN_TIME_MS
                || late <= self.within_ms
                    && match self.catch_up {
                        CatchUp::Skip => false,
                        CatchUp::Last => !superseded,
                        CatchUp::All => true,
                    };
            if fires {
                found.fire.push(head.at);
            } else {
                found.missed += 1;
            }
            found.next = following;
        }
        // It has had its turn, and goes behind the schedules that wait.
        found.next = found.next.map(|head| Head { due: head.due.max(now), ..head });
        found
    }

    /// Returns this instant as a next one, where none before it is left.
    pub fn head(&self, at: u64) -> Head {
        Head { at, due: self.due(at) }
    }

    /// Returns when the firing of an instant is due.
    pub fn due(&self, instant: u64) -> u64 {
        instant.saturating_add(delay_ms(self.id, instant, self.jitter_ms))
    }
}
