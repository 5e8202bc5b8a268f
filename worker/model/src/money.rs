//! Dollars as whole numbers: a millionth of a dollar is the unit of everything that is added up.

use std::fmt;
use std::str::FromStr;

/// A sum of money in millionths of a US dollar. It fits a signed 64-bit integer, so any ledger can keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Microdollars(u64);

const PER_DOLLAR: u64 = 1_000_000;
const DIGITS: usize = 6;

/// A text that is no number of dollars.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is no number of dollars: write digits with at most {DIGITS} after the point, as in \"3.75\""
)]
pub struct BadDollars {
    /// What was given.
    pub given: String,
}

impl Microdollars {
    /// Nothing.
    pub const ZERO: Microdollars = Microdollars(0);
    /// The largest sum there is, 9.2 trillion dollars. Sums beyond it stay there.
    pub const MAX: Microdollars = Microdollars(i64::MAX as u64);

    /// Returns this many millionths of a dollar, at most [`Microdollars::MAX`].
    pub fn new(micros: u64) -> Microdollars {
        Microdollars(micros).min(Microdollars::MAX)
    }

    /// Returns the smallest sum that is not below the quotient.
    pub(crate) fn quotient(dividend: u128, divisor: u128) -> Microdollars {
        u64::try_from(dividend.div_ceil(divisor)).map_or(Microdollars::MAX, Microdollars::new)
    }

    /// Returns the millionths of a dollar.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// Returns the sum of both, at most [`Microdollars::MAX`].
    pub fn plus(self, other: Microdollars) -> Microdollars {
        Microdollars::new(self.0.saturating_add(other.0))
    }

    /// Returns this sum as often as it is counted, at most [`Microdollars::MAX`].
    pub fn times(self, count: u64) -> Microdollars {
        Microdollars::new(self.0.saturating_mul(count))
    }
}

impl FromStr for Microdollars {
    type Err = BadDollars;

    /// Reads dollars exactly; no binary fraction takes part.
    fn from_str(text: &str) -> Result<Microdollars, BadDollars> {
        let read = || {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(whole) || !digits(fraction) || fraction.len() > DIGITS {
                return None;
            }
            let whole: u64 = whole.parse().ok()?;
            let fraction: u64 = format!("{fraction:0<DIGITS$}").parse().ok()?;
            let micros = whole.checked_mul(PER_DOLLAR)?.checked_add(fraction)?;
            (micros <= Microdollars::MAX.0).then_some(Microdollars(micros))
        };
        read().ok_or_else(|| BadDollars { given: text.to_owned() })
    }
}

impl fmt::Display for Microdollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}.{:06}", self.0 / PER_DOLLAR, self.0 % PER_DOLLAR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_read_and_shown_exactly() {
        for (text, micros) in [("3", 3_000_000), ("3.75", 3_750_000), ("0.000001", 1), ("0.1", 100_000)] {
            assert_eq!(text.parse(), Ok(Microdollars(micros)), "{text}");
        }
        assert_eq!(Microdollars(3_750_000).to_string(), "$3.750000");
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000001", "1,5", "99999999999999", "NaN"] {
            assert!(text.parse::<Microdollars>().is_err(), "{text}");
        }
    }

    #[test]
    fn sums_stay_at_the_largest_that_a_ledger_can_keep() {
        assert_eq!(Microdollars::MAX.plus(Microdollars::new(1)), Microdollars::MAX);
        assert_eq!(Microdollars::new(u64::MAX), Microdollars::MAX);
        assert_eq!(Microdollars::new(3).times(u64::MAX), Microdollars::MAX);
        assert_eq!(Microdollars::quotient(u128::MAX, 1), Microdollars::MAX);
    }
}
