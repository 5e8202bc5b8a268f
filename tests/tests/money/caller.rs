//! A run that calls models, without a process.

use job::{JobSpec, Json, Usd};
use serde_json::json;
use store::{
    CallOutcome, CallTokens, Claimed, Limit, NewCall, Period, Reserved, Settled, SettledCall, SpendScope,
    StoredAnswer,
};
use tests::{Runner, claimed, job};
use uuid::Uuid;

/// A job's run.
#[derive(Clone)]
pub struct Caller {
    pub runner: Runner,
    pub spec: JobSpec,
    pub run: Claimed,
    pub limits: Vec<Limit>,
}

pub fn usd(micros: u64) -> Usd {
    Usd::from_micros(micros)
}

pub fn limit(scope: SpendScope, period: Period, micros: u64) -> Limit {
    Limit { scope, period, limit: usd(micros) }
}

/// The fleet's limit for a day.
pub fn daily(micros: u64) -> Vec<Limit> {
    vec![limit(SpendScope::Fleet, Period::Day, micros)]
}

/// What a call cost.
pub fn cost(micros: u64) -> CallOutcome {
    let tokens = CallTokens { input: 3, cache_read: 2, cache_write: 1, output: 4 };
    CallOutcome::Settled { cost: usd(micros), tokens, answered_by: "m-1".to_owned() }
}

pub fn unknown() -> CallOutcome {
    CallOutcome::Unknown { reason: "the answer has no end".to_owned() }
}

impl Caller {
    /// Claims a new job of this session.
    pub async fn new(runner: &Runner, session: &str, limits: &[Limit]) -> Caller {
        Caller::of(runner, job(session, "coder", json!(1)), limits).await
    }

    pub async fn of(runner: &Runner, spec: JobSpec, limits: &[Limit]) -> Caller {
        let run = claimed(runner.claim(&spec).await.expect("an answer"));
        Caller { runner: runner.clone(), spec, run, limits: limits.to_vec() }
    }

    /// Claims the same job again, as another attempt at it.
    pub async fn again(&self, runner: &Runner) -> Caller {
        Caller::of(runner, self.spec.clone(), &self.limits).await
    }

    pub fn call(&self, reserved: u64) -> NewCall {
        NewCall {
            call_id: Uuid::now_v7(),
            claim: self.run.claim.clone(),
            agent_id: self.spec.agent_id.clone(),
            user_id: Some("ann".to_owned()),
            provider: "anthropic",
            model: "m".to_owned(),
            reserved: usd(reserved),
            request_hash: [7; 32],
            request_nth: 0,
            limits: self.limits.clone(),
            lookup: None,
            rate_use: None,
        }
    }

    pub async fn reserve(&self, call: &NewCall) -> Reserved {
        self.runner.store.reserve(call.clone()).await.expect("an answer")
    }

    /// Reserves a new call, which must be granted.
    pub async fn granted(&self, reserved: u64) -> NewCall {
        let call = self.call(reserved);
        assert_eq!(self.reserve(&call).await, Reserved::Granted);
        call
    }

    pub async fn settle(&self, call: &NewCall, outcome: CallOutcome) -> Settled {
        self.settle_with(call, outcome, None).await
    }

    pub async fn settle_with(
        &self,
        call: &NewCall,
        outcome: CallOutcome,
        answer: Option<StoredAnswer>,
    ) -> Settled {
        let settled = SettledCall {
            call: call.clone(),
            outcome,
            provider_request_id: Some("req-1".to_owned()),
            answer,
            used: Vec::new(),
        };
        self.runner.store.settle(settled).await.expect("an answer")
    }

    /// Hands the job back, due at once.
    pub async fn hand_back(&self) {
        let end = store::End::HandBack { delay: std::time::Duration::ZERO };
        self.runner.store.conclude(self.runner.conclusion(&self.run, end)).await.expect("an answer");
    }

    pub async fn succeed(&self) {
        let end = store::End::Succeeded(Json::null());
        self.runner.store.conclude(self.runner.conclusion(&self.run, end)).await.expect("an answer");
    }
}

/// Returns what an account has spent and held.
pub async fn account(store: &store::Store, starts_with: &str) -> (i64, i64) {
    let accounts = store.accounts(true).await.expect("an answer");
    let found = accounts.iter().find(|it| it.account.starts_with(starts_with));
    found.map_or((0, 0), |it| (it.spent_microusd, it.held_microusd))
}
