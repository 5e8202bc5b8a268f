//! One attempt's side of the accounts: what its gateway asks becomes rows of the ledger.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use harness::IsDurable;
use job::{Name, Usd};
use model::{
    Answer, Call, Given, Ledger, NoUsage, Outcome, Purchase, RequestKey, Reserve, Settlement, Unavailable,
};
use service::{RetryError, retry};
use store::{
    CacheEntry, CacheLookup, CallOutcome, CallTokens, Claim, GivenAnswer, Limit, Lookup, NewCall, Period,
    Reserved, SettledCall, SpendScope, Store, StoreError, StoredAnswer,
};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::agent::{AgentCalls, OnExhausted};
use super::look::Look;
use super::metrics;
use super::rates::{ProviderKeys, limit_name};
use super::settings::CacheBounds;
use crate::attempt::Attempt;
use crate::journal::Journal;
use crate::metrics::METRICS;

/// When the gateway asks again for a call that does not fit beside what others hold.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// The provider of other things that cost, in the ledger.
const OTHER: &str = "other";
/// Answers that are being kept for other jobs at the same time.
static KEEPING: Semaphore = Semaphore::const_new(16);
/// The most characters of what a provider says that a settlement keeps.
const MOST_SAID: usize = 200;
/// Why a call counts in full whose settlement Postgres has refused.
const NOT_TAKEN: &str = "the ledger refused what was to be recorded";
/// How often it is looked whether a program's lines are durable.
const DURABLE_POLL: Duration = Duration::from_millis(2);

pub struct AttemptLedger {
    store: Store,
    claim: Claim,
    agent_id: Name,
    user_id: Option<String>,
    limits: Vec<Limit>,
    keys: Arc<ProviderKeys>,
    on_exhausted: OnExhausted,
    /// Whether its program goes on with another model where a limit leaves no room.
    tries_others: bool,
    /// How old an answer of the cache may be that it is given, if any, and what the cache may hold.
    cache: Option<(Duration, CacheBounds)>,
    journal: Arc<Journal>,
    is_durable: OnceLock<IsDurable>,
    /// Whether a call is made to cost less where it would not fit.
    fits: bool,
    no_room: Mutex<Option<NoRoom>>,
    /// Requests that earlier runs of the job have paid and no checkpoint covers, with what they cost; looked up when this
    /// run first pays.
    paid_before: OnceCell<Mutex<PaidBefore>>,
    look: Arc<Look>,
    /// Ends the waits for Postgres with the process.
    stop_waiting: CancellationToken,
}

/// What requests have cost, by their hash and number.
type PaidBefore = HashMap<([u8; 32], u32), Usd>;

/// Why the last call had no room.
#[derive(Clone, Debug)]
pub enum NoRoom {
    /// What is spent leaves none.
    Spent(Spent),
    /// Others hold it, or a rate limit is reached, and the wait for it was over.
    Busy,
}

/// A limit that left no room for a call.
#[derive(Clone, Debug)]
pub struct Spent {
    /// The account, as scope:period:window:name.
    pub account: String,
    limit: Usd,
    /// What the call could have cost, and whether it may be made to cost less where there is room.
    need: Usd,
    fits: bool,
    shut: bool,
    /// What the call needed, if the refusal is counted only once nothing else has room either.
    uncounted: Option<Usd>,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spent { account, limit, need, shut, .. } = self;
        if self.is_hopeless() {
            return write!(f, "the budget {account} has no room: a call needs {need}, the limit is {limit}");
        }
        if *shut {
            return write!(
                f,
                "the budget {account} is shut, because a call has cost more than was held for it"
            );
        }
        write!(f, "the budget {account} of {limit} is spent")
    }
}

impl Spent {
    /// Returns whether the call needs more than the whole limit, so that no later window has room for it either.
    pub fn is_hopeless(&self) -> bool {
        self.need > self.limit && !self.fits
    }
}

