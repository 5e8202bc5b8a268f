//! The rate limits of tenants, over all doors: a door takes small slices out of a tenant's rate and submits from them.
//!
//! A slice is what the tenant has used here within the last 100 ms, and at most what its rate gives in that time. It
//! counts for that long. After an answer that left nothing, the next question waits for 100 ms, or until most of the
//! burst is there again if that takes less. So Postgres is asked about ten times a second for a tenant and a door, and
//! a tenant that is below its rate is not refused because another door holds a slice.
//!
//! A slice that is not used up is given back in part only: as much as the row cannot have refilled meanwhile. What is
//! kept outside of the row would be a second burst beside it.
//!
//! What is kept in slices may be used up to 100 ms after it was granted. The burst that the ledger grants is smaller by
//! as much, so that over any time T the tenant gets at most rate × T + burst, however many doors there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use job::Tenant;
use store::{Rate, RateAnswer, RateRequest, Store, StoreError};
use tokio::time::Instant;

/// How long a slice counts, and a refusal, at most.
const SLICE: Duration = Duration::from_millis(100);
/// How long a refusal counts, at least.
const SHORTEST_REFUSAL: Duration = Duration::from_millis(10);

/// What was granted, and what the caller should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Jobs that may be submitted.
    pub count: u32,
    /// The burst.
    pub limit: u32,
    /// How many more may come at once, as far as this door knows.
    pub remaining: u32,
    /// When one more may come; zero while some remain.
    pub next_in: Duration,
    /// When the whole burst may come again.
    pub whole_in: Duration,
}

/// The slices of all tenants that have a rate.
pub struct Rates {
    store: Store,
    slices: Mutex<HashMap<Tenant, Arc<tokio::sync::Mutex<Slice>>>>,
}

impl Rates {
    /// No slice is taken yet.
    pub fn new(store: Store) -> Rates {
        Rates { store, slices: Mutex::default() }
    }

    /// Takes up to so many jobs out of a tenant's rate.
    pub async fn take(&self, tenant: &Tenant, rate: Rate, wanted: u32) -> Result<Granted, StoreError> {
        let slice = {
            let mut slices = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
            slices.entry(tenant.clone()).or_default().clone()
        };
        // One question at a time: callers that come meanwhile use its slice.
        let mut slice = slice.lock().await;
        let plan = Plan::of(rate);
        let count = match slice.begin(plan, wanted, Instant::now()) {
            Step::Use(count) => count,
            Step::Ask(ask) => {
                let asked = Instant::now();
                let answer = self.store.take_rate(tenant, ask).await?;
                slice.end(plan, wanted, ask, answer, asked)
            }
        };
        Ok(slice.granted(rate, count, Instant::now()))
    }
}

/// How a rate is kept.
#[derive(Clone, Copy, Debug)]
struct Plan {
    interval_ns: i64,
    /// The burst that the ledger grants.
    burst: u32,
    /// The largest slice; zero where nothing is kept.
    slice: u32,
    /// How long it counts: as long as the rate takes for it.
    counts_for: Duration,
}

impl Plan {
    fn of(rate: Rate) -> Plan {
        let slice = (rate.per_s * SLICE.as_secs_f64()).floor().min(f64::from(rate.burst / 2)) as u32;
        let interval_ns = ((1e9 / rate.per_s).ceil() as i64).max(1);
        let counts_for = Duration::from_nanos(interval_ns.unsigned_abs() * u64::from(slice));
        Plan { interval_ns, burst: rate.burst - slice, slice, counts_for: counts_for.min(SLICE) }
    }

    /// How long nothing is asked after an answer that left nothing.
    fn refusal(self) -> Duration {
        let refill = Duration::from_nanos(self.interval_ns.unsigned_abs()).saturating_mul(self.burst);
        (refill * 4 / 5).clamp(SHORTEST_REFUSAL, SLICE)
    }
}

/// What one door has of one tenant's rate.
#[derive(Debug, Default)]
struct Slice {
    kept: u32,
    /// When it was asked for.
    asked: Option<Instant>,
    /// Until when nothing is asked, because the last answer left nothing.
    empty_until: Option<Instant>,
    /// What was used since a moment, and in the time before, each about as long as a slice counts.
    used: (Option<Instant>, u32, u32),
    answer: Option<RateAnswer>,
}

#[derive(Debug)]
enum Step {
    /// So many, without a question.
    Use(u32),
    Ask(RateRequest),
}

impl Slice {
    fn begin(&mut self, plan: Plan, wanted: u32, now: Instant) -> Step {
        let age = self.asked.map_or(Duration::MAX, |asked| now.saturating_duration_since(asked));
        let counts = age < plan.counts_for;
        if counts && self.kept >= wanted {
            return Step::Use(self.spend(wanted));
        }
        if self.empty_until.is_some_and(|until| now < until) {
            let most = if counts { self.kept } else { 0 };
            return Step::Use(self.spend(most.min(wanted)));
        }
        let refilled = age.as_nanos().div_ceil(plan.interval_ns.unsigned_abs().into());
        let returned =
            std::mem::take(&mut self.kept).saturating_sub(u32::try_from(refilled).unwrap_or(u32::MAX));
        let ahead = self.used_lately(now).min(plan.slice);
        let Plan { interval_ns, burst, .. } = plan;
        Step::Ask(RateRequest { wanted: wanted.max(ahead), returned, interval_ns, burst })
    }

