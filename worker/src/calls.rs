//! Model calls: the gateway of this worker, and what each attempt may spend through it.
//!
//! ```text
//! program ──▶ gateway (crate model) ──▶ ledger of the attempt (here) ──▶ harness_calls, harness_accounts
//!                │                                                             ▲
//!                └──▶ provider                    on_exhausted (here) ─────────┘
//! ```
//!
//! The gateway is started only where an agent names `models`. Real keys stay in this process.

mod settings;
mod agent;
mod ledger;
mod meter;

use std::sync::Arc;
use std::time::Duration;

use harness::Meter;
use job::{Failure, FailureCode, Outcome};
use model::{Attempt as Opening, Gateway};
use tracing::warn;

pub use agent::AgentCalls;
use ledger::AttemptLedger;
use meter::AttemptMeter;
pub use settings::{CallArgs, CallSettings, PROVIDER_KEYS};

use crate::attempt::{Attempt, Ended};
use crate::journal::Journal;

/// Jobs that wait for a window to turn come back spread over this time.
const SPREAD: Duration = Duration::from_secs(600);

/// The calls of one attempt.
pub struct Calls {
    ledger: Arc<AttemptLedger>,
    meter: Arc<AttemptMeter>,
}

impl Calls {
    /// Lets an attempt's program call models, if its agent names any. An error means that it cannot run now.
    pub fn open(attempt: &Attempt<'_>, journal: &Arc<Journal>) -> Result<Option<Calls>, Failure> {
        let worker = attempt.worker;
        let agent = worker.settings.agents.calls(&attempt.spec.agent_id);
        let (Some(agent), Some(gateway)) = (agent, &worker.gateway) else { return Ok(None) };
        let ledger = Arc::new(AttemptLedger::new(attempt, agent, journal.clone()));
        let (models, caps) = (agent.models.clone(), agent.caps);
        let opened = gateway.open(Opening { ledger: ledger.clone(), models, caps }).map_err(|error| {
            Failure::retryable(
                FailureCode::StartFailed,
                format!("there is no token for the gateway: {error}"),
            )
        })?;
        let meter = Arc::new(AttemptMeter::new(opened, ledger.clone()));
        Ok(Some(Calls { ledger, meter }))
    }

    /// Returns what the run is metered by.
    pub fn meter(&self) -> Arc<dyn Meter> {
        self.meter.clone()
    }

    /// Returns what a failed attempt leads to that has met a spent limit: it ends as `budget_exhausted`, or comes back
    /// when the limit's window turns.
    pub async fn exhausted(&self, attempt: &Attempt<'_>) -> Option<Ended> {
        let spent = self.ledger.spent()?;
        let failure = || {
            let message = format!(
                "{spent}; the limits are set by BUDGET_DAILY, BUDGET_MONTHLY, the agents' file and `producer budget`"
            );
            Ended::Ran(Outcome::Failed(Failure::permanent(FailureCode::BudgetExhausted, message)), None)
        };
        if !self.ledger.waits() {
            return Some(failure());
        }
        let turn = match attempt.worker.store.until_turn(&spent.account).await {
            Ok(turn) => turn?,
            Err(cause) => {
                warn!(
                    cause = cause.as_dyn(),
                    "when the budget's window turns cannot be read; the job comes back in a minute"
                );
                Duration::from_secs(60)
            }
        };
        let delay = turn + SPREAD.mul_f64(fastrand::f64());
        match attempt.claimed.remaining {
            Some(remaining) if remaining.saturating_sub(attempt.begun.elapsed()) < delay => Some(failure()),
            _ => Some(Ended::Postponed(delay)),
        }
    }
}

/// Starts the gateway, if an agent calls models.
pub async fn start(settings: &CallSettings) -> Result<Option<Gateway>, model::GatewayError> {
    match settings.gateway() {
        Some(gateway) => Gateway::start(gateway).await.map(Some),
        None => Ok(None),
    }
}