impl AttemptLedger {
    pub fn new(attempt: &Attempt<'_>, agent: &AgentCalls, journal: Arc<Journal>) -> AttemptLedger {
        let (worker, spec) = (attempt.worker, attempt.spec);
        AttemptLedger {
            store: worker.store.clone(),
            claim: attempt.claimed.claim.clone(),
            agent_id: spec.agent_id.clone(),
            user_id: spec.user_id.clone(),
            limits: limits(worker.settings.calls.fleet(), agent, spec.max_cost_usd),
            keys: worker.settings.calls.keys().clone(),
            on_exhausted: agent.on_exhausted,
            fits: agent.fit().is_some(),
            tries_others: agent.loop_degrades(),
            cache: worker
                .settings
                .calls
                .cache()
                .and_then(|bounds| Some((agent.cache_age(bounds.age)?, bounds))),
            journal,
            is_durable: OnceLock::new(),
            no_room: Mutex::default(),
            paid_before: OnceCell::new(),
            look: worker.look.clone(),
            stop_waiting: worker.stop_waiting.clone(),
        }
    }

    pub fn follow(&self, is_durable: IsDurable) {
        // An attempt has one program.
        let _ = self.is_durable.set(is_durable);
    }

    /// Returns why there was no room for the last call, if there was none.
    pub fn no_room(&self) -> Option<NoRoom> {
        self.no_room_now().clone()
    }

    pub fn waits(&self) -> bool {
        self.on_exhausted == OnExhausted::Wait
    }

    /// Counts what an earlier run has paid for the request that this run has paid now.
    async fn note_repaid(&self, request: &RequestKey) {
        let look = || async {
            let paid = self.store.paid_before(&self.claim).await?;
            let key = |hash: Vec<u8>| <[u8; 32]>::try_from(hash).unwrap_or_default();
            let paid = paid.into_iter().map(|paid| ((key(paid.hash), paid.nth), paid.cost));
            Ok::<_, StoreError>(Mutex::new(paid.collect()))
        };
        match self.paid_before.get_or_try_init(look).await {
            Ok(paid) => {
                let paid =
                    paid.lock().unwrap_or_else(PoisonError::into_inner).remove(&(request.hash, request.nth));
                paid.into_iter().for_each(metrics::repaid);
            }
            Err(cause) => warn!(
                cause = cause.as_dyn(),
                "what earlier runs have paid cannot be read, and is not counted"
            ),
        }
    }

    /// Counts that a limit has refused a call, unless it is counted.
    pub fn count_refusal(&self) {
        let taken = match self.no_room_now().as_mut() {
            Some(NoRoom::Spent(spent)) => spent.uncounted.take().map(|most| (most, spent.clone())),
            Some(NoRoom::Busy) | None => None,
        };
        if let Some((most, spent)) = taken {
            self.refused(&spent, most);
        }
    }

    fn refused(&self, spent: &Spent, most: Usd) {
        let Spent { account, shut, .. } = spent;
        metrics::refused(account, if *shut { "shut" } else { "spent" });
        self.look.note_spent(account, most);
    }

