//! What was decided before: everything that later decisions depend on. It is read back from `harness_scale_decisions`.
//!
//! What counts is when a recommendation ended. It holds until one of another size is made, through ticks that repeat it
//! and ticks at which nothing is known. So it makes no difference whether every decision is recorded or only each that
//! changes something. Kubernetes takes samples every 15 s instead; a window here ends when it would with a sample at
//! every moment.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Decision, MAX_PERIOD_S, MAX_WINDOW_S};

/// The past that the stabilization windows and rate limits need. What is older than any policy's reach is dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The last recommendation, which still holds.
    last: Option<u32>,
    /// Earlier ones that no later one reaches. They descend, so the first within a window is the window's highest.
    highs: VecDeque<Recommendation>,
    /// Earlier ones that no later one undercuts. They ascend, so the first within a window is the window's lowest.
    lows: VecDeque<Recommendation>,
    /// Changes that were written to the workload, in both directions, oldest first.
    resizes: VecDeque<Resize>,
    /// Since when nothing is ready, running or due; `None` while something is, or while that is unknown.
    idle_since_ms: Option<u64>,
    /// When the last decision was made.
    decided_at_ms: u64,
}

/// What the mode asked for, before any behaviour was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recommendation {
    /// When it ended, as Unix time in milliseconds.
    until_ms: u64,
    /// Workers.
    replicas: u32,
}

/// A change of the workload's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// Workers before.
    pub from: u32,
    /// Workers after.
    pub to: u32,
}

impl History {
    /// Adds a decision, applied or not. Decisions must come in the order of their time. The first one also adds the
    /// size that it found as a recommendation, as Kubernetes does.
    pub fn record(&mut self, decision: &Decision) {
        self.decided_at_ms = self.decided_at_ms.max(decision.at_ms);
        self.idle_since_ms = decision.idle_since_ms;
        if let Some(recommended) = decision.recommended {
            if let (None, Some(current)) = (self.last, decision.current) {
                self.recommend(current);
            }
            self.recommend(recommended);
        }
        self.forget();
    }

    /// Adds a change that was written to the workload: it counts towards the rate limits.
    pub fn resized(&mut self, at_ms: u64, from: u32, to: u32) {
        let at_ms = self.resizes.back().map_or(at_ms, |last| last.at_ms.max(at_ms));
        self.resizes.push_back(Resize { at_ms, from, to });
    }

    /// Continues in a new process, at the workload's current size. That size counts as a recommendation, so that no
    /// restart drops replicas. Nothing was observed since the last decision, so the pool's idle time begins anew.
    pub fn resumed(&mut self, at_ms: u64, current: u32) {
        self.decided_at_ms = self.decided_at_ms.max(at_ms);
        self.recommend(current);
        self.idle_since_ms = None;
        self.forget();
    }

    /// Returns the changes that were written to the workload within the longest period, oldest first.
    pub fn resizes(&self) -> impl DoubleEndedIterator<Item = &Resize> {
        self.resizes.iter()
    }

    /// Returns the number of workers added (positive) or removed (negative) later than `after_ms`.
    pub(super) fn change_after(&self, after_ms: u64) -> i64 {
        let later = self.resizes.iter().rev().take_while(|resize| resize.at_ms > after_ms);
        later.map(|resize| i64::from(resize.to) - i64::from(resize.from)).sum()
    }

    /// Returns the lowest recommendation that held later than `after_ms`, or `current` if there was none at all.
    pub(super) fn lowest_after(&self, after_ms: u64, current: u32) -> u32 {
        first_after(&self.lows, after_ms)
            .into_iter()
            .chain([self.last.unwrap_or(current)])
            .fold(u32::MAX, u32::min)
    }

    /// Returns the highest recommendation that held later than `after_ms`, or `current` if there was none at all.
    pub(super) fn highest_after(&self, after_ms: u64, current: u32) -> u32 {
        first_after(&self.highs, after_ms).into_iter().chain([self.last.unwrap_or(current)]).fold(0, u32::max)
    }

    /// Returns since when the pool is idle, if no gap between decisions was longer than `gap_ms`.
    pub(super) fn idle_since_ms(&self, now_ms: u64, gap_ms: u64) -> Option<u64> {
        self.idle_since_ms.filter(|_| now_ms.saturating_sub(self.decided_at_ms) <= gap_ms)
    }

    fn recommend(&mut self, replicas: u32) {
        let Some(last) = self.last.replace(replicas).filter(|last| *last != replicas) else { return };
        let ended = Recommendation { until_ms: self.decided_at_ms, replicas: last };
        while self.highs.pop_back_if(|high| high.replicas <= last).is_some() {}
        self.highs.push_back(ended);
        while self.lows.pop_back_if(|low| low.replicas >= last).is_some() {}
        self.lows.push_back(ended);
    }

    fn forget(&mut self) {
        let window_ms = self.decided_at_ms.saturating_sub(MAX_WINDOW_S * 1000);
        while self.highs.pop_front_if(|high| high.until_ms <= window_ms).is_some() {}
        while self.lows.pop_front_if(|low| low.until_ms <= window_ms).is_some() {}
        let period_ms = self.decided_at_ms.saturating_sub(MAX_PERIOD_S * 1000);
        while self.resizes.pop_front_if(|resize| resize.at_ms <= period_ms).is_some() {}
    }
}

fn first_after(ended: &VecDeque<Recommendation>, after_ms: u64) -> Option<u32> {
    ended.get(ended.partition_point(|one| one.until_ms <= after_ms)).map(|one| one.replicas)
}