    /// Takes the answer to a question that was asked at this time, and returns how many of those wanted were granted.
    fn end(&mut self, plan: Plan, wanted: u32, ask: RateRequest, answer: RateAnswer, asked: Instant) -> u32 {
        self.kept = answer.granted;
        self.asked = Some(asked);
        self.empty_until = (answer.granted < ask.wanted).then(|| asked + plan.refusal());
        self.answer = Some(answer);
        self.spend(wanted.min(answer.granted))
    }

    fn used_lately(&mut self, now: Instant) -> u32 {
        let (since, used, _) = self.used;
        match since.map(|since| now.saturating_duration_since(since)) {
            Some(age) if age < SLICE => {}
            Some(age) if age < 2 * SLICE => self.used = (Some(now), 0, used),
            _ => self.used = (Some(now), 0, 0),
        }
        self.used.1.max(self.used.2)
    }

    fn spend(&mut self, count: u32) -> u32 {
        self.kept -= count;
        self.used.1 = self.used.1.saturating_add(count);
        count
    }

    fn granted(&self, rate: Rate, count: u32, now: Instant) -> Granted {
        let (left, next_in, whole_in) = match self.answer {
            Some(answer) => {
                let since = self.asked.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
                (answer.left, answer.next_in.saturating_sub(since), answer.whole_in.saturating_sub(since))
            }
            None => (rate.burst, Duration::ZERO, Duration::ZERO),
        };
        let remaining = left.saturating_add(self.kept).min(rate.burst);
        // Nothing is asked before that.
        let silent = self.empty_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let next_in = if remaining > 0 { Duration::ZERO } else { next_in.max(silent) };
        Granted { count, limit: rate.burst, remaining, next_in, whole_in }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The row of a tenant, as the statement in `store` changes it.
    #[derive(Default)]
    struct Row {
        tat_ns: i64,
        asked: u32,
    }

    impl Row {
        fn take(&mut self, now_ns: i64, ask: RateRequest) -> RateAnswer {
            let most = now_ns + i64::from(ask.burst) * ask.interval_ns;
            let base = (self.tat_ns - i64::from(ask.returned) * ask.interval_ns).min(most).max(now_ns);
            let granted = ((most - base) / ask.interval_ns).min(i64::from(ask.wanted)).max(0);
            self.tat_ns = base + granted * ask.interval_ns;
            self.asked += 1;
            RateAnswer::of(granted as u32, self.tat_ns - now_ns, ask)
        }
    }

    struct Doors {
        begun: Instant,
        row: Row,
        doors: Vec<Slice>,
        rate: Rate,
    }

    impl Doors {
        fn new(rate: Rate, doors: usize) -> Doors {
            let doors = (0..doors).map(|_| Slice::default()).collect();
            // A clock in the past of the row's would grant a burst too many.
            Doors { begun: Instant::now(), row: Row { tat_ns: 0, asked: 0 }, doors, rate }
        }

        fn take(&mut self, door: usize, at: Duration, wanted: u32) -> u32 {
            let (now, plan) = (self.begun + at, Plan::of(self.rate));
            match self.doors[door].begin(plan, wanted, now) {
                Step::Use(count) => count,
                Step::Ask(ask) => {
                    let answer = self.row.take(1_000_000_000 + at.as_nanos() as i64, ask);
                    self.doors[door].end(plan, wanted, ask, answer, now)
                }
            }
        }
    }

    proptest! {
        #[test]
        fn over_any_window_all_doors_together_give_at_most_the_rate_and_the_burst(
            per_s in 0.5..3_000.0_f64,
            burst in 1_u32..2_000,
            doors in 1_usize..5,
            calls in prop::collection::vec((0_usize..5, 0_u64..40_000, 1_u32..60), 1..400),
        ) {
            let mut all = Doors::new(Rate { per_s, burst }, doors);
            let (mut at, mut given) = (Duration::ZERO, Vec::new());
            for (door, wait_us, wanted) in calls {
                at += Duration::from_micros(wait_us);
                let count = all.take(door % doors, at, wanted);
                prop_assert!(count <= wanted);
                given.push((at, u64::from(count)));
            }
            for first in 0..given.len() {
                let mut sum = 0;
                for (at, count) in &given[first..] {
                    sum += count;
                    let window = (*at - given[first].0).as_secs_f64();
                    let most = per_s * window + f64::from(burst);
                    prop_assert!(sum as f64 <= most + 1e-6, "{sum} in {window} s, at most {most}");
                }
            }
        }
    }

    #[test]
    fn a_busy_tenant_has_its_rate_and_costs_about_ten_questions_a_second() {
        for (per_s, burst) in [(10.0, 10), (100.0, 50), (1_000.0, 100), (5_000.0, 5_000)] {
            let mut all = Doors::new(Rate { per_s, burst }, 2);
            let (mut given, step) = (0, Duration::from_micros(100));
            let steps = 10 * 10_000;
            for n in 0..steps {
                given += all.take(n % 2, step * n as u32, 1);
            }
            let fair = per_s * 10.0;
            assert!(f64::from(given) >= 0.9 * fair.min(steps as f64), "{per_s}: {given}");
            assert!(all.row.asked <= 2 * 10 * 30, "{per_s}: {} questions", all.row.asked);
        }
    }

    #[test]
    fn a_tenant_far_below_its_rate_is_never_refused_whichever_door_it_asks() {
        let mut all = Doors::new(Rate { per_s: 100.0, burst: 20 }, 4);
        for n in 0..5_000_u32 {
            // Half of its rate, over all doors in turn.
            let granted = all.take(n as usize % 4, Duration::from_millis(20) * n, 1);
            assert_eq!(granted, 1, "{n}");
        }
    }
}
