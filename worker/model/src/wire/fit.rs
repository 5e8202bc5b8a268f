//! A lower limit of output, where the one of a request costs more than there is room for.

use bytes::Bytes;
use chrono::NaiveDate;
use job::Usd;
use serde_json::Value;

use super::{Ask, Counted};
use crate::json;
use crate::prices::{Prices, Unpriced};

impl Ask {
    /// Returns the greatest limit of output with which it costs at most `room`. There is none if it would be below
    /// `least`, or not below the request's own.
    pub fn fitting(
        &self,
        prices: &Prices,
        day: NaiveDate,
        counted: &Counted,
        room: Usd,
        least: u64,
    ) -> Result<Option<u64>, Unpriced> {
        let fits = |limit| Ok(self.bound_within(prices, day, counted, Some(limit))?.cost <= room);
        let Some((mut lowest, own)) = self.lowest(prices, day, least)? else { return Ok(None) };
        if !fits(lowest)? {
            return Ok(None);
        }
        // The cost grows with the limit: `lowest` fits, and what is above `highest` is not asked for.
        let mut highest = own - 1;
        while lowest < highest {
            let middle = highest - (highest - lowest) / 2;
            if fits(middle)? { lowest = middle } else { highest = middle - 1 }
        }
        Ok(Some(lowest))
    }

    /// Returns the limit of output that it names, if any.
    pub(crate) fn output_limit(&self) -> Option<u64> {
        self.output_limit
    }

    /// Returns the least limit of output with which its provider takes it.
    pub(crate) fn least_output(&self) -> u64 {
        self.least_output
    }

    /// Returns the most that it can cost with the lowest limit of output that there may be, not below `least`.
    pub(crate) fn least_cost(
        &self,
        prices: &Prices,
        day: NaiveDate,
        counted: &Counted,
        least: u64,
    ) -> Result<Usd, Unpriced> {
        let lowest = self.lowest(prices, day, least)?.map(|(lowest, _)| lowest);
        Ok(self.bound_within(prices, day, counted, lowest.or(self.output_limit))?.cost)
    }

    /// Returns the lowest limit of output that there may be, and its own, if that is higher.
    fn lowest(&self, prices: &Prices, day: NaiveDate, least: u64) -> Result<Option<(u64, u64)>, Unpriced> {
        let own = self.output_limit.unwrap_or(prices.find(&self.model, day)?.max_output);
        let lowest = least.max(self.least_output).max(1);
        let is_lower = !self.wire.output_limits().is_empty() && lowest < own;
        Ok(is_lower.then_some((lowest, own)))
    }

    /// Returns the request's body with this limit of output, and changes no other byte.
    pub fn with_output_limit(&self, body: &Bytes, limit: u64) -> Result<Bytes, serde_json::Error> {
        let names = self.wire.output_limits();
        let fields: Value = serde_json::from_slice(body)?;
        let given = names.iter().filter(|name| fields.get(**name).is_some_and(Value::is_u64));
        let mut body = body.clone();
        let mut is_named = false;
        for name in given {
            body = json::with_field(&body, name, &limit.to_string())?;
            is_named = true;
        }
        match names.first() {
            Some(name) if !is_named => json::with_field(&body, name, &limit.to_string()),
            _ => Ok(body),
        }
    }
}
