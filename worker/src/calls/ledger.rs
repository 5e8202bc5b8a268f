//! One attempt's side of the accounts: what its gateway asks becomes rows of the ledger.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use harness::{IsDurable, Offers, Taken, Usage};
use job::{Name, Usd};
use model::{
    Answer, Call, Checkpoints, Given, Ledger, NoUsage, Outcome, Purchase, Reserve, Settled, Settlement,
    TakenAs, Unavailable, WithoutRoom,
};
use service::{RetryError, retry};
use store::{
    CacheEntry, CacheLookup, Claim, GivenAnswer, Limit, Lookup, NewCall, Period, Reserved, SettledCall,
    SpendScope, Store, StoreError, StoredAnswer,
};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::agent::{AgentCalls, OnExhausted};
use super::look::Look;
use super::metrics;
use super::rates::{ProviderKeys, limit_name};
use super::settings::CacheBounds;
use super::settlement::{in_full, outcome_row, said};
use super::spent::{Missed, NoRoom, Spent};
use crate::attempt::Attempt;
use crate::journal::{Journal, NotWritten};
use crate::metrics::METRICS;

/// When the gateway asks again for a call that does not fit beside what others hold.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// The provider of other things that cost, in the ledger.
const OTHER: &str = "other";
/// Answers that are being kept for other jobs at the same time.
static KEEPING: Semaphore = Semaphore::const_new(16);
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
    /// The model loop makes the calls, one after the other.
    by_loop: bool,
    /// How old an answer of the cache may be that it is given, if any, and what the cache may hold.
    cache: Option<(Duration, CacheBounds)>,
    journal: Arc<Journal>,
    is_durable: OnceLock<IsDurable>,
    missed: Mutex<Missed>,
    offers: Offers,
    look: Arc<Look>,
    /// Ends the waits for Postgres with the process.
    stop_waiting: CancellationToken,
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
            tries_others: agent.loop_degrades(),
            by_loop: agent.is_made_by_loop(),
            cache: worker
                .settings
                .calls
                .cache()
                .and_then(|bounds| Some((agent.cache_age(bounds.age)?, bounds))),
            journal,
            is_durable: OnceLock::new(),
            missed: Mutex::default(),
            offers: Offers::default(),
            look: worker.look.clone(),
            stop_waiting: worker.stop_waiting.clone(),
        }
    }

    pub fn follow(&self, is_durable: IsDurable) {
        // An attempt has one program.
        let _ = self.is_durable.set(is_durable);
    }

    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// Returns why there was no room for the last call that had none, if none has had it since which could have cost as much.
    pub fn no_room(&self) -> Option<NoRoom> {
        self.missed().last().cloned()
    }

    pub fn waits(&self) -> bool {
        self.on_exhausted == OnExhausted::Wait
    }

    /// Counts that a limit has refused a call, unless it is counted.
    pub fn count_refusal(&self) {
        let uncounted = self.missed().take_uncounted();
        for Spent { account, shut, need, .. } in uncounted {
            metrics::refused(&account, if shut { "shut" } else { "spent" });
            self.look.note_spent(&account, need);
        }
    }

    fn missed(&self) -> MutexGuard<'_, Missed> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that there was room for a call, or its answer.
    fn note_room(&self, request: Option<[u8; 32]>, most: Usd) {
        // The loop goes on with what it is answered, whatever was refused before.
        let most = if self.by_loop { Usd::MAX } else { most };
        self.missed().had_room(request, most);
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
        // A purchase has no lookup, and no request.
        let request = row.lookup.is_some().then_some(row.request_hash);
        let reserved = self.store.reserve(row).await.map_err(unavailable)?;
        let (spent, room) = match reserved {
            Reserved::Answered(answer) => {
                self.note_room(request, need);
                return Ok(Reserve::Answered(self.given(answer)));
            }
            Reserved::Granted => {
                self.note_room(request, need);
                if asks_cache {
                    metrics::cache(if self.store.asks_cache() { "miss" } else { "skipped" });
                }
                return Ok(Reserve::Granted);
            }
            Reserved::Later { limit, retry_after } => {
                METRICS.rate_limited.with_label_values(&[provider, limit_name(&limit)]).inc();
                return Ok(Reserve::Later { retry_after });
            }
            Reserved::Busy { account } => {
                metrics::refused(&account, "busy");
                return Ok(Reserve::Busy { behind: account, retry_after: BUSY_RETRY });
            }
            Reserved::Lost => return Err(Unavailable("this run has lost its job".to_owned())),
            Reserved::Spent { account, limit, room, shut } => {
                (Spent { account, limit, need, least: Usd::ZERO, shut, is_counted: true }, room)
            }
        };
        let limit = spent.to_string();
        if self.tries_others {
            self.note_room(None, need);
        }
        self.missed().add(request, NoRoom::Spent(spent));
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
            Ok(recorded) => {
                note_overrun(&settled.call, recorded);
                Ok(())
            }
            Err(RetryError::Stopped) => Err(Unavailable("this process ends".to_owned())),
            Err(RetryError::Permanent(error)) => Err(unavailable(error)),
        }
    }

    /// Settles a call, and writes in the same transaction what its run adds to its session. Returns whether that is written. If
    /// not, the answer is to be stored: for a newer run, or because what the run adds was refused.
    async fn settle_taken(&self, settled: &SettledCall, taken: Taken) -> Result<bool, Unavailable> {
        let Taken { delta, durable } = taken;
        let write = async |row| {
            let (recorded, written) = self.store.settle_and_checkpoint(settled.clone(), row).await?;
            note_overrun(&settled.call, recorded);
            Ok(written)
        };
        match self.journal.checkpoint_with(&delta, &self.stop_waiting, write).await {
            Ok(()) => {
                // A run that was dropped meanwhile asks again itself.
                let _ = durable.send(Ok(()));
                Ok(true)
            }
            Err(NotWritten::ProcessEnds) => Err(Unavailable("this process ends".to_owned())),
            Err(NotWritten::Refused { why, may_be_written: false }) => {
                warn!(call = %settled.call.call_id, cause = why, "an answer is stored, because its session does not take it");
                Ok(false)
            }
            // A run that went on as if nothing were written might write it twice.
            Err(not_written) => {
                let _ = durable.send(Err(not_written.into()));
                Ok(false)
            }
        }
    }

    async fn try_to_settle(&self, settled: &SettledCall) -> Result<store::Settled, RetryError<StoreError>> {
        let settle = || self.store.settle(settled.clone());
        retry("settling a model call", &self.stop_waiting, may_settle_later, settle).await
    }
}

