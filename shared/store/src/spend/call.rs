//! A call of a model, as the one who makes it describes it.

use std::time::Duration;

use job::{Name, Usd};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::account::{Limit, Period, Scope, micros};
use super::rates::RateUse;
use crate::StoreError;
use crate::jobs::Claim;

/// The most that one call may cost or hold, a million dollars. None costs nearly as much.
pub const MOST_OF_A_CALL: Usd = Usd::from_micros(1_000_000_000_000);

/// Refuses an amount that no call can cost, where it would enter the ledger.
pub(super) fn check_cost(amount: Usd) -> Result<(), StoreError> {
    if amount <= MOST_OF_A_CALL {
        return Ok(());
    }
    let message = format!("the cost of a call: got {amount}, expected at most {MOST_OF_A_CALL}");
    // numeric_value_out_of_range
    Err(StoreError::Refused { sqlstate: "22003".to_owned(), message })
}

/// One HTTP attempt at a model.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// Of version 7, and made by the caller, so that a reservation whose reply was lost can be settled.
    pub call_id: Uuid,
    /// The run that calls.
    pub claim: Claim,
    /// The job's agent.
    pub agent_id: Name,
    /// The job's user.
    pub user_id: Option<String>,
    /// Who bills it.
    pub provider: &'static str,
    /// The model that it names.
    pub model: String,
    /// The most that it can cost; at most [`MOST_OF_A_CALL`].
    pub reserved: Usd,
    /// Equal for equal requests.
    pub request_hash: [u8; 32],
    /// How many answers to it the run had before which no checkpoint covers.
    pub request_nth: u32,
    /// The limits that its worker, its agent and its job name.
    pub limits: Vec<Limit>,
    /// How its answer is looked up before anything is held; `None` if there can be none.
    pub lookup: Option<Lookup>,
    /// The provider's key, and what it takes of the key's rate limits.
    pub rate_use: Option<RateUse>,
}

/// Where an answer may be that the call need not be made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// How many checkpoints its run has written.
    pub after_checkpoints: u32,
    /// Among those of other jobs.
    pub cache: Option<CacheLookup>,
}

/// An entry of the cache of answers, in the tenant of its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLookup {
    /// Equal for requests that have equal answers.
    pub key: [u8; 32],
    /// An older answer counts for nothing.
    pub max_age: Duration,
}

/// Tokens by the rates at which they are billed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTokens {
    /// Input that no cache had.
    pub input: u64,
    /// Input from a cache.
    pub cache_read: u64,
    /// Input that was written into a cache.
    pub cache_write: u64,
    /// Output.
    pub output: u64,
}

impl NewCall {
    /// Returns the accounts in which it may count.
    pub(super) fn accounts(&self) -> Vec<(Scope, Period, String)> {
        let (tenant, _) = self.claim.session();
        let mut scopes = vec![
            (Scope::Fleet, String::new()),
            (Scope::Tenant, tenant.to_string()),
            (Scope::Agent, self.agent_id.to_string()),
        ];
        scopes.extend(self.user_id.as_ref().map(|user| (Scope::User, format!("{tenant}/{user}"))));
        let windows = scopes
            .into_iter()
            .flat_map(|(scope, name)| [(scope, Period::Day, name.clone()), (scope, Period::Month, name)]);
        let whole = [
            (Scope::Session, Period::Life, self.claim.session_key().to_owned()),
            (Scope::Job, Period::Life, self.claim.job_id().to_string()),
        ];
        windows.chain(whole).collect()
    }
}

/// Calls as the columns of a statement.
pub(super) struct Columns<'a> {
    pub calls: Vec<Uuid>,
    pub jobs: Vec<Uuid>,
    epochs: Vec<i64>,
    workers: Vec<Uuid>,
    sessions: Vec<&'a str>,
    agents: Vec<&'a str>,
    users: Vec<Option<&'a str>>,
    providers: Vec<&'a str>,
    models: Vec<&'a str>,
    reserved: Vec<i64>,
    hashes: Vec<&'a [u8]>,
    nths: Vec<i32>,
}

impl<'a> Columns<'a> {
    pub fn of(calls: impl Iterator<Item = &'a NewCall> + Clone) -> Columns<'a> {
        Columns {
            calls: calls.clone().map(|call| call.call_id).collect(),
            jobs: calls.clone().map(|call| call.claim.job_id().into()).collect(),
            epochs: calls.clone().map(|call| call.claim.epoch()).collect(),
            workers: calls.clone().map(|call| call.claim.worker().into()).collect(),
            sessions: calls.clone().map(|call| call.claim.session_key()).collect(),
            agents: calls.clone().map(|call| call.agent_id.as_str()).collect(),
            users: calls.clone().map(|call| call.user_id.as_deref()).collect(),
            providers: calls.clone().map(|call| call.provider).collect(),
            models: calls.clone().map(|call| call.model.as_str()).collect(),
            reserved: calls.clone().map(|call| micros(call.reserved)).collect(),
            hashes: calls.clone().map(|call| call.request_hash.as_slice()).collect(),
            nths: calls.map(|call| i32::try_from(call.request_nth).unwrap_or(i32::MAX)).collect(),
        }
    }

    pub fn params(&self) -> [&(dyn ToSql + Sync); 12] {
        [
            &self.calls,
            &self.jobs,
            &self.epochs,
            &self.workers,
            &self.sessions,
            &self.agents,
            &self.users,
            &self.providers,
            &self.models,
            &self.reserved,
            &self.hashes,
            &self.nths,
        ]
    }
}

/// The columns of a new call, in the order of [`call_values`].
macro_rules! call_columns {
    () => {
        "call_id, job_id, epoch, worker_id, session_id, agent_id, user_id, provider, model, reserved_microusd,
         request_hash, request_nth, tenant, day, state"
    };
}
pub(super) use call_columns;

/// The values of [`call_columns`], of a row `a` of the arrays of [`Columns`].
macro_rules! call_values {
    () => {
        concat!(
            "a.call_id, a.job_id, a.epoch, a.worker_id, a.session_id, a.agent_id, a.user_id, a.provider, a.model,
             a.reserved, a.request_hash, a.request_nth, ",
            $crate::jobs::tenant_of!("a.session_id"),
            ", ",
            $crate::spend::account::today!(),
            ", 'held'"
        )
    };
}
pub(super) use call_values;
