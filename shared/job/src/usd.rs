//! Money as whole millionths of a US dollar, so that sums are exact.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::clip;

/// An amount in millionths of a US dollar, at least zero. As JSON it is a number of dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(u64);

impl Usd {
    /// Nothing.
    pub const ZERO: Usd = Usd(0);
    /// The greatest amount that a ledger of signed 64-bit integers can keep, 9.2 trillion dollars. Sums beyond it stay there.
    pub const MAX: Usd = Usd(i64::MAX as u64);
    /// The greatest amount that is read: a billion dollars, up to which a double still distinguishes millionths.
    const MAX_DOLLARS: f64 = 1e9;

    /// Makes an amount from whole millionths of a dollar, at most [`Usd::MAX`].
    pub const fn from_micros(micros: u64) -> Usd {
        if micros > Usd::MAX.0 { Usd::MAX } else { Usd(micros) }
    }

    /// Returns the smallest amount that is not below this many millionths divided by `divisor`, at most [`Usd::MAX`].
    pub fn from_quotient(micros: u128, divisor: u128) -> Usd {
        u64::try_from(micros.div_ceil(divisor)).map_or(Usd::MAX, Usd::from_micros)
    }

    /// Returns this amount as often as it is counted, at most [`Usd::MAX`].
    pub fn times(self, count: u64) -> Usd {
        Usd::from_micros(self.0.saturating_mul(count))
    }

    /// Makes an amount from dollars, rounded up to the next millionth, so that a sum never falls short of what was
    /// spent. Returns `None` for a negative amount, for more than a billion dollars, and for NaN.
    pub fn from_dollars(dollars: f64) -> Option<Usd> {
        let micros = dollars * 1e6;
        // The excess that binary fractions add is noise, not money.
        let noise = 1e-6 + micros * 4.0 * f64::EPSILON;
        (0.0..=Self::MAX_DOLLARS).contains(&dollars).then(|| Usd((micros - noise).ceil().max(0.0) as u64))
    }

    /// Returns whole millionths of a dollar.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Returns dollars, for display and metrics.
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Add for Usd {
    type Output = Usd;
    fn add(self, other: Usd) -> Usd {
        Usd::from_micros(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Usd) {
        *self = *self + other;
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Usd>>(amounts: I) -> Usd {
        amounts.fold(Usd::ZERO, Add::add)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.dollars())
    }
}

/// Digits after the point.
const DIGITS: usize = 6;

impl FromStr for Usd {
    type Err = String;

    /// Reads dollars exactly; no binary fraction takes part.
    fn from_str(text: &str) -> Result<Usd, String> {
        let read = || {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(whole) || !digits(fraction) || fraction.len() > DIGITS {
                return None;
            }
            let fraction: u64 = format!("{fraction:0<DIGITS$}").parse().ok()?;
            let micros = whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(fraction)?;
            (micros <= Self::MAX_DOLLARS as u64 * 1_000_000).then_some(Usd(micros))
        };
        read().ok_or_else(|| not_exact(&format!("\"{}\"", clip(&text.escape_default().to_string()))))
    }
}

fn not_exact(given: &str) -> String {
    format!(
        "got {given}, expected dollars from 0 to 1000000000 with at most {DIGITS} digits after the point, such as 0.5"
    )
}

fn exact<E: de::Error>(number: String) -> Result<Usd, E> {
    number.parse().map_err(|_| E::custom(not_exact(&clip(&number))))
}

/// Reads a limit: a number or a text, or `null` for none. Unlike a cost it is not rounded, because the caller is to get the
/// limit that was written.
pub(crate) fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Usd>, D::Error> {
    struct Exact(Usd);
    impl<'de> Deserialize<'de> for Exact {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Written).map(Exact)
        }
    }
    struct Written;
    impl de::Visitor<'_> for Written {
        type Value = Usd;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("dollars, as a number or a text")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Usd, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_u64<E: de::Error>(self, dollars: u64) -> Result<Usd, E> {
            exact(dollars.to_string())
        }