/// Says that a call has cost more than was held for it, if it was recorded so now.
fn note_overrun(call: &NewCall, recorded: store::Settled) {
    if let store::Settled::Now { overrun } = recorded
        && overrun > Usd::ZERO
    {
        let NewCall { call_id, model, .. } = call;
        error!(call = %call_id, model, %overrun, "a model call has cost more than was held for it; its budgets are shut");
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

    fn checkpoints(&self) -> Checkpoints {
        Checkpoints { written: self.journal.written(), covering: self.journal.covering() }
    }

    fn note_spent(&self, refused: &WithoutRoom) {
        self.missed().is_final(refused);
        if !self.tries_others {
            self.count_refusal();
        }
    }

    fn note_busy(&self, refused: &WithoutRoom) {
        self.missed().add(refused.request, NoRoom::Busy);
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
        let Settlement {
            outcome,
            provider_request_id,
            answer,
            after_checkpoints,
            is_shareable,
            learnt,
            taken,
        } = settlement;
        let kept = answer.clone();
        let taken = match (&outcome, &answer, taken) {
            (
                Outcome::Settled(Settled { cost, tokens, .. }),
                Some(answer),
                Some(TakenAs { number, passed }),
            ) => {
                let (input_tokens, output_tokens) = (tokens.all_input(), tokens.output);
                let usage = Usage { cost: *cost, input_tokens, output_tokens };
                self.offers.offer(number, &answer.body, passed, usage).await
            }
            _ => None,
        };
        self.keys.learn(&self.store, call, &learnt).await;
        let answer = answer.map(|Answer { content_type, body }| StoredAnswer {
            content_type,
            body: body.into(),
            after_checkpoints,
        });
        let row = self.row(call);
        let used = row.rate_use.as_ref().map(|takes| self.keys.used(call, takes, &outcome));
        let counted = outcome.clone();
        let (outcome, used) = (outcome_row(outcome), used.unwrap_or_default());
        let provider_request_id = provider_request_id.as_deref().map(said);
        let settled = SettledCall { call: row, outcome, provider_request_id, answer: None, used };
        let is_written = match taken {
            Some(taken) => self.settle_taken(&settled, taken).await?,
            None => false,
        };
        if !is_written {
            self.settle_row(SettledCall { answer, ..settled }).await?;
        }
        metrics::settled(&self.agent_id, &call.model, call.bound.cost, &counted);
        if let Some(answer) = kept {
            self.keep(call, &answer, &counted, is_shareable);
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
            self.note_room(Some(call.request.hash), call.bound.cost);
        }
        Ok(found.map(|answer| self.given(answer)))
    }
}

/// A right or a table that is missing now may be there later, and until then nobody else knows what the call has cost.
fn may_settle_later(error: &StoreError) -> bool {
    error.is_retryable() || matches!(error, StoreError::Broken { .. })
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
