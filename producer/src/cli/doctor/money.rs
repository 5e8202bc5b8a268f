//! The checks of `producer doctor` on money. What only workers know, such as keys and prices, they check when they start.

use store::{BudgetGauge, SpendGauges, Store};

use super::{Checklist, chain};

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    match store.spend_gauges().await {
        // No calls, and no limits.
        Ok(gauges) if gauges.budgets.is_empty() && gauges.unknown_calls == 0 => {}
        Ok(gauges) => {
            list.report("budgets", budgets(&gauges.budgets));
            list.report("calls_settled", Ok(unknown(&gauges)));
        }
        Err(error) => _ = list.report("budgets", Err(chain(error))),
    }
    match store.cache_size().await {
        Ok((0, _)) => {}
        Ok((answers, bytes)) => {
            let mib = bytes as f64 / f64::from(1 << 20);
            list.report(
                "answer_cache",
                Ok(format!("{answers} answers of models may be given again, {mib:.1} MiB")),
            );
        }
        Err(error) => _ = list.report("answer_cache", Err(chain(error))),
    }
}

/// A limit that is spent does its work, so it is shown. One that is shut waits for an operator.
fn budgets(budgets: &[BudgetGauge]) -> Result<String, String> {
    let shut: Vec<&str> = budgets
        .iter()
        .filter(|budget| budget.overrun.micros() > 0)
        .map(|budget| budget.account.as_str())
        .collect();
    if !shut.is_empty() {
        return Err(format!(
            "a call has cost more than was held for it, and no call is granted under {}: look at \
             ops/runbooks/HarnessSpendOverrun.md, then `producer budget reopen ACCOUNT`",
            shut.join(", ")
        ));
    }
    let left = |budget: &BudgetGauge| Some((budget.remaining()?, budget.limit?));
    let limited: Vec<_> =
        budgets.iter().filter_map(|budget| Some((left(budget)?, &budget.account))).collect();
    let share = |(remaining, limit): (job::Usd, job::Usd)| remaining.dollars() / limit.dollars().max(1e-6);
    match limited.iter().min_by(|one, other| share(one.0).total_cmp(&share(other.0))) {
        None => {
            Ok("model calls have no limit: `producer budget set` sets one, or BUDGET_DAILY of the workers"
                .to_owned())
        }
        Some(((remaining, limit), account)) => {
            Ok(format!("{} limits; the least is left of {account}: {remaining} of {limit}", limited.len()))
        }
    }
}

/// They count in full, so nothing is missing; but room is lost until somebody looks.
fn unknown(gauges: &SpendGauges) -> String {
    let SpendGauges { unknown_calls, unknown, unknown_for_an_hour, .. } = gauges;
    match unknown_for_an_hour {
        0 => format!("{unknown_calls} calls of unknown cost, none for more than an hour"),
        old => format!(
            "{old} calls of unknown cost for more than an hour; all {unknown_calls} count {unknown}: \
             `producer spend unknown` lists them, `producer spend settle` settles them"
        ),
    }
}
