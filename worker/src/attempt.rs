//! One attempt at a job: who runs what, and what a trace shows of it.
//!
//! Its span goes from the delivery to the recorded end. Below it are the claim, the harness's run, each iteration when it
//! is known (with its checkpoint), and the conclusion. All attempts at a job, wherever, are in one trace.

use std::time::{Duration, Instant, SystemTime};

use harness::{Delta, Session, Stopper};
use job::{Failure, FailureCode, JobSpec, Outcome, TraceParent};
use queue::jobs_queue;
use service::{JobIds, Origin, Place, Role, Span};
use store::Claimed;

use crate::metrics::METRICS;
use crate::running::Reservation;
use crate::worker::Worker;

/// Since when a job is here.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its message was delivered, or the end of the job before it has brought it along.
    pub at: SystemTime,
    /// It was claimed for its message.
    pub claimed_from: Option<SystemTime>,
}

/// A claimed job in the hands of a worker.
pub struct Attempt<'a> {
    pub worker: &'a Worker,
    pub spec: &'a JobSpec,
    pub claimed: &'a Claimed,
    pub reservation: &'a Reservation,
    /// What stops its run.
    pub stop: Stopper,
    pub begun: Instant,
    span: Span,
}

/// How an attempt has ended, as far as this worker knows.
pub enum Ended {
    /// Its run has come to this; with the session's new state, where that is to be written whole.
    Ran(Outcome, Option<Session>),
    /// It was not run, and never will be.
    Refused(Failure, Option<Session>),
    /// It was not run, and comes again after so long.
    Postponed(Duration),
    /// The lease is lost, and nothing may be recorded.
    Lost,
}

impl<'a> Attempt<'a> {
    /// Begins with the claim's answer: from now on the job runs here.
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
        Attempt { worker, spec, claimed, reservation, stop, begun, span }
    }

    /// The harness's run begins.
    pub fn run(&self) -> Span {
        let agent = &self.spec.agent_id;
        let mut run = Span::part_of(self.span.place(), SystemTime::now(), || format!("invoke_agent {agent}"));
        run.describe(|run| {
            run.set("gen_ai.operation.name", "invoke_agent")
                .set("gen_ai.agent.name", agent.to_string())
                .set("gen_ai.conversation.id", self.spec.session_id.to_string());
        });
        run
    }

    /// Its end is in the ledger, under this name, unless the lease was lost; it was being recorded since then.
    pub fn recorded(&mut self, since: SystemTime, outcome: &'static str, failure: Option<FailureCode>) {
        Span::part_of(self.span.place(), since, || "conclude".to_owned()).end();
        self.ended(outcome, failure.map(FailureCode::as_str));
    }

    /// It will have no end here.
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

    /// Where it is in its trace, for who hears of its end.
    pub fn place(&self) -> Option<TraceParent> {
        self.span.place().and_then(traceparent).or(self.spec.traceparent)
    }
}

/// The span of the whole attempt, with the claim below it.
fn begin_span(spec: &JobSpec, claimed: &Claimed, arrival: Arrival) -> Span {
    let caller = spec.traceparent.map(|place| place.parts().into());
    let origin = Origin::below(caller, spec.trace_id().get());
    let mut span = Span::begin(Role::Consumer, origin, arrival.at, || jobs_queue(&spec.pool));
    span.describe(|span| {
        span.job(JobIds {
            job_id: spec.job_id.to_string(),
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

/// What a harness is given to put its own spans below: its run's, or where none is made, what the caller gave, or the root of
/// the job's own trace.
pub fn handed_on(run: Option<Place>, spec: &JobSpec) -> TraceParent {
    let place = run.and_then(traceparent).or(spec.traceparent);
    place.unwrap_or_else(|| TraceParent::root_of(spec.job_id))
}

fn traceparent(place: Place) -> Option<TraceParent> {
    TraceParent::of_parts(place.into())
}

/// Notes what a run has done in a span of time, once that is durable.
pub fn note_iteration(
    run: Option<Place>,
    (since, until): (SystemTime, SystemTime),
    delta: &Delta,
    ordinal: i32,
) {
    let name = if delta.iterations > 0 { "iteration" } else { "checkpoint" };
    let mut span = Span::part_of(run, since, || name.to_owned());
    span.describe(|span| {
        // Counts end far below that of i64.
        span.set("harness.iterations", delta.iterations as i64)
            .set("harness.checkpoint.ordinal", i64::from(ordinal))
            .set("harness.cost_usd", delta.usage.cost.dollars())
            .set("gen_ai.usage.input_tokens", delta.usage.input_tokens as i64)
            .set("gen_ai.usage.output_tokens", delta.usage.output_tokens as i64);
    });
    span.end_at(until);
}