    fn no_room_now(&self) -> MutexGuard<'_, Option<NoRoom>> {
        self.no_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, call: &Call) -> NewCall {
        NewCall {
            call_id: call.id,
            claim: self.claim.clone(),
            agent_id: self.agent_id.clone(),
            user_id: self.user_id.clone(),
            provider: call.provider.name(),
            model: call.model.clone(),
            reserved: call.bound.cost,
            request_hash: call.request.hash,
            request_nth: call.request.nth,
            limits: self.limits.clone(),
            lookup: Some(Lookup {
                after_checkpoints: self.journal.written(),
                cache: self.cache_lookup(call),
            }),
            rate_use: self.keys.takes(call),
        }
    }

    fn purchase_row(&self, purchase: &Purchase) -> NewCall {
        NewCall {
            call_id: purchase.id,
            claim: self.claim.clone(),
            agent_id: self.agent_id.clone(),
            user_id: self.user_id.clone(),
            provider: OTHER,
            model: purchase.what.clone(),
            reserved: purchase.most,
            // No answer is stored for it.
            request_hash: [0; 32],
            request_nth: 0,
            limits: self.limits.clone(),
            lookup: None,
            rate_use: None,
        }
    }

    fn cache_lookup(&self, call: &Call) -> Option<CacheLookup> {
        let (max_age, _) = self.cache?;
        Some(CacheLookup { key: call.cache_key?, max_age })
    }

    fn given(&self, answer: GivenAnswer) -> Given {
        let GivenAnswer { content_type, body, cached, paid } = answer;
        if cached {
            metrics::cache("hit");
        } else {
            metrics::replayed(&self.agent_id);
        }
        Given { answer: Answer { content_type, body: body.into() }, cached, paid }
    }

    /// Keeps an answer for other jobs, beside all else: nobody waits for it.
    fn keep(&self, call: &Call, answer: &Answer, outcome: &Outcome, is_shareable: bool) {
        let (Some(entry), Some((_, bounds))) = (self.cache_lookup(call), self.cache) else { return };
        let is_small = answer.body.len() as u64 <= bounds.answer_bytes();
        let Outcome::Settled(settled) = outcome else { return metrics::cache("not_kept") };
        if !is_shareable || !is_small {
            return metrics::cache("not_kept");
        }
        let (tenant, _) = self.claim.session();
        let entry = CacheEntry {
            tenant,
            entry: CacheLookup { max_age: bounds.age, ..entry },
            model: call.model.clone(),
            content_type: answer.content_type.clone(),
            body: answer.body.to_vec(),
            cost: settled.cost,
        };
        // More that wait for a slow database are not kept.
        let Ok(permit) = KEEPING.try_acquire() else { return metrics::cache("failed") };
        let store = self.store.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match store.keep_answer(&entry, bounds.bytes).await {
                Ok(()) => metrics::cache("kept"),
                Err(cause) => {
                    metrics::cache("failed");
                    debug!(cause = cause.as_dyn(), "an answer could not be kept for other jobs");
                }
            }
        });
    }

    async fn reserve_row(&self, row: NewCall) -> Result<Reserve, Unavailable> {
        let (provider, asks_cache) = (row.provider, row.lookup.as_ref().is_some_and(|it| it.cache.is_some()));
        let need = row.reserved;
        let reserved = self.store.reserve(row).await.map_err(unavailable)?;
        let (spent, room) = match reserved {
            Reserved::Answered(answer) => {
                *self.no_room_now() = None;
                return Ok(Reserve::Answered(self.given(answer)));
            }
            Reserved::Granted => {
                *self.no_room_now() = None;
                if asks_cache {
                    metrics::cache(if self.store.asks_cache() { "miss" } else { "skipped" });
                }
                return Ok(Reserve::Granted);
            }
            Reserved::Later { limit, retry_after } => {
                METRICS.rate_limited.with_label_values(&[provider, limit_name(&limit)]).inc();
                // Those who were told the same time do not come back together.
                let retry_after = retry_after.mul_f64(1.0 + fastrand::f64() / 4.0);
                return Ok(Reserve::Later { retry_after });
            }
            Reserved::Busy { account } => {
                metrics::refused(&account, "busy");
                return Ok(Reserve::Busy { behind: account, retry_after: BUSY_RETRY });
            }
            Reserved::Lost => return Err(Unavailable("this run has lost its job".to_owned())),
            Reserved::Spent { account, limit, room, shut } => {
                (Spent { account, limit, need, fits: self.fits, shut, uncounted: None }, room)
            }
        };
        let limit = spent.to_string();
        *self.no_room_now() = Some(NoRoom::Spent(spent));
        Ok(Reserve::Spent { limit, room })
    }

    /// Retries until Postgres has answered: the money is spent, whatever became of the run. What Postgres refuses counts in
    /// full, so that nothing stays held for ever; its answer is not stored, so that is an error all the same.
    async fn settle_row(&self, settled: SettledCall) -> Result<(), Unavailable> {
        let settling = self.try_to_settle(&settled).await;
        if matches!(&settling, Err(RetryError::Permanent(StoreError::Refused { .. }))) {
            let NewCall { call_id, model, reserved, .. } = &settled.call;
            match self.try_to_settle(&in_full(&settled)).await {
                Ok(_) => {
                    let unknown = Outcome::Unknown(NoUsage::NotSettled);
                    metrics::settled(&self.agent_id, model, *reserved, &unknown);
                }
                Err(RetryError::Permanent(cause)) => {
                    error!(call = %call_id, cause = cause.as_dyn(), "a model call stays held");
                }
                Err(RetryError::Stopped) => {}
            }
        }
        match settling {
            Ok(store::Settled::Now { overrun }) if overrun > Usd::ZERO => {
                let NewCall { call_id, model, .. } = &settled.call;
                error!(call = %call_id, model, %overrun, "a model call has cost more than was held for it; its budgets are shut");
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(RetryError::Stopped) => Err(Unavailable("this process ends".to_owned())),
            Err(RetryError::Permanent(error)) => Err(unavailable(error)),
        }
    }

    async fn try_to_settle(&self, settled: &SettledCall) -> Result<store::Settled, RetryError<StoreError>> {
        let settle = || self.store.settle(settled.clone());
        retry("settling a model call", &self.stop_waiting, StoreError::is_retryable, settle).await
    }
}

