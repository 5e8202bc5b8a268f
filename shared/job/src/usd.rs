//! Money as whole millionths of a US dollar, so that sums are exact.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An amount in millionths of a US dollar, at least zero. As JSON it is a number of dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(u64);

impl Usd {
    /// Nothing.
    pub const ZERO: Usd = Usd(0);
    /// The greatest amount that is read: a billion dollars, up to which a double still distinguishes millionths.
    const MAX_DOLLARS: f64 = 1e9;

    /// Makes an amount from whole millionths of a dollar.
    pub const fn from_micros(micros: u64) -> Usd {
        Usd(micros)
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
        Usd(self.0.saturating_add(other.0))
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
    fn a_sum_survives_json() {
        let sum: Usd = (0..1000).map(|_| Usd::from_micros(1)).sum();
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Usd>(&text).unwrap(), sum);
        assert_eq!(sum.to_string(), "$0.001000");
    }
}
