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
mod concurrency;
mod rates;
mod ledger;
mod settlement;
mod spent;
mod accounts;
mod look;
mod metrics;

use std::sync::Arc;
use std::time::Duration;

use harness::{IsDurable, Meter, Offer, Usage};
use job::{Failure, FailureCode};
use model::{Attempt as Opening, Gateway, Opened};
use tokio::sync::oneshot;
use tracing::warn;

pub use accounts::{Accounts, Limit, Total};
pub use agent::AgentCalls;
use ledger::AttemptLedger;
pub use look::{Look, keep_looking};
pub use rates::LIMITS;
pub use settings::{CallArgs, CallSettings, PROVIDER_KEYS, missing_key, prices};
use spent::NoRoom;

use crate::agents::Agents;
use crate::attempt::Attempt;
use crate::journal::Journal;
use crate::parts;

/// Jobs that wait for a window to turn come back spread over this time.
const SPREAD: Duration = Duration::from_secs(600);
/// A job for whose call others have left no room comes back after this long, and up to twice as long.
const COMES_BACK: Duration = Duration::from_secs(10);

/// The calls of one attempt, and their meter as its harness sees it.
pub struct Calls {
    opened: Metered,
    ledger: Arc<AttemptLedger>,
}

impl Calls {
    /// Lets an attempt's program call models, if its agent names any. An error means that it cannot run now.
    pub fn open(attempt: &Attempt<'_>, journal: &Arc<Journal>) -> Result<Option<Arc<Calls>>, Failure> {
        let worker = attempt.worker;
        let agent = worker.settings.agents.calls(&attempt.spec.agent_id);
        let (Some(agent), Some(gateway)) = (agent, &worker.gateway) else { return Ok(None) };
        let ledger = Arc::new(AttemptLedger::new(attempt, agent, journal.clone()));
        let (models, degrades, caps) = (agent.models.clone(), agent.gateway_degrades(), agent.caps());
        let fit = agent.fit();
        let opened = gateway.open(Opening { ledger: ledger.clone(), models, degrades, fit, caps }).map_err(
            |error| {
                Failure::retryable(
                    FailureCode::StartFailed,
                    format!("there is no token for the gateway: {error}"),
                )
            },
        )?;
        // An attempt runs once.
        let _ = attempt.calls.set(opened.exchanges());
        Ok(Some(Arc::new(Calls { opened: Metered(opened), ledger })))
    }

    /// Returns what an attempt leads to that may have failed because there was no room for a call ([`spent::Missed`]). If a limit is
    /// spent, it comes back after this time, when the limit's window has turned, or it fails as `budget_exhausted`. If others
    /// held the room for too long, it comes back soon.
    pub async fn without_room(
        &self,
        attempt: &Attempt<'_>,
        failure: &Failure,
    ) -> Option<Result<Duration, Failure>> {
        if !may_be_for_want_of_room(failure.code) {
            return None;
        }
        let remaining =
            attempt.claimed.remaining.map(|remaining| remaining.saturating_sub(attempt.begun.elapsed()));
        let is_too_late = |delay| remaining.is_some_and(|remaining| remaining < delay);
        let spent = match self.ledger.no_room()? {
            NoRoom::Spent(spent) => spent,
            NoRoom::Busy => {
                let delay = COMES_BACK.mul_f64(1.0 + fastrand::f64());
                return (!is_too_late(delay)).then_some(Ok(delay));
            }
        };
        self.ledger.count_refusal();
        let message = format!(
            "{spent}; the limits are set by BUDGET_DAILY, BUDGET_MONTHLY, the agents' file and `producer budget`"
        );
        let failure = Failure::permanent(FailureCode::BudgetExhausted, message);
        if !self.ledger.waits() || spent.is_hopeless() {
            return Some(Err(failure));
        }
        let turn = match attempt.worker.store.until_turn(&spent.account).await {
            Ok(Some(turn)) => turn,
            Ok(None) => return Some(Err(failure)),
            Err(cause) => {
                warn!(
                    cause = cause.as_dyn(),
                    "when the budget's window turns cannot be read; the job comes back in a minute"
                );
                Duration::from_secs(60)
            }
        };
        // A job whose deadline is soon after the turn comes back before it.
        let spread = remaining.map_or(SPREAD, |remaining| SPREAD.min(remaining.saturating_sub(turn) / 2));
        let delay = turn + spread.mul_f64(fastrand::f64());
        Some(if is_too_late(delay) { Err(failure) } else { Ok(delay) })
    }
}

