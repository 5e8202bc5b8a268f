//! The story: entries of a few lines each, built from decisions one by one.

use std::fmt::Write;

use chrono::DateTime;

use super::decision_row::DecisionRow;
use crate::decide::{Reading, Reason};

/// The indent of an entry's further lines, which puts them below its text: the width of two times and what is around
/// them.
const INDENT: usize = 19;
/// The age of a reading is shown if it is older than this, in milliseconds.
const FRESH_MS: u64 = 5_000;
/// The most reasons that an entry lists.
const REASONS: usize = 3;

/// A story that is being built.
#[derive(Debug, Default)]
pub struct Story {
    text: String,
    entry: Option<Entry>,
    /// The day on which the last entry began.
    day: Option<String>,
    epoch: Option<i64>,
}

/// Consecutive decisions with the same subject.
#[derive(Debug)]
struct Entry {
    first: DecisionRow,
    last_ms: u64,
    /// What the last of them waits for.
    waits: Option<String>,
    decisions: u64,
    reasons: Vec<(Reason, u64)>,
    ready: Range,
    running: Range,
    waited_ms: Range,
    asked: Range,
}

/// The smallest and the largest of what is known.
#[derive(Clone, Copy, Debug, Default)]
struct Range(Option<(u64, u64)>);

impl Story {
    /// Adds the next decision. Decisions must come in the order of their time.
    pub fn add(&mut self, row: &DecisionRow) {
        match &mut self.entry {
            Some(entry)
                if entry.first.epoch == row.epoch && Subject::of(&entry.first) == Subject::of(row) =>
            {
                entry.add(row);
            }
            _ => {
                self.close();
                self.entry = Some(Entry::new(row));
            }
        }
    }

    /// Returns the whole text.
    pub fn finish(mut self) -> String {
        self.close();
        if self.text.is_empty() {
            self.text.push_str("Nothing has been decided yet.\n");
        }
        self.text
    }

    fn close(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let (day, time) = day_and_time(entry.first.decided_at_ms);
        if self.day.as_ref() != Some(&day) {
            let gap = if self.day.is_some() { "\n" } else { "" };
            self.line(format_args!("{gap}{day} (UTC)"));
            self.day = Some(day);
        }
        let epoch = entry.first.epoch;
        if self.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            self.line(format_args!("{time:INDENT$}another leader decides from here on (epoch {epoch})"));
        }
        let span = match day_and_time(entry.last_ms).1 {
            end if end == time => time,
            end => format!("{time}–{end}"),
        };
        self.line(format_args!("{span:INDENT$}{}", entry.headline()));
        for line in [Some(entry.seen()), entry.why(), entry.outcome()].into_iter().flatten() {
            self.line(format_args!("{:INDENT$}{line}", ""));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String never fails.
        let _ = writeln!(self.text, "{line}");
    }
}

/// What an entry is about: decisions with the same subject share one.
#[derive(PartialEq)]
struct Subject<'a> {
    size: (Option<u32>, Option<u32>),
    /// The reason, if it must not be lost among others.
    reason: Option<Reason>,
    outcome: (Option<&'a str>, Option<&'a str>),
}

impl Subject<'_> {
    fn of(row: &DecisionRow) -> Subject<'_> {
        let decision = &row.decision;
        let stays = decision.current == decision.desired;
        Subject {
            size: (decision.current, decision.desired),
            reason: (!stays || is_remarkable(decision.reason)).then_some(decision.reason),
            // Waiting for another pod, or for another number of jobs, is not a new subject.
            outcome: (row.outcome.as_deref(), row.detail.as_deref().filter(|_| !row.waits())),
        }
    }
}

/// Whether a pool that stays as it is for this reason deserves its own entry.
fn is_remarkable(reason: Reason) -> bool {
    match reason {
        Reason::Demand
        | Reason::Tolerance
        | Reason::ScaleUpStabilized
        | Reason::ScaleDownStabilized
        | Reason::ScaleUpLimit
        | Reason::ScaleDownLimit
        | Reason::Wake
        | Reason::Activation
        | Reason::Cooldown
        | Reason::Minimum
        | Reason::Schedule
        | Reason::Busy => false,
        Reason::ScaleUpDisabled
        | Reason::ScaleDownDisabled
        | Reason::Maximum
        | Reason::QueueUnknown
        | Reason::QueueStale
        | Reason::LedgerUnknown
        | Reason::LedgerStale
        | Reason::LineStale
        | Reason::WorkloadUnknown
        | Reason::WorkloadStale
        | Reason::ManagementStale
        | Reason::Disagreement
        | Reason::BudgetExhausted
        | Reason::PausedUp
        | Reason::PausedDown => true,
    }
}

impl Entry {
    fn new(row: &DecisionRow) -> Entry {
        let mut entry = Entry {
            first: row.clone(),
            last_ms: row.decided_at_ms,
            waits: None,
            decisions: 0,
            reasons: Vec::new(),
            ready: Range::default(),
            running: Range::default(),
            waited_ms: Range::default(),
            asked: Range::default(),
        };
        entry.add(row);
        entry
    }

