//! One attempt at a job: which worker runs what, and what a trace shows of it.
//!
//! Its span lasts from the delivery to the recorded end. Below it are the claim, the harness's run, each iteration once
//! its checkpoint is durable, and the conclusion. All attempts at a job are in one trace, wherever they run.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use harness::{Delta, Stopper};
use job::{Failure, FailureCode, JobSpec, Json, Outcome, TraceParent};
use queue::jobs_queue;
use service::{JobIds, Origin, Place, Role, Span};
use store::{Claimed, SessionState};
use tokio_util::task::TaskTracker;

use crate::fold::Whole;
use crate::metrics::METRICS;
use crate::running::Reservation;
use crate::worker::Worker;

/// When a job arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When its message was delivered, or when the end of the job before it handed it over.
    pub at: SystemTime,
    /// When its claim began; `None` for a job that was handed over.
    pub claimed_from: Option<SystemTime>,
}

/// What a run takes and frees: it may be large, and nothing needs it as long as the attempt lasts.
pub struct Given {
    /// What the caller gave. The attempt's envelope has `null` in its place.
    pub input: Json,
    /// The session as it was claimed. The claimed job has an empty one in its place.
    pub session: Arc<SessionState>,
}

/// A claimed job that a worker runs.
pub struct Attempt<'a> {
    pub worker: &'a Worker,
    pub spec: &'a JobSpec,
    pub claimed: &'a Claimed,
    pub reservation: &'a Reservation,
    /// What stops its run.
    pub stop: Stopper,
    pub begun: Instant,
    /// The model calls of its run that are under way, once it may make any.
    pub calls: OnceLock<TaskTracker>,
    span: Span,
}

/// How an attempt has ended, as far as this worker knows.
pub enum Ended {
    /// The outcome of its run, with the session's new state if that is to be written whole.
    Ran(Outcome, Option<Whole>),
    /// It was not run, and never will be. Holds the session's state as well if that is to be written whole.
    Refused(Failure, Option<Whole>),
    /// It was not run, and comes again after this time.
    Postponed(Duration),
    /// The lease is lost, and nothing may be recorded.
    Lost,
}

impl<'a> Attempt<'a> {
    /// Begins when the claim is granted: from now on the job runs here.
    pub fn begin(
        worker: &'a Worker,
        spec: &'a JobSpec,
        claimed: &'a Claimed,
        reservation: &'a Reservation,
        arrival: Arrival,
    ) -> Attempt<'a> {
        let begun = Instant::now();
        let span = begin_span(spec, claimed, arrival);
        let stop = reservation.begin(claimed.claim.epoch());
        if claimed.attempts == 0 {
            let waited_ms = worker.lease.now_unix_ms().saturating_sub(spec.job_id.unix_ms());
            METRICS.start_wait.observe(waited_ms as f64 / 1e3);
        }
        let calls = OnceLock::new();
        Attempt { worker, spec, claimed, reservation, stop, begun, calls, span }
    }

    /// Begins the span of the harness's run.
    pub fn run(&self) -> Span {
        let agent = &self.spec.agent_id;
        let mut run = Span::part_of(self.span.place(), SystemTime::now(), || format!("invoke_agent {agent}"));
        run.describe(|run| {
            run.set("gen_ai.operation.name", "invoke_agent")
                .set("gen_ai.agent.name", agent.to_string())
                .set("gen_ai.conversation.id", String::from(self.spec.session_key()));
        });
        run
    }

    /// Ends the span of an attempt whose end is in the ledger as `outcome`. Its recording began at `since`.
    pub fn recorded(&mut self, since: SystemTime, outcome: &'static str, failure: Option<FailureCode>) {
        Span::part_of(self.span.place(), since, || "conclude".to_owned()).end();
        self.ended(outcome, failure.map(FailureCode::as_str));
    }

    /// Ends the span of an attempt whose lease was lost.
    pub fn lost(&mut self) {
        self.ended("lost", Some("lease_lost"));
    }

    fn ended(&mut self, outcome: &'static str, failure: Option<&'static str>) {
        self.span.describe(|span| {
            span.set("harness.outcome", outcome);
        });
        if let Some(code) = failure {
            self.span.fail(code);
        }
        self.span.end();
    }

    /// Returns the trace context for the reply.
    pub fn place(&self) -> Option<TraceParent> {
        self.span.place().and_then(traceparent).or(self.spec.traceparent)
    }
}

/// Begins the span of the whole attempt, with the claim below it.
fn begin_span(spec: &JobSpec, claimed: &Claimed, arrival: Arrival) -> Span {
    let caller = spec.traceparent.map(|place| place.parts().into());
    let origin = Origin::below(caller, spec.trace_id().get());
    let mut span = Span::begin(Role::Consumer, origin, arrival.at, || jobs_queue(&spec.pool));
    span.describe(|span| {
        span.job(JobIds {
            job_id: spec.job_id.to_string(),
            tenant: spec.tenant.unless_default().map(str::to_owned),
            session_id: spec.session_id.to_string(),
            agent_id: spec.agent_id.to_string(),
        })
        .set("harness.attempt", i64::from(claimed.attempts) + 1)
        .set("harness.epoch", claimed.claim.epoch())
        .set("harness.worker.id", claimed.claim.worker().to_string());
    });
    if let Some(since) = arrival.claimed_from {
        Span::part_of(span.place(), since, || "claim".to_owned()).end();
    }
    span
}

/// Returns the trace context below which a harness puts its own spans: its run's; without one, the caller's; without
/// that, the root of the job's own trace.
pub fn handed_on(run: Option<Place>, spec: &JobSpec) -> TraceParent {
    let place = run.and_then(traceparent).or(spec.traceparent);
    place.unwrap_or_else(|| TraceParent::root_of(spec.job_id))
}

fn traceparent(place: Place) -> Option<TraceParent> {
    TraceParent::of_parts(place.into())
}

/// Makes a span for what a run did between two times, once that is durable.
pub fn note_iteration(
    run: Option<Place>,
    (since, until): (SystemTime, SystemTime),
    delta: &Delta,
    ordinal: i32,
) {
    let name = if delta.iterations > 0 { "iteration" } else { "checkpoint" };
    let mut span = Span::part_of(run, since, || name.to_owned());
    span.describe(|span| {
        // Counts stay far below the limit of i64.
        span.set("harness.iterations", delta.iterations as i64)
            .set("harness.checkpoint.ordinal", i64::from(ordinal))
            .set("harness.cost_usd", delta.usage.cost.dollars())
            .set("gen_ai.usage.input_tokens", delta.usage.input_tokens as i64)
            .set("gen_ai.usage.output_tokens", delta.usage.output_tokens as i64);
    });
    span.end_at(until);
}
