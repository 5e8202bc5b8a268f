//! What a worker counts. Labels come from fixed sets: outcomes, failure codes, answers, directions.

use std::sync::LazyLock;

use job::FailureCode;
use prometheus::{
    Counter, Histogram, IntCounter, IntCounterVec, IntGauge, exponential_buckets, register_counter,
    register_histogram, register_int_counter, register_int_counter_vec, register_int_gauge,
};

use crate::calls::LIMITS;

/// The metrics of this process.
pub struct Metrics {
    /// Attempts by how they ended: succeeded, failed, retried, cancelled, interrupted, asked, lost.
    pub requests: IntCounterVec,
    /// Failed attempts by failure code.
    pub errors: IntCounterVec,
    /// From claim to the recorded end.
    pub request_latency: Histogram,
    /// From one checkpoint to the next.
    pub step_latency: Histogram,
    /// From the making of the job's id to the start of its harness, for first attempts only.
    pub start_wait: Histogram,
    /// Spend.
    pub cost_total: Counter,
    /// Spend of one step.
    pub cost: Histogram,
    /// Tokens by direction: input, output.
    pub tokens: IntCounterVec,
    /// Iterations that are safe in the ledger.
    pub iterations: IntCounter,
    /// Jobs that this worker holds.
    pub running: IntGauge,
    /// Slots of this worker.
    pub slots: IntGauge,
    /// 1 while an autoscaler's drain mark keeps this worker from taking jobs.
    pub drain_marked: IntGauge,
    /// Claims by answer.
    pub claims: IntCounterVec,
    /// Messages put into harness.dead, by code.
    pub dead_letters: IntCounterVec,
    /// Times that this worker was declared dead although it lived.
    pub leases_lost: IntCounter,
    /// Runs that could not begin because the machine lacked something: workspace, resources.
    pub shortages: IntCounterVec,
    /// Model calls that have to wait for a rate limit, by provider and limit.
    pub rate_limited: IntCounterVec,
    /// Refusals of a provider that are about its key, by reason.
    pub key_refusals: IntCounterVec,
}

/// The metrics of this process, registered at first use.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let metrics = register().expect("every metric has a name of its own, so that registering cannot fail");
    metrics.show_zeros();
    metrics
});

impl Metrics {
    /// Shows every label from the start. A counter that first appears at 1 has no rate, so the first event would not be
    /// seen.
    fn show_zeros(&self) {
        for outcome in ["succeeded", "failed", "retried", "cancelled", "interrupted", "asked", "lost"] {
            self.requests.with_label_values(&[outcome]);
        }
        for code in FailureCode::ALL {
            self.errors.with_label_values(&[code.as_str()]);
        }
        for code in [
            "undecodable",
            "unknown_agent",
            "unstorable",
            "job_id_taken",
            "tenant_not_accepted",
            "input_refused",
        ] {
            self.dead_letters.with_label_values(&[code]);
        }
        for kind in ["workspace", "resources"] {
            self.shortages.with_label_values(&[kind]);
        }
        for direction in ["input", "output"] {
            self.tokens.with_label_values(&[direction]);
        }
        for provider in ["anthropic", "openai"] {
            for limit in LIMITS {
                self.rate_limited.with_label_values(&[provider, limit]);
            }
            for reason in ["rate_limit", "overloaded", "quota"] {
                self.key_refusals.with_label_values(&[provider, reason]);
            }
        }
    }
}

fn register() -> prometheus::Result<Metrics> {
    Ok(Metrics {
        requests: register_int_counter_vec!(
            "harness_requests_total",
            "Attempts at jobs, by how they ended",
            &["outcome"]
        )?,
        errors: register_int_counter_vec!(
            "harness_errors_total",
            "Failed attempts, by failure code",
            &["code"]
        )?,
        request_latency: register_histogram!(
            "harness_request_latency_seconds",
            "From the claim of a job to its recorded end",
            exponential_buckets(0.001, 2.0, 22)?
        )?,
        step_latency: register_histogram!(
            "harness_latency_step_ms",
            "From one checkpoint of a job to the next",
            exponential_buckets(1.0, 2.0, 22)?
        )?,
        start_wait: register_histogram!(
            "harness_start_wait_seconds",
            "From the making of a job's id to its first start",
            exponential_buckets(0.001, 1.25, 60)?
        )?,
        cost_total: register_counter!("harness_cost_total_usd", "Spend in dollars")?,
        cost: register_histogram!(
            "harness_cost_usd",
            "Spend from one checkpoint of a job to the next, in dollars",
            exponential_buckets(0.0001, 4.0, 12)?
        )?,
        tokens: register_int_counter_vec!("harness_tokens_total", "Tokens, by direction", &["direction"])?,
        iterations: register_int_counter!("harness_iterations_total", "Iterations that were checkpointed")?,
        running: register_int_gauge!("harness_jobs_running", "Jobs that run in this worker")?,
        slots: register_int_gauge!("harness_worker_slots", "Jobs that this worker can run at a time")?,
        drain_marked: register_int_gauge!(
            "harness_worker_drain_marked",
            "1 while this worker is marked to be scaled away and takes no jobs"
        )?,
        claims: register_int_counter_vec!("harness_claims_total", "Claims of jobs, by answer", &["answer"])?,
        dead_letters: register_int_counter_vec!(
            "harness_dead_letters_total",
            "Messages put into harness.dead, by code",
            &["code"]
        )?,
        leases_lost: register_int_counter!(
            "harness_leases_lost_total",
            "Times this worker was declared dead although it lived"
        )?,
        shortages: register_int_counter_vec!(
            "harness_shortages_total",
            "Runs that could not begin because the machine lacked something, by what: workspace, resources",
            &["kind"]
        )?,
        rate_limited: register_int_counter_vec!(
            "harness_model_rate_limited_total",
            "Model calls that were asked to wait for a rate limit: requests, input_tokens, output_tokens, tokens; or for a key that is shut",
            &["provider", "limit"]
        )?,
        key_refusals: register_int_counter_vec!(
            "harness_model_key_refusals_total",
            "Answers with which a provider refused a call because of its key, by reason: rate_limit, overloaded, quota",
            &["provider", "reason"]
        )?,
    })
}
