//! What a worker counts of model calls. Agents and models come from the agents' file, so there are few of them.

use std::sync::LazyLock;

use job::{Name, Usd};
use model::Outcome;
use prometheus::{
    Counter, CounterVec, IntCounterVec, register_counter, register_counter_vec, register_int_counter_vec,
};
use store::SpendScope;

use super::AgentCalls;

struct Metrics {
    calls: IntCounterVec,
    refused: IntCounterVec,
    cost: CounterVec,
    tokens: IntCounterVec,
    replays: IntCounterVec,
    cache: IntCounterVec,
    unknown: Counter,
    overrun: Counter,
    repaid: Counter,
}

static METRICS: LazyLock<Metrics> =
    LazyLock::new(|| register().expect("the metrics' names are unique, so registering cannot fail"));

const OUTCOMES: [&str; 3] = ["settled", "free", "unknown"];
const CLASSES: [&str; 4] = ["input", "cache_read", "cache_write", "output"];
const CACHE_OUTCOMES: [&str; 6] = ["hit", "miss", "skipped", "kept", "not_kept", "failed"];
const REASONS: [&str; 3] = ["busy", "spent", "shut"];

fn register() -> prometheus::Result<Metrics> {
    Ok(Metrics {
        calls: register_int_counter_vec!(
            "harness_model_calls_total",
            "Model calls by what became of them: settled; free (not sent, or refused before any work); unknown (what it \
             costs is not known)",
            &["model", "outcome"]
        )?,
        refused: register_int_counter_vec!(
            "harness_model_calls_refused_total",
            "Model calls that a limit left no room for, by the limit's scope and why: busy (what others hold is in the \
             way), spent, shut (after an overrun)",
            &["scope", "reason"]
        )?,
        cost: register_counter_vec!(
            "harness_model_cost_usd_total",
            "What model calls cost in dollars; a call whose cost is not known counts with its reservation",
            &["agent", "model"]
        )?,
        tokens: register_int_counter_vec!(
            "harness_model_tokens_total",
            "Tokens of model calls, by the rate at which they are billed: input, cache_read, cache_write, output",
            &["agent", "model", "class"]
        )?,
        replays: register_int_counter_vec!(
            "harness_model_replays_total",
            "Requests that were given the stored answer of an earlier run of their job, and cost nothing",
            &["agent"]
        )?,
        cache: register_int_counter_vec!(
            "harness_response_cache_total",
            "What the cache of answers did for calls of agents with `cache`: hit (given, nothing paid), miss, skipped (not \
             asked, because it did not answer a moment ago); and with their answers: kept, not_kept (a refusal, too large, or \
             of unknown cost), failed (it could not be kept)",
            &["outcome"]
        )?,
        unknown: register_counter!(
            "harness_cost_unknown_usd_total",
            "Dollars that were counted for calls whose cost this worker could not learn"
        )?,
        overrun: register_counter!(
            "harness_cost_overrun_usd_total",
            "Dollars that calls have cost beyond what was held for them"
        )?,
        repaid: register_counter!(
            "harness_cost_repaid_usd_total",
            "Dollars that calls of jobs which have ended here have cost, and that are in no checkpoint of their job"
        )?,
    })
}

/// Shows every label from the start, because a counter that appears at 1 has no rate.
pub fn show_zeros<'a>(agents: impl Iterator<Item = (&'a Name, &'a AgentCalls)>) {
    for scope in SpendScope::ALL {
        for reason in REASONS {
            METRICS.refused.with_label_values(&[scope.as_str(), reason]);
        }
    }
    for outcome in CACHE_OUTCOMES {
        METRICS.cache.with_label_values(&[outcome]);
    }
    for (agent, calls) in agents {
        METRICS.replays.with_label_values(&[agent.as_str()]);
        for model in &calls.models {
            METRICS.cost.with_label_values(&[agent.as_str(), model]);
            for outcome in OUTCOMES {
                METRICS.calls.with_label_values(&[model.as_str(), outcome]);
            }
            for class in CLASSES {
                METRICS.tokens.with_label_values(&[agent.as_str(), model, class]);
            }
        }
    }
}

/// Counts a reservation that a budget of this account has refused. A rate limit is no budget.
pub fn refused(account: &str, reason: &str) {
    if let Some(scope) = account.split(':').next().and_then(SpendScope::of) {
        METRICS.refused.with_label_values(&[scope.as_str(), reason]).inc();
    }
}

/// Counts a call that has ended.
pub fn settled(agent: &Name, model: &str, reserved: Usd, outcome: &Outcome) {
    let agent = agent.as_str();
    let label = match outcome {
        Outcome::Settled(_) => "settled",
        Outcome::Free => "free",
        Outcome::Unknown(_) => "unknown",
    };
    METRICS.calls.with_label_values(&[model, label]).inc();
    let cost = METRICS.cost.with_label_values(&[agent, model]);
    match outcome {
        Outcome::Settled(settled) => {
            cost.inc_by(settled.cost.dollars());
            METRICS.overrun.inc_by((settled.cost.dollars() - reserved.dollars()).max(0.0));
            let tokens = settled.tokens;
            let written = tokens.cache_write.saturating_add(tokens.cache_write_long);
            for (class, count) in
                CLASSES.into_iter().zip([tokens.input, tokens.cache_read, written, tokens.output])
            {
                METRICS.tokens.with_label_values(&[agent, model, class]).inc_by(count);
            }
        }
        Outcome::Unknown(_) => {
            cost.inc_by(reserved.dollars());
            METRICS.unknown.inc_by(reserved.dollars());
        }
        Outcome::Free => {}
    }
}

/// Counts a stored answer that was given.
pub fn replayed(agent: &Name) {
    METRICS.replays.with_label_values(&[agent.as_str()]).inc();
}

/// Counts what the cache of answers did.
pub fn cache(outcome: &str) {
    METRICS.cache.with_label_values(&[outcome]).inc();
}

/// Counts what is in no checkpoint.
pub fn repaid(cost: Usd) {
    METRICS.repaid.inc_by(cost.dollars());
}
