//! How budgets and providers fare, as `/ready` shows it.
//!
//! It is for information: a worker whose budget is spent, or whose provider is silent, still takes jobs. Those of other
//! agents run, and the others end, wait or are tried again by their own rules.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use job::Usd;
use serde_json::json;
use service::Check;
use store::{BudgetGauge, Period, SpendGauges, SpendScope};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::worker::Worker;

/// The interval between readings of the ledger.
const BUDGETS_EVERY: Duration = Duration::from_secs(10);
/// The interval between questions to the providers.
const PROVIDERS_EVERY: Duration = Duration::from_secs(60);

/// What was found last. Nothing is known at first.
#[derive(Default)]
pub struct Look(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// The limits, if they could be read.
    budgets: Option<Vec<BudgetGauge>>,
    /// An account that left no room for a call of this worker, and what the call needed.
    spent: BTreeMap<String, Usd>,
    /// Whether the providers answer, and why not.
    responsive: Option<Result<(), String>>,
}

impl Look {
    /// Notes that a limit left no room for a call.
    pub fn note_spent(&self, account: &str, needed: Usd) {
        let scope = account.split(':').next().and_then(SpendScope::of);
        // The limit of a session or a job is its caller's concern.
        if matches!(scope, Some(SpendScope::Fleet | SpendScope::Agent)) {
            self.seen().spent.insert(account.to_owned(), needed);
        }
    }

    /// Returns what is known, as lines of `/ready`.
    pub fn checks(&self) -> BTreeMap<&'static str, Check> {
        let seen = self.seen();
        let mut checks = BTreeMap::new();
        if let Some(budgets) = &seen.budgets {
            let problem = budgets.iter().find_map(|budget| seen.problem(budget));
            checks.insert("budget_ok", Check::Note(problem.is_none(), problem));
            let of_fleet = budgets.iter().filter(|budget| budget.scope == SpendScope::Fleet);
            let least = of_fleet.filter_map(BudgetGauge::remaining).min();
            checks.insert("budget_remaining_usd", Check::Info(json!(least)));
        }
        if let Some(responsive) = &seen.responsive {
            checks.insert("model_responsive", Check::Note(responsive.is_ok(), responsive.clone().err()));
        }
        checks
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Returns why calls that count in this budget may be refused.
    fn problem(&self, budget: &BudgetGauge) -> Option<String> {
        let BudgetGauge { account, limit: Some(limit), overrun, .. } = budget else { return None };
        if *overrun > Usd::ZERO {
            return Some(format!("the budget {account} is shut: a call has cost more than was held for it"));
        }
        let needed = self.spent.get(account).copied().unwrap_or(Usd::from_micros(1));
        let is_spent = budget.remaining().is_some_and(|remaining| remaining < needed);
        is_spent.then(|| format!("the budget {account} of {limit} is spent"))
    }
}

/// Looks at an interval until `end`.
pub async fn keep_looking(worker: &Worker, end: CancellationToken) {
    let budgets = async {
        let mut clock = interval(BUDGETS_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            read_budgets(worker).await;
        }
    };
    let providers = async {
        // Workers that start together do not ask together.
        tokio::time::sleep(Duration::from_secs(1).mul_f64(fastrand::f64())).await;
        let mut clock = interval(PROVIDERS_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            ask_providers(worker).await;
        }
    };
    let looking = async { tokio::join!(budgets, providers) };
    let _stopped = end.run_until_cancelled(looking).await;
}

/// Where the ledger does not know a limit of this worker's settings yet, or knows a higher one, the setting counts.
async fn read_budgets(worker: &Worker) {
    let read = worker.store.spend_gauges().await;
    let mut seen = worker.look.seen();
    match read {
        Ok(SpendGauges { budgets, .. }) => {
            let budgets = with_own(worker, budgets);
            seen.spent.retain(|account, _| budgets.iter().any(|budget| budget.account == *account));
            seen.budgets = Some(budgets);
        }
        Err(cause) => {
            seen.budgets = None;
            debug!(cause = cause.as_dyn(), "how budgets fare cannot be read");
        }
    }
}

/// Returns the limits that this worker's calls may meet: those of the fleet and of its agents.
fn with_own(worker: &Worker, budgets: Vec<BudgetGauge>) -> Vec<BudgetGauge> {
    let agents = &worker.settings.agents;
    let [daily, monthly] = worker.settings.calls.fleet();
    let own = |budget: &BudgetGauge| {
        let of_agent = || agents.calls(&budget.name.parse().ok()?);
        let [daily, monthly] = match budget.scope {
            SpendScope::Fleet => [daily, monthly],
            _ => of_agent().map(|agent| [agent.budget_daily, agent.budget_monthly]).unwrap_or_default(),
        };
        if budget.period == Period::Day { daily } else { monthly }
    };
    let is_mine = |budget: &BudgetGauge| match budget.scope {
        SpendScope::Fleet => true,
        SpendScope::Agent => budget.name.parse().is_ok_and(|name| agents.calls(&name).is_some()),
        _ => false,
    };
    let mut mine: Vec<BudgetGauge> = budgets.into_iter().filter(is_mine).collect();
    for budget in &mut mine {
        budget.limit = budget.limit.into_iter().chain(own(budget)).min();
    }
    // Before the first call of a window there is no account yet.
    for (period, limit) in [(Period::Day, daily), (Period::Month, monthly)] {
        let is_there = |budget: &BudgetGauge| budget.scope == SpendScope::Fleet && budget.period == period;
        if limit.is_some() && !mine.iter().any(is_there) {
            let account = format!("{}:{}", SpendScope::Fleet.as_str(), period.as_str());
            mine.push(BudgetGauge::unused(SpendScope::Fleet, period, account, limit));
        }
    }
    mine
}

async fn ask_providers(worker: &Worker) {
    let Some(gateway) = &worker.gateway else { return };
    let answered = gateway.ask_providers().await;
    let mut seen = worker.look.seen();
    if let (Err(cause), None | Some(Ok(()))) = (&answered, &seen.responsive) {
        warn!(cause, "a provider of models does not answer as it should; jobs that call it may fail");
    }
    seen.responsive = Some(answered);
}
