//! Traces: what a process did, for which job and for how long, as OpenTelemetry spans.
//!
//! Only this module knows OpenTelemetry. If no receiver is set, a [`Span`] is nothing and costs nothing. If one is set,
//! ended spans wait in a bounded queue for a thread of their own, and the code that makes spans never waits.

mod settings;
mod sampler;
mod receiver;
mod queue;

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider,
    Span as Recording,
};
use tracing::{debug, error, warn};

pub(crate) use settings::{TraceSettings, Variables};

/// A span's position in its trace, as [W3C Trace Context](https://www.w3.org/TR/trace-context/) passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The trace, not zero.
    pub trace_id: u128,
    /// The span, not zero.
    pub span_id: u64,
    /// Whether it is recorded. The spans that follow from it keep this.
    pub sampled: bool,
}

impl From<(u128, u64, bool)> for Place {
    fn from((trace_id, span_id, sampled): (u128, u64, bool)) -> Place {
        Place { trace_id, span_id, sampled }
    }
}

impl From<Place> for (u128, u64, bool) {
    fn from(Place { trace_id, span_id, sampled }: Place) -> (u128, u64, bool) {
        (trace_id, span_id, sampled)
    }
}

/// Where a new span belongs.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    /// Below a span of another process.
    Remote(Place),
    /// At the root of the trace of this id.
    Trace(u128),
}

impl Origin {
    /// Below this span if there is one, else in the trace of this id.
    pub fn below(parent: Option<Place>, trace_id: u128) -> Origin {
        parent.map_or(Origin::Trace(trace_id), Origin::Remote)
    }
}

/// The relation of a span to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It sends the message.
    Producer,
    /// It is the work that the message asked for.
    Consumer,
}

/// An operation that takes time, from its start until it is ended or dropped. It is nothing if no traces are made.
pub struct Span(Option<Box<Recording>>);

impl Span {
    /// No span at all.
    pub const NONE: Span = Span(None);

    /// Begins a span for a message of this queue, below a span of another process or as a root. The number of queues
    /// must be small.
    pub fn begin(role: Role, origin: Origin, at: SystemTime, queue: impl FnOnce() -> String) -> Span {
        let Some(tracing) = TRACING.get() else { return Span::NONE };
        let (kind, operation) = match role {
            Role::Producer => (SpanKind::Producer, "send"),
            Role::Consumer => (SpanKind::Consumer, "process"),
        };
        let parent = match origin {
            Origin::Remote(place) => context(place, true),
            Origin::Trace(id) => {
                OWN_TRACE.set(Some(id));
                Context::new()
            }
        };
        let queue = queue();
        let mut span = tracing.span(kind, &parent, at, format!("{operation} {queue}"));
        span.describe(|span| {
            span.set("messaging.system", "rabbitmq")
                .set("messaging.operation.name", operation)
                .set("messaging.operation.type", operation)
                .set("messaging.destination.name", queue);
        });
        span
    }

    /// Begins a part of the span at `whole`. Returns [`Span::NONE`] if there is no such span.
    pub fn part_of(whole: Option<Place>, at: SystemTime, name: impl FnOnce() -> String) -> Span {
        let (Some(tracing), Some(place)) = (TRACING.get(), whole) else { return Span::NONE };
        tracing.span(SpanKind::Internal, &context(place, false), at, name())
    }

    /// Returns its position in its trace, for the spans that follow from it.
    pub fn place(&self) -> Option<Place> {
        let context = self.0.as_ref()?.span_context();
        context.is_valid().then(|| Place {
            trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(context.span_id().to_bytes()),
            sampled: context.is_sampled(),
        })
    }

    /// Adds attributes, if it is recorded.
    pub fn describe(&mut self, describe: impl FnOnce(&mut Description<'_>)) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recording()) {
            describe(&mut Description(span));
        }
    }

    /// Marks it as failed, with a code from a small set. Texts of programs do not belong here.
    pub fn fail(&mut self, code: &'static str) {
        self.describe(|span| {
            span.set("error.type", code);
        });
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(code));
        }
    }

    /// Ends it at a moment in the past.
    pub fn end_at(&mut self, at: SystemTime) {
        if let Some(span) = &mut self.0 {
            span.end_with_timestamp(at);
        }
    }

    /// Ends it now, as dropping it does.
    pub fn end(&mut self) {
        if let Some(span) = &mut self.0 {
            span.end();
        }
    }
}

