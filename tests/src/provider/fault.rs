//! What goes wrong with a request on order.

use std::collections::BTreeSet;

use serde::Deserialize;

/// What goes wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A status without any work; 429 and 529 come with `Retry-After`, seven seconds unless told otherwise.
    Refuses(u16),
    /// A status after it has worked.
    Fails(u16),
    /// It never begins to work, and never answers.
    Holds,
    /// It works, and never answers.
    Stalls,
    /// The stream stalls after this many events.
    StallsAfter(usize),
    /// The connection is cut after this many events of a stream, or within the body of an answer that is none.
    CutAfter(usize),
    /// As `CutAfter`, behind the first event of this name. A stream without such an event is cut before its last.
    CutAfterEvent(String),
    /// The answer is not JSON.
    Garbage,
    /// The answer reports no usage.
    NoUsage,
    /// The answer reports a usage of zero.
    ZeroUsage,
    /// A stream reports its usage twice.
    UsageTwice,
}

/// A fault that comes again and again.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The fault.
    pub fault: Fault,
    /// It hits one in this many requests that are valid.
    pub every: u64,
    /// Which of them: the number of the first one, from zero.
    #[serde(default)]
    pub first: u64,
    /// How often it comes at most.
    pub times: Option<u64>,
}

/// The faults that are due.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub rules: Vec<(Rule, u64)>,
    /// The turns whose own fault has come, by conversation.
    pub done: BTreeSet<(u64, String, usize)>,
}

impl Faults {
    /// Returns what a rule has for the valid request of this number, from zero.
    pub fn ruled(&mut self, valid: u64) -> Option<Fault> {
        let hits = |(rule, hit): &&mut (Rule, u64)| {
            let every = rule.every.max(1);
            valid % every == rule.first % every
                && valid >= rule.first
                && rule.times.is_none_or(|times| *hit < times)
        };
        let (rule, hit) = self.rules.iter_mut().find(hits)?;
        *hit += 1;
        Some(rule.fault.clone())
    }
}
