//! How limits fare, for Prometheus.
//!
//! Scopes, windows and agents are labels. Tenants and users are not: of those the one with the least left counts for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use job::Usd;
use prometheus::{GaugeVec, IntGaugeVec, register_gauge_vec, register_int_gauge_vec};
use store::{BudgetGauge, SpendGauges, SpendScope};

/// A limit: scope, window, agent.
type Labels = [String; 3];

/// Families without a label are vectors too, because only a member of a vector can be removed.
struct Metrics {
    limit: GaugeVec,
    remaining: GaugeVec,
    held: GaugeVec,
    overrun: GaugeVec,
    unknown: GaugeVec,
    unknown_calls: IntGaugeVec,
}

static METRICS: LazyLock<Metrics> =
    LazyLock::new(|| register().expect("the metrics' names are unique, so registering cannot fail"));

const LABELS: [&str; 3] = ["scope", "period", "agent"];

fn register() -> prometheus::Result<Metrics> {
    Ok(Metrics {
        limit: register_gauge_vec!(
            "harness_budget_limit_usd",
            "The limit in dollars, by scope, period (day, month) and agent; of tenants and users, that with the least left",
            &LABELS
        )?,
        remaining: register_gauge_vec!(
            "harness_budget_remaining_usd",
            "Dollars of the limit that are not spent yet",
            &LABELS
        )?,
        held: register_gauge_vec!(
            "harness_budget_held_usd",
            "Dollars that are held for calls under way; of the fleet without a limit, too",
            &LABELS
        )?,
        overrun: register_gauge_vec!(
            "harness_budget_overrun_usd",
            "Dollars that calls have cost beyond what was held for them, until an operator opens the account; above 0 the \
             limit lets no call through",
            &LABELS
        )?,
        unknown: register_gauge_vec!(
            "harness_budget_unknown_usd",
            "Dollars that count for calls whose cost is not known",
            &[]
        )?,
        unknown_calls: register_int_gauge_vec!(
            "harness_budget_unknown_calls",
            "Calls whose cost is not known; counting stops at 10000",
            &[]
        )?,
    })
}

/// What is exported now.
#[derive(Clone, Debug, Default)]
pub struct ExportedBudgets(BTreeSet<Labels>);

impl ExportedBudgets {
    /// Exports a reading, and nothing that is not in it.
    pub fn show(&mut self, gauges: &SpendGauges) {
        let shown = by_label(&gauges.budgets);
        for gone in self.0.iter().filter(|labels| !shown.contains_key(*labels)) {
            for family in families() {
                // An error means that the member does not exist, which is fine.
                let _ = family.remove_label_values(gone);
            }
        }
        for (labels, budget) in &shown {
            METRICS.held.with_label_values(labels).set(budget.held.dollars());
            METRICS.overrun.with_label_values(labels).set(budget.overrun.dollars());
            if let (Some(limit), Some(remaining)) = (budget.limit, budget.remaining()) {
                METRICS.limit.with_label_values(labels).set(limit.dollars());
                METRICS.remaining.with_label_values(labels).set(remaining.dollars());
            }
        }
        METRICS.unknown.with_label_values::<&str>(&[]).set(gauges.unknown.dollars());
        METRICS.unknown_calls.with_label_values::<&str>(&[]).set(gauges.unknown_calls);
        self.0 = shown.into_keys().collect();
    }

    /// Exports nothing until there is a reading again.
    pub fn forget(&mut self) {
        families().into_iter().chain([&METRICS.unknown]).for_each(GaugeVec::reset);
        METRICS.unknown_calls.reset();
        self.0.clear();
    }
}

fn families() -> [&'static GaugeVec; 4] {
    [&METRICS.limit, &METRICS.remaining, &METRICS.held, &METRICS.overrun]
}

/// The account of a label with the smallest share left, with all that is held and overrun under the label.
fn by_label(budgets: &[BudgetGauge]) -> BTreeMap<Labels, BudgetGauge> {
    let mut shown: BTreeMap<Labels, BudgetGauge> = BTreeMap::new();
    for budget in budgets {
        let agent = if budget.scope == SpendScope::Agent { budget.name.clone() } else { String::new() };
        let labels = [budget.scope.as_str().to_owned(), budget.period.as_str().to_owned(), agent];
        let Some(other) = shown.remove(&labels) else {
            shown.insert(labels, budget.clone());
            continue;
        };
        let (held, overrun) = (other.held + budget.held, other.overrun + budget.overrun);
        let least = if share_left(budget) < share_left(&other) { budget.clone() } else { other };
        shown.insert(labels, BudgetGauge { held, overrun, ..least });
    }
    shown
}

fn share_left(budget: &BudgetGauge) -> f64 {
    match (budget.limit, budget.remaining()) {
        (Some(Usd::ZERO), _) => 0.0,
        (Some(limit), Some(remaining)) => remaining.dollars() / limit.dollars(),
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use store::Period;

    use super::*;

    fn budget(scope: SpendScope, name: &str, [limit, spent, held]: [u64; 3]) -> BudgetGauge {
        BudgetGauge {
            scope,
            period: Period::Day,
            name: name.to_owned(),
            account: String::new(),
            limit: (limit > 0).then(|| Usd::from_micros(limit)),
            spent: Usd::from_micros(spent),
            held: Usd::from_micros(held),
            overrun: Usd::ZERO,
        }
    }

    #[test]
    fn tenants_are_one_label_with_the_one_that_has_the_least_left() {
        let all = [
            budget(SpendScope::Tenant, "large", [1_000, 500, 7]),
            budget(SpendScope::Tenant, "small", [10, 9, 1]),
            budget(SpendScope::Agent, "one", [10, 0, 0]),
            budget(SpendScope::Agent, "two", [10, 1, 0]),
        ];
        let shown = by_label(&all);
        assert_eq!(shown.len(), 3, "{shown:?}");
        let tenants = &shown[&["tenant".to_owned(), "day".to_owned(), String::new()]];
        assert_eq!((tenants.remaining(), tenants.held), (Some(Usd::from_micros(1)), Usd::from_micros(8)));
    }
}