/// A span that is recorded.
pub struct Description<'a>(&'a mut Recording);

impl Description<'_> {
    /// Sets an attribute. Names are those of OpenTelemetry's conventions, or begin with `harness.`.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) -> &mut Self {
        self.0.set_attribute(KeyValue::new(name, value));
        self
    }

    /// Sets the ids of the job whose message it is.
    pub fn job(&mut self, JobIds { job_id, session_id, agent_id }: JobIds) -> &mut Self {
        self.set("messaging.message.id", job_id.clone())
            .set("harness.job.id", job_id)
            .set("harness.session.id", session_id)
            .set("harness.agent.id", agent_id)
    }
}

/// The ids of a message's job.
pub struct JobIds {
    /// The job's id, which is also the message's.
    pub job_id: String,
    /// The session's id.
    pub session_id: String,
    /// The agent's id.
    pub agent_id: String,
}

/// Set once, by a process that makes traces.
static TRACING: OnceLock<Tracing> = OnceLock::new();

thread_local! {
    /// The id of the trace that is about to begin on this thread.
    static OWN_TRACE: Cell<Option<u128>> = const { Cell::new(None) };
}

struct Tracing {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    counts: queue::Counts,
}

impl Tracing {
    fn span(&self, kind: SpanKind, parent: &Context, at: SystemTime, name: String) -> Span {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(at);
        Span(Some(Box::new(self.tracer.build_with_context(builder, parent))))
    }
}

fn context(place: Place, is_remote: bool) -> Context {
    let flags = TraceFlags::default().with_sampled(place.sampled);
    let (trace, span) = (TraceId::from(place.trace_id), SpanId::from(place.span_id));
    let context = SpanContext::new(trace, span, flags, is_remote, TraceState::default());
    Context::new().with_remote_span_context(context)
}

/// Generates random ids, except for a trace whose id was chosen before.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        OWN_TRACE.take().map_or_else(|| self.0.new_trace_id(), TraceId::from)
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

/// Starts tracing for the whole process.
pub(crate) fn start(settings: TraceSettings) {
    let shown = settings.receiver.shown.clone();
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    let counts = queue::Counts::new(shown.clone());
    let exporter = match receiver::exporter(settings.receiver, counts.clone()) {
        Ok(exporter) => exporter,
        Err(problem) => return error!(receiver = shown, cause = problem, "no traces are made"),
    };
    let config = BatchConfigBuilder::default().with_max_queue_size(settings.queue_size).build();
    let batches = BatchSpanProcessor::builder(queue::Counted::new(exporter, counts.clone()))
        .with_batch_config(config)
        .build();
    let ours = settings.resource.into_iter().map(|(name, value)| KeyValue::new(name, value));
    // The environment takes precedence.
    let resource = Resource::builder_empty()
        .with_attributes(ours)
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())])
        .with_service_name(settings.service)
        .build();
    let mut provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_id_generator(Ids::default())
        .with_span_processor(queue::Entrance::new(batches, counts.clone(), settings.queue_size));
    if let Some(sampler) = settings.sampler {
        provider = provider.with_sampler(sampler);
    }
    let provider = provider.build();
    let scope =
        InstrumentationScope::builder("harness-fleet").with_version(env!("CARGO_PKG_VERSION")).build();
    let tracer = provider.tracer_with_scope(scope);
    debug!(receiver = shown, "traces are made");
    // A second start changes nothing.
    let _ = TRACING.set(Tracing { tracer, provider, counts });
}

/// Sends the spans that wait, up to this timeout, and makes no traces any more.
pub(crate) fn finish(bound: Duration) {
    let Some(tracing) = TRACING.get() else { return };
    // The number of spans that still wait shows whether this was in time.
    let _ = tracing.provider.shutdown_with_timeout(bound);
    let lost = tracing.counts.lost() + tracing.counts.waiting();
    if lost > 0 {
        warn!(spans = lost, receiver = tracing.counts.receiver(), "spans were lost since the start");
    }
}
