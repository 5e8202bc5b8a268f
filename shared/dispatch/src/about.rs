//! Whose job a line of the log is about.

use job::JobSpec;
use tracing::Span;

/// What is logged within it carries `job_id`, `session_id`, `trace_id` and, of a claimed job, `attempt`. It lies in no other
/// span: a line is about one job.
pub fn job_span(spec: &JobSpec, attempt: Option<u32>) -> Span {
    // Of the highest level, so that it is there whatever LOG_LEVEL lets pass.
    tracing::error_span!(
        target: "harness",
        parent: None,
        "job",
        job_id = %spec.job_id,
        session_id = %spec.session_id,
        trace_id = %spec.trace_id(),
        attempt
    )
}