    fn add(&mut self, row: &DecisionRow) {
        self.last_ms = row.decided_at_ms;
        self.waits = row.detail.clone().filter(|_| row.waits());
        self.decisions += 1;
        let reason = row.decision.reason;
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, times)) => *times += 1,
            None => self.reasons.push((reason, 1)),
        }
        self.ready.add(row.inputs.ready.as_ref().map(|ready| ready.value));
        let demand = row.inputs.demand.as_ref().map(|demand| &demand.value);
        self.running.add(demand.map(|demand| demand.running));
        self.waited_ms.add(demand.and_then(|demand| demand.oldest_waiting_ms));
        let asked = row.decision.steps.first().filter(|step| step.rule == Reason::Demand);
        self.asked.add(asked.map(|step| u64::from(step.to)));
    }

    fn headline(&self) -> String {
        let decision = &self.first.decision;
        let what = match (decision.current, decision.desired) {
            (Some(current), Some(desired)) if desired > current => {
                format!("decided to grow from {current} to {desired}")
            }
            (Some(current), Some(desired)) if desired < current => {
                format!("decided to shrink from {current} to {desired}")
            }
            (Some(current), Some(_)) => format!("stayed at {current}"),
            _ => "could not decide".to_owned(),
        };
        match self.decisions {
            1 => what,
            decisions => format!("{what} ({decisions} decisions)"),
        }
    }

    /// What was observed: "40 to 42 messages ready, 8 jobs running, the oldest waiting for up to 7 s".
    fn seen(&self) -> String {
        let inputs = &self.first.inputs;
        let now_ms = self.first.decided_at_ms;
        let mut parts = vec![
            match self.ready.in_words("message ready", "messages ready") {
                Some(ready) => ready + &age(&inputs.ready, now_ms),
                None => "messages ready: unknown".to_owned(),
            },
            match self.running.in_words("job running", "jobs running") {
                Some(running) => running + &age(&inputs.demand, now_ms),
                None => "jobs running: unknown".to_owned(),
            },
        ];
        if let Some((_, longest_ms)) = self.waited_ms.0 {
            parts.push(match self.decisions {
                1 => format!("the oldest waiting for {}", seconds(longest_ms)),
                _ => format!("the oldest waiting for up to {}", seconds(longest_ms)),
            });
        }
        parts.join(", ")
    }

    /// Which rules made the decision. For a single one, each rule in turn; for several, how often each rule was the
    /// reason.
    fn why(&self) -> Option<String> {
        let mut parts: Vec<String> =
            self.asked.plain().map(|asked| format!("demand asks for {asked}")).into_iter().collect();
        if self.decisions == 1 {
            for step in &self.first.decision.steps {
                match step.rule {
                    Reason::Demand => {}
                    rule if step.from == step.to => parts.push(rule.to_string()),
                    rule => parts.push(format!("{rule}, so {}", step.to)),
                }
            }
            if parts.is_empty() {
                parts.push(self.first.decision.reason.to_string());
            }
            return Some(parts.join("; "));
        }
        let mut reasons: Vec<_> =
            self.reasons.iter().filter(|(reason, _)| *reason != Reason::Demand).collect();
        // The sort is stable: of two equally frequent reasons, the earlier comes first.
        reasons.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        for (reason, times) in reasons.iter().take(REASONS) {
            parts.push(match *times {
                times if times == self.decisions => reason.to_string(),
                1 => format!("{reason} (once)"),
                times => format!("{reason} ({times} times)"),
            });
        }
        if let Some(others) = reasons.len().checked_sub(REASONS).filter(|others| *others > 0) {
            parts.push(format!("and {others} more reasons"));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    fn outcome(&self) -> Option<String> {
        let DecisionRow { decision, outcome, detail, .. } = &self.first;
        if let Some(why) = &self.waits {
            return Some(format!("no worker can be removed yet: {why}"));
        }
        match (outcome, detail) {
            (Some(outcome), Some(detail)) => Some(format!("outcome: {outcome} ({detail})")),
            (Some(outcome), None) => Some(format!("outcome: {outcome}")),
            (None, _) => (decision.current != decision.desired).then(|| "outcome: not known".to_owned()),
        }
    }
}

impl Range {
    fn add(&mut self, value: Option<u64>) {
        let Some(value) = value else { return };
        let (low, high) = self.0.unwrap_or((value, value));
        self.0 = Some((low.min(value), high.max(value)));
    }

    /// "7" or "3 to 7".
    fn plain(self) -> Option<String> {
        let (low, high) = self.0?;
        Some(if low == high { low.to_string() } else { format!("{low} to {high}") })
    }

    fn in_words(self, one: &str, many: &str) -> Option<String> {
        let unit = if self.0 == Some((1, 1)) { one } else { many };
        self.plain().map(|count| format!("{count} {unit}"))
    }
}

/// " (12 s ago)" for a reading that is not fresh.
fn age<T>(reading: &Option<Reading<T>>, now_ms: u64) -> String {
    match reading.as_ref().map_or(0, |reading| now_ms.saturating_sub(reading.at_ms)) {
        ..=FRESH_MS => String::new(),
        age_ms => format!(" ({} ago)", seconds(age_ms)),
    }
}

/// "0.4 s", "7 s", "3 min", "2.5 h".
pub(super) fn seconds(ms: u64) -> String {
    let seconds = ms as f64 / 1e3;
    let (value, unit) = match seconds {
        ..120.0 => (seconds, "s"),
        ..7_200.0 => (seconds / 60.0, "min"),
        _ => (seconds / 3_600.0, "h"),
    };
    let decimals = usize::from(value < 10.0 && (value - value.round()).abs() >= 0.05);
    format!("{value:.decimals$} {unit}")
}

fn day_and_time(ms: u64) -> (String, String) {
    // Whole seconds: a time is then written without a fraction.
    match i64::try_from(ms / 1_000).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0)) {
        Some(at) => (at.date_naive().to_string(), at.time().to_string()),
        None => ("an unknown day".to_owned(), format!("{ms} ms")),
    }
}
