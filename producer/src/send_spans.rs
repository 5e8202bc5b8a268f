//! The spans of jobs that are being sent: one for each job, and the parent of its attempts' spans.

use std::collections::HashMap;
use std::time::SystemTime;

use job::{JobId, JobSpec, Limits, TraceParent};
use queue::jobs_queue;
use service::{JobIds, Origin, Role, Span};

/// Spans of jobs on their way to the broker; empty when tracing is off.
pub struct SendSpans(HashMap<JobId, Span>);

impl SendSpans {
    /// Begins a span for each job and makes it the parent of the job's attempts. A job that this would make too large
    /// gets no span.
    pub fn begin<'a>(jobs: impl IntoIterator<Item = &'a mut JobSpec>, limits: &Limits) -> SendSpans {
        let now = SystemTime::now();
        SendSpans(jobs.into_iter().filter_map(|spec| Some((spec.job_id, send(spec, now, limits)?))).collect())
    }

    /// Marks the outcome of each span: only `new` jobs go on. The others were refused, or were accepted before and keep
    /// their first trace.
    pub fn accepted(&mut self, new: &[JobId], refused: &[(JobId, String)]) {
        if self.0.is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.0);
        self.0 = new.iter().filter_map(|job_id| Some((*job_id, before.remove(job_id)?))).collect();
        for mut span in refused.iter().filter_map(|(job_id, _)| before.remove(job_id)) {
            span.fail("refused");
        }
        for mut span in before.into_values() {
            span.describe(|span| {
                span.set("harness.outcome", "accepted_before");
            });
        }
    }
}

fn send(spec: &mut JobSpec, now: SystemTime, limits: &Limits) -> Option<Span> {
    let caller = spec.traceparent.map(|place| place.parts().into());
    let origin = Origin::below(caller, spec.trace_id().get());
    let mut span = Span::begin(Role::Producer, origin, now, || jobs_queue(&spec.pool));
    let place = span.place()?;
    span.describe(|span| {
        span.job(JobIds {
            job_id: spec.job_id.to_string(),
            tenant: spec.tenant.unless_default().map(str::to_owned),
            session_id: spec.session_id.to_string(),
            agent_id: spec.agent_id.to_string(),
        });
    });
    let given = spec.traceparent;
    spec.traceparent = TraceParent::of_parts(place.into());
    // Everything else in an envelope is short.
    let may_be_too_large = spec.input.as_str().len() + 8_192 > limits.max_bytes;
    if may_be_too_large && job::encode(spec).len() > limits.max_bytes {
        spec.traceparent = given;
    }
    Some(span)
}
