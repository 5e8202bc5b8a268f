//! Traces: what a process did, for whom and for how long, as OpenTelemetry's spans.
//!
//! The only place that knows OpenTelemetry. Where no receiver is set, a [`Span`] is nothing and costs nothing; where one
//! is, ended spans wait in a queue of bounded size for a thread of their own, and who makes them waits for nobody.

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

/// A span's place in its trace: what [W3C Trace Context](https://www.w3.org/TR/trace-context/) hands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The trace, not zero.
    pub trace_id: u128,
    /// The span, not zero.
    pub span_id: u64,
    /// Whether it is recorded; what follows from it keeps to that.
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

/// Where a span that begins here belongs.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    /// Below a span of another process.
    Remote(Place),
    /// To the trace of this id, which it begins.
    Trace(u128),
}

impl Origin {
    /// Below this one if there is one, else in the trace of this id.
    pub fn below(parent: Option<Place>, trace_id: u128) -> Origin {
        parent.map_or(Origin::Trace(trace_id), Origin::Remote)
    }
}

/// What a span is to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It sends one.
    Producer,
    /// It is what one asked for.
    Consumer,
}

/// Something that takes time, from its start until it is ended or dropped; nothing where no traces are made.
pub struct Span(Option<Box<Recording>>);

impl Span {
    /// No span at all.
    pub const NONE: Span = Span(None);

    /// Begins what another process, or nobody, has asked for: what is done with a message of this queue, which is one of few.
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

    /// Begins a part of this span. Below no span, it is none.
    pub fn part_of(whole: Option<Place>, at: SystemTime, name: impl FnOnce() -> String) -> Span {
        let (Some(tracing), Some(place)) = (TRACING.get(), whole) else { return Span::NONE };
        tracing.span(SpanKind::Internal, &context(place, false), at, name())
    }

    /// Where it is in its trace, for what follows from it.
    pub fn place(&self) -> Option<Place> {
        let context = self.0.as_ref()?.span_context();
        context.is_valid().then(|| Place {
            trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(context.span_id().to_bytes()),
            sampled: context.is_sampled(),
        })
    }

    /// Says more of it, if it is recorded.
    pub fn describe(&mut self, describe: impl FnOnce(&mut Description<'_>)) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recording()) {
            describe(&mut Description(span));
        }
    }

    /// Says that it failed, and how: one of few words. Texts of programs do not belong here.
    pub fn fail(&mut self, code: &'static str) {
        self.describe(|span| {
            span.set("error.type", code);
        });
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(code));
        }
    }

    /// Ends it at a moment that has passed.
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

/// Of which job a message is.
pub struct JobIds {
    /// The job's own id, which is also its message's.
    pub job_id: String,
    /// Its session's.
    pub session_id: String,
    /// Its agent's.
    pub agent_id: String,
}

/// Set once, by a process that makes traces.
static TRACING: OnceLock<Tracing> = OnceLock::new();

thread_local! {
    /// The id of the trace that is about to be begun on this thread.
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

/// Random ids, but for a trace whose id was laid out.
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

/// Makes traces from now on, for the whole process.
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
    // What the environment says wins.
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

/// Sends what waits, for this long at most, and makes no traces any more.
pub(crate) fn finish(bound: Duration) {
    let Some(tracing) = TRACING.get() else { return };
    // Whether it was in time is told by what still waits.
    let _ = tracing.provider.shutdown_with_timeout(bound);
    let lost = tracing.counts.lost() + tracing.counts.waiting();
    if lost > 0 {
        warn!(spans = lost, receiver = tracing.counts.receiver(), "spans were lost since the start");
    }
}
