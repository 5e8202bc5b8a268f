//! Which job a line of the log is about.

use job::JobSpec;
use tracing::Span;

/// Returns the span of a job. What is logged within it carries `job_id`, `session_id`, `trace_id`, for a
/// claimed job `attempt`, and for another tenant's `tenant`. The span has no parent, because a line is about one job.
pub fn job_span(spec: &JobSpec, attempt: Option<u32>) -> Span {
    // At the highest level, so that the span exists whatever LOG_LEVEL lets pass.
    tracing::error_span!(
        target: "harness",
        parent: None,
        "job",
        job_id = %spec.job_id,
        session_id = %spec.session_id,
        tenant = spec.tenant.unless_default(),
        trace_id = %spec.trace_id(),
        attempt
    )
}