/// Counts what a job has paid that is in no checkpoint of it, if it has ended with this attempt, once all its calls are settled:
/// an answer that its program has given up may still be read for a while. Nobody waits for it.
pub fn count_repaid(attempt: &Attempt<'_>) {
    let (worker, claim) = (attempt.worker, attempt.claimed.claim.clone());
    if worker.gateway.is_none() || worker.settings.agents.calls(&attempt.spec.agent_id).is_none() {
        return;
    }
    let (store, stopped) = (worker.store.clone(), worker.stop_waiting.clone());
    let calls = attempt.calls.get().cloned();
    tokio::spawn(async move {
        if let Some(calls) = calls {
            calls.close();
            tokio::select! {
                () = calls.wait() => {}
                // Then nothing is settled any more.
                () = stopped.cancelled() => {}
            }
        }
        match store.repaid(&claim).await {
            Ok(cost) => metrics::repaid(cost),
            Err(cause) => {
                warn!(
                    job_id = %claim.job_id(),
                    cause = cause.as_dyn(),
                    "what a job has paid for nothing cannot be read, and is not counted"
                );
            }
        }
    });
}

/// Whether an attempt may have failed because there was no room for a call.
pub fn may_be_for_want_of_room(code: FailureCode) -> bool {
    use FailureCode::{BudgetExhausted, Crashed, HarnessError, ProviderError};
    matches!(code, HarnessError | Crashed | ProviderError | BudgetExhausted)
}

impl Meter for Calls {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.opened.environment()
    }

    fn port(&self) -> u16 {
        self.opened.port()
    }

    fn most_output(&self, model: &str) -> Option<u64> {
        self.opened.most_output(model)
    }

    fn used(&self) -> Usage {
        self.opened.used()
    }

    fn idle(&self) -> Duration {
        self.opened.idle()
    }

    fn close(&self) {
        self.opened.close();
    }

    fn follow(&self, is_durable: IsDurable) {
        self.ledger.follow(is_durable);
    }

    fn offers(&self, call: u64) -> Option<oneshot::Receiver<Offer>> {
        Some(self.ledger.offers().expect(call))
    }
}

/// What the gateway knows of an attempt, as the meter of its harness.
pub struct Metered(pub Opened);

impl Meter for Metered {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.0.environment().into()
    }

    fn port(&self) -> u16 {
        self.0.port()
    }

    fn most_output(&self, model: &str) -> Option<u64> {
        self.0.most_output(model)
    }

    fn used(&self) -> Usage {
        let metered = self.0.metered();
        Usage { cost: metered.cost, input_tokens: metered.input_tokens, output_tokens: metered.output_tokens }
    }

    fn idle(&self) -> Duration {
        self.0.idle()
    }

    fn close(&self) {
        self.0.close();
    }

    /// Without a ledger no answer is stored, and none is looked up.
    fn follow(&self, _: IsDurable) {}
}

/// Starts the gateway, if an agent calls models.
pub async fn start(settings: &CallSettings, agents: &Agents) -> Result<Option<Gateway>, model::GatewayError> {
    match settings.gateway() {
        Some(gateway) => {
            metrics::show_zeros(agents.all_calls());
            parts::show_zeros(agents.loops());
            let gateway = Gateway::start(gateway).await?;
            concurrency::show(&gateway);
            Ok(Some(gateway))
        }
        None => Ok(None),
    }
}