#[async_trait]
impl Ledger for AttemptLedger {
    async fn until_durable(&self) {
        while self.is_durable.get().is_some_and(|is_durable| !is_durable()) {
            sleep(DURABLE_POLL).await;
        }
    }

    async fn reserve(&self, call: &Call) -> Result<Reserve, Unavailable> {
        self.reserve_row(self.row(call)).await
    }

    fn note_spent(&self, most: Usd) {
        if let Some(NoRoom::Spent(spent)) = self.no_room_now().as_mut() {
            spent.uncounted = Some(most);
        }
        if !self.tries_others {
            self.count_refusal();
        }
    }

    fn note_busy(&self) {
        *self.no_room_now() = Some(NoRoom::Busy);
    }

    async fn reserve_purchase(&self, purchase: &Purchase) -> Result<Reserve, Unavailable> {
        self.reserve_row(self.purchase_row(purchase)).await
    }

    fn counts_in(&self, limit: &str) -> bool {
        // scope:period:window:name
        let mut parts = limit.splitn(4, ':');
        let (scope, name) = (parts.next().and_then(SpendScope::of), parts.nth(2).unwrap_or_default());
        match scope {
            Some(SpendScope::Fleet) => true,
            Some(SpendScope::Agent) => name == self.agent_id.as_str(),
            Some(SpendScope::Job) => name == self.claim.job_id().to_string(),
            _ => false,
        }
    }

    async fn settle(&self, call: &Call, settlement: Settlement) -> Result<(), Unavailable> {
        let Settlement { outcome, provider_request_id, answer, is_shareable, learnt } = settlement;
        self.keys.learn(&self.store, call, &learnt).await;
        let kept = answer.clone();
        let answer = answer.map(|Answer { content_type, body }| StoredAnswer {
            content_type,
            body: body.into(),
            after_checkpoints: self.journal.written(),
        });
        let row = self.row(call);
        let used = row.rate_use.as_ref().map(|takes| self.keys.used(call, takes, &outcome));
        let (counted, costs) = (outcome.clone(), outcome != Outcome::Free);
        let (outcome, used) = (outcome_row(outcome), used.unwrap_or_default());
        let provider_request_id = provider_request_id.as_deref().map(said);
        let settled = SettledCall { call: row, outcome, provider_request_id, answer, used };
        self.settle_row(settled).await?;
        metrics::settled(&self.agent_id, &call.model, call.bound.cost, &counted);
        if let Some(answer) = kept {
            self.keep(call, &answer, &counted, is_shareable);
        }
        if costs {
            self.note_repaid(&call.request).await;
        }
        Ok(())
    }

