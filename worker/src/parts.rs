//! Parts of runs: what a model loop spends its time on, as spans and metrics.
//!
//! Names are those of OpenTelemetry's conventions for generative AI (semantic conventions 1.37), without content.

use std::sync::LazyLock;

use harness::{Part, Work};
use prometheus::{
    HistogramVec, IntCounter, IntCounterVec, exponential_buckets, register_histogram_vec,
    register_int_counter, register_int_counter_vec,
};
use service::{Place, Span};
use tools::{Ended, Toolset};

use crate::calls::AgentCalls;

struct Metrics {
    tool_calls: IntCounterVec,
    compactions: IntCounter,
    first_token: HistogramVec,
}

static METRICS: LazyLock<Metrics> =
    LazyLock::new(|| register().expect("the metrics' names are unique, so registering cannot fail"));

fn register() -> prometheus::Result<Metrics> {
    Ok(Metrics {
        tool_calls: register_int_counter_vec!(
            "harness_tool_calls_total",
            "Calls of tools by agents in a model loop, by how they ended",
            &["tool", "outcome"]
        )?,
        compactions: register_int_counter!(
            "harness_compactions_total",
            "Conversations that were made shorter, because they would have outgrown their agent's share of the window"
        )?,
        first_token: register_histogram_vec!(
            "harness_first_token_seconds",
            "From a model call of a loop to the first words of its answer, with the wait for room",
            &["model"],
            exponential_buckets(0.05, 2.0, 14)?
        )?,
    })
}

/// Shows what model loops count from the start, because a counter that appears at 1 has no rate. What the servers of their
/// tools offer is not known yet.
pub fn show_zeros<'a>(loops: impl Iterator<Item = (&'a AgentCalls, &'a Toolset)>) {
    for (calls, toolset) in loops {
        for model in &calls.models {
            METRICS.first_token.with_label_values(&[model]);
        }
        for tool in toolset.own_tools() {
            for outcome in [Ended::Done, Ended::Failed] {
                METRICS.tool_calls.with_label_values(&[tool.name.as_str(), outcome.as_str()]);
            }
        }
    }
}

/// Counts a part that has ended, and makes its span below the run's.
pub fn note(run: Option<Place>, part: &Part) {
    let name = match &part.work {
        Work::Chat { model, first_token, is_replayed, .. } => {
            if let Some(time) = first_token.filter(|_| !is_replayed) {
                METRICS.first_token.with_label_values(&[model.as_str()]).observe(time.as_secs_f64());
            }
            format!("chat {model}")
        }
        Work::Tool { name, outcome, .. } => {
            // What a model makes up is no label.
            let name = name.as_deref().unwrap_or("unknown");
            METRICS.tool_calls.with_label_values(&[name, *outcome]).inc();
            format!("execute_tool {name}")
        }
        Work::Compaction => {
            METRICS.compactions.inc();
            "compact".to_owned()
        }
    };
    let mut span = Span::part_of(run, part.began, || name);
    span.describe(|span| match &part.work {
        Work::Chat { provider, model, tokens: (input, output), is_replayed, .. } => {
            span.set("gen_ai.operation.name", "chat")
                .set("gen_ai.provider.name", *provider)
                .set("gen_ai.request.model", model.clone())
                .set("gen_ai.usage.input_tokens", *input as i64)
                .set("gen_ai.usage.output_tokens", *output as i64)
                .set("harness.replayed", *is_replayed);
        }
        Work::Tool { name, call_id, outcome } => {
            span.set("gen_ai.operation.name", "execute_tool")
                .set("gen_ai.tool.name", name.clone().unwrap_or_else(|| "unknown".to_owned()))
                .set("gen_ai.tool.call.id", call_id.clone())
                .set("harness.tool.outcome", *outcome);
        }
        Work::Compaction => {}
    });
    if let Some(code) = part.failed {
        span.fail(code);
    }
    span.end_at(part.began + part.took);
}