        fn visit_i64<E: de::Error>(self, dollars: i64) -> Result<Usd, E> {
            exact(dollars.to_string())
        }

        /// What a number is written as is its shortest decimal, which is what its writer meant.
        fn visit_f64<E: de::Error>(self, dollars: f64) -> Result<Usd, E> {
            exact(dollars.to_string())
        }
    }
    Ok(Option::<Exact>::deserialize(deserializer)?.map(|Exact(dollars)| dollars))
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Usd, D::Error> {
        let dollars = f64::deserialize(deserializer)?;
        Usd::from_dollars(dollars).ok_or_else(|| {
            de::Error::custom(format!("got {dollars}, expected dollars between 0 and 1000000000"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_amount_survives_json(micros in 0u64..1_000_000_000_000_000) {
            let text = serde_json::to_string(&Usd::from_micros(micros)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Usd>(&text).unwrap(), Usd::from_micros(micros));
        }
    }

    #[test]
    fn dollars_round_up_to_the_next_millionth() {
        assert_eq!(Usd::from_dollars(0.1), Some(Usd::from_micros(100_000)));
        assert_eq!(Usd::from_dollars(0.0000001), Some(Usd::from_micros(1)));
        assert_eq!(Usd::from_dollars(1.2345674), Some(Usd::from_micros(1_234_568)));
        for bad in [-0.1, f64::NAN, f64::INFINITY, 1e10] {
            assert_eq!(Usd::from_dollars(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_limit_is_what_was_written_or_refused() {
        #[derive(Deserialize, Debug)]
        struct Limited {
            #[serde(default, deserialize_with = "limit")]
            most: Option<Usd>,
        }
        let read = |value: &str| serde_json::from_str::<Limited>(&format!("{{\"most\":{value}}}"));
        for (value, micros) in [
            ("0.1", 100_000),
            ("\"0.1\"", 100_000),
            ("3", 3_000_000),
            ("0", 0),
            ("1e-6", 1),
            ("2.500000", 2_500_000),
        ] {
            assert_eq!(read(value).unwrap().most, Some(Usd::from_micros(micros)), "{value}");
        }
        assert_eq!(read("null").unwrap().most, None);
        assert_eq!(serde_json::from_str::<Limited>("{}").unwrap().most, None);
        for bad in
            ["-1", "-0.5", "1e-7", "0.1234567", "1000000001", "1e300", "\"\"", "\"1e3\"", "\"$1\"", "\" 1\""]
        {
            let problem = read(bad).unwrap_err().to_string();
            assert!(problem.starts_with("got ") && problem.contains("1000000000"), "{bad}: {problem}");
        }
        for bad in ["true", "[1]", "{}"] {
            assert!(read(bad).unwrap_err().to_string().contains("as a number or a text"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_limit_is_read_as_it_was_shown(micros in 0u64..=1_000_000_000_000_000) {
            let text = Usd::from_micros(micros).to_string();
            prop_assert_eq!(text[1..].parse::<Usd>(), Ok(Usd::from_micros(micros)));
            let json = serde_json::to_string(&Usd::from_micros(micros)).unwrap();
            let read = limit(&mut serde_json::Deserializer::from_str(&json)).unwrap();
            prop_assert_eq!(read, Some(Usd::from_micros(micros)));
        }
    }

    #[test]
    fn sums_stay_at_the_largest_that_a_ledger_can_keep() {
        assert_eq!(Usd::MAX + Usd::from_micros(1), Usd::MAX);
        assert_eq!(Usd::from_micros(u64::MAX), Usd::MAX);
        assert_eq!(Usd::from_micros(3).times(u64::MAX), Usd::MAX);
        assert_eq!(Usd::from_quotient(u128::MAX, 1), Usd::MAX);
        assert_eq!(Usd::from_quotient(7, 2), Usd::from_micros(4), "a part of a millionth is rounded up");
    }

    #[test]
    fn a_sum_survives_json() {
        let sum: Usd = (0..1000).map(|_| Usd::from_micros(1)).sum();
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Usd>(&text).unwrap(), sum);
        assert_eq!(sum.to_string(), "$0.001000");
    }
}