    async fn settle_purchase(&self, purchase: &Purchase, outcome: Outcome) -> Result<(), Unavailable> {
        let (call, counted) = (self.purchase_row(purchase), outcome.clone());
        let settled = SettledCall {
            call,
            outcome: outcome_row(outcome),
            provider_request_id: None,
            answer: None,
            used: Vec::new(),
        };
        self.settle_row(settled).await?;
        // Programs choose the names, so they are no label.
        metrics::settled(&self.agent_id, OTHER, purchase.most, &counted);
        Ok(())
    }

    async fn look_up(&self, call: &Call) -> Result<Option<Given>, Unavailable> {
        let found = self.store.look_up(self.row(call)).await.map_err(unavailable)?;
        if found.is_some() {
            *self.no_room_now() = None;
        }
        Ok(found.map(|answer| self.given(answer)))
    }
}

fn unavailable(error: StoreError) -> Unavailable {
    Unavailable(error.to_string())
}

/// Where the agent and the job both name a limit, the ledger takes the lowest.
fn limits([daily, monthly]: [Option<Usd>; 2], agent: &AgentCalls, of_job: Option<Usd>) -> Vec<Limit> {
    let named = [
        (SpendScope::Fleet, Period::Day, daily),
        (SpendScope::Fleet, Period::Month, monthly),
        (SpendScope::Agent, Period::Day, agent.budget_daily),
        (SpendScope::Agent, Period::Month, agent.budget_monthly),
        (SpendScope::Job, Period::Life, agent.max_cost_usd),
    ];
    let limit = |(scope, period, limit): (_, _, Option<_>)| Some(Limit { scope, period, limit: limit? });
    let of_job = of_job.map(|limit| Limit { scope: SpendScope::Job, period: Period::Life, limit });
    named.into_iter().filter_map(limit).chain(of_job).collect()
}

fn outcome_row(outcome: Outcome) -> CallOutcome {
    match outcome {
        Outcome::Settled(settled) => {
            let tokens = settled.tokens;
            CallOutcome::Settled {
                cost: settled.cost,
                tokens: CallTokens {
                    input: tokens.input,
                    cache_read: tokens.cache_read,
                    cache_write: tokens.cache_write.saturating_add(tokens.cache_write_long),
                    output: tokens.output,
                },
                answered_by: said(&settled.model),
            }
        }
        Outcome::Free => CallOutcome::Free,
        Outcome::Unknown(reason) => CallOutcome::Unknown { reason: said(&reason.to_string()) },
    }
}

/// Returns what a provider says as Postgres can hold it and people can read it.
fn said(text: &str) -> String {
    text.chars().take(MOST_SAID).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Returns a settlement with nothing in it that came from outside.
fn in_full(settled: &SettledCall) -> SettledCall {
    SettledCall {
        call: settled.call.clone(),
        outcome: CallOutcome::Unknown { reason: NOT_TAKEN.to_owned() },
        provider_request_id: None,
        answer: None,
        used: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use model::{Settled, Tokens, Unpriced};

    use super::*;

    #[test]
    fn what_a_provider_says_is_recorded_clean_and_short() {
        let name = format!("m\0\u{1b}[2J\u{7f}é{}", "x".repeat(1_000_000));
        let settled = Settled { cost: Usd::ZERO, tokens: Tokens::default(), model: name.clone() };
        let texts = match (
            outcome_row(Outcome::Settled(settled)),
            outcome_row(Outcome::Unknown(NoUsage::Unpriced(Unpriced::Field(name.clone())))),
        ) {
            (CallOutcome::Settled { answered_by, .. }, CallOutcome::Unknown { reason }) => {
                [answered_by, reason, said(&name)]
            }
            other => panic!("{other:?}"),
        };
        for text in texts {
            assert!(!text.contains(char::is_control) && text.contains('é'), "{text}");
            assert_eq!(text.chars().count(), MOST_SAID);
        }
        assert_eq!(said("claude-opus-5-5"), "claude-opus-5-5");
    }
}
