//! The time by the only clock that counts: Postgres's. A host's clock may be wrong by weeks.
//!
//! Postgres's clock can be set as well: by hand, by NTP after a boot, or by a failover to a server whose
//! clock differs. How much time really passed between two readings of it is then what this host's monotonic
//! clock measured, because nothing sets that one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

pub(crate) const NOW: &str = "SELECT clock_timestamp()";

/// How much a clock may gain or lose between two readings without counting as set. Slewing changes a second
/// by a twelfth at most (chrony).
const TOLERANCE: Duration = Duration::from_millis(500);

/// One reading of Postgres's clock. Any host can measure the time since.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    then: SystemTime,
    asked: Instant,
    read: Instant,
}

/// How Postgres's clock was set between two readings, and by how much at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStep {
    /// More time has passed there than here. This host may also have slept.
    Ahead(Duration),
    /// Less time has passed there than here, or the clock went back.
    Back(Duration),
}

impl Clock {
    /// Makes a reading from an answer: the time in it, and the moments at which it was asked for and arrived.
    pub fn new(then: SystemTime, asked: Instant, read: Instant) -> Clock {
        Clock { then, asked, read }
    }

    /// Returns the latest time that the clock can have shown at this moment on our side.
    pub fn at(&self, moment: Instant) -> SystemTime {
        // The clock was read at some moment between question and answer. If it was read at once, the most
        // time has passed since.
        match moment.checked_duration_since(self.asked) {
            Some(after) => self.then + after,
            None => self.then - (self.asked - moment),
        }
    }

    /// Returns when the answer arrived.
    pub fn read_at(&self) -> Instant {
        self.read
    }

    /// Returns how the clock was set since an earlier reading, or `None` if it advanced as this host's own
    /// clock did.
    pub fn step_since(&self, earlier: &Clock) -> Option<ClockStep> {
        // The clock was read at some moment between the question and its answer.
        let (least, most) = (self.asked - earlier.read, self.read - earlier.asked);
        let (passed, back) = match self.then.duration_since(earlier.then) {
            Ok(passed) => (passed, Duration::ZERO),
            Err(back) => (Duration::ZERO, back.duration()),
        };
        if passed > most + TOLERANCE {
            return Some(ClockStep::Ahead(passed - most));
        }
        let lost = least.saturating_sub(passed) + back;
        (lost > TOLERANCE).then_some(ClockStep::Back(lost))
    }

    /// Returns the present time.
    pub fn now(&self) -> SystemTime {
        self.then + self.read.elapsed()
    }

    /// Returns the present time as Unix time in milliseconds.
    pub fn now_unix_ms(&self) -> u64 {
        unix_ms(self.now())
    }
}

pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Reads a clock twice, a second apart. Each reading takes 100 ms, and the clock is moved in between.
    fn second_look(moved: impl Fn(SystemTime) -> SystemTime) -> Option<ClockStep> {
        let (start, then) = (Instant::now(), SystemTime::now());
        let look = |from_ms: u64, then| {
            let asked = start + Duration::from_millis(from_ms);
            Clock::new(then, asked, asked + Duration::from_millis(100))
        };
        let first = look(0, then);
        look(1_000, moved(then + Duration::from_secs(1))).step_since(&first)
    }

    #[test]
    fn a_clock_that_goes_on_or_is_slewed_was_not_set() {
        for moved_ms in [0, 80, 250] {
            let moved = Duration::from_millis(moved_ms);
            assert_eq!(second_look(|then| then + moved), None);
            assert_eq!(second_look(|then| then - moved), None);
        }
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_in_both_directions() {
        let by = |step| match step {
            Some(ClockStep::Ahead(by) | ClockStep::Back(by)) => HOUR.abs_diff(by),
            None => HOUR,
        };
        let (ahead, back) = (second_look(|then| then + HOUR), second_look(|then| then - HOUR));
        assert!(matches!(ahead, Some(ClockStep::Ahead(_))) && by(ahead) < TOLERANCE, "{ahead:?}");
        assert!(matches!(back, Some(ClockStep::Back(_))) && by(back) < TOLERANCE, "{back:?}");
    }
}
