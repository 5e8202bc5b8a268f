//! How an ended span reaches the receiver: by a bounded queue. Each span is counted once, as exported, failed (the
//! receiver did not take it) or dropped (the queue was full). Of failures in a row, only the first is logged.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use prometheus::{IntCounterVec, register_int_counter_vec};
use tracing::{info, warn};

static SPANS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Ended spans, by outcome: exported, failed (the receiver did not take them), dropped (the queue was full)";
    let spans = register_int_counter_vec!("harness_spans_total", help, &["outcome"]);
    spans.expect("no other metric has this name")
});

/// The counts of all spans. Clones share them.
#[derive(Clone)]
pub struct Counts(Arc<Inner>);

struct Inner {
    receiver: String,
    waiting: AtomicUsize,
    failing: AtomicBool,
    dropping: AtomicBool,
    /// Why the last request failed, if the exporter does not report that itself.
    cause: Mutex<Option<String>>,
}

impl Counts {
    /// Returns counts of zero. `receiver` is used in messages.
    pub fn new(receiver: String) -> Counts {
        for outcome in ["exported", "failed", "dropped"] {
            SPANS.with_label_values(&[outcome]);
        }
        Counts(Arc::new(Inner {
            receiver,
            waiting: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            dropping: AtomicBool::new(false),
            cause: Mutex::new(None),
        }))
    }

    pub fn receiver(&self) -> &str {
        &self.0.receiver
    }

    /// Returns the number of spans in the queue.
    pub fn waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed) as u64
    }

    /// Returns the number of spans that failed or were dropped.
    pub fn lost(&self) -> u64 {
        ["failed", "dropped"].iter().map(|outcome| SPANS.with_label_values(&[*outcome]).get()).sum()
    }

    /// Notes why a request fails.
    pub fn fails_because(&self, cause: String) {
        *self.0.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
    }

    /// Takes a place in the queue, if there is room for one more.
    fn enter(&self, room: usize) -> bool {
        if self.0.waiting.fetch_add(1, Ordering::AcqRel) < room {
            return true;
        }
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        SPANS.with_label_values(&["dropped"]).inc();
        if !self.0.dropping.swap(true, Ordering::Relaxed) {
            warn!(
                receiver = self.0.receiver,
                queue_size = room,
                "spans are dropped: they end faster than the receiver takes them; counted in harness_spans_total"
            );
        }
        false
    }

    fn leave(&self, spans: usize) {
        self.0.waiting.fetch_sub(spans, Ordering::AcqRel);
    }

    fn sent(&self, spans: usize, result: &OTelSdkResult) {
        let cause = self.0.cause.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outcome = if result.is_ok() { "exported" } else { "failed" };
        SPANS.with_label_values(&[outcome]).inc_by(spans as u64);
        match result {
            Ok(()) => {
                self.0.dropping.store(false, Ordering::Relaxed);
                if self.0.failing.swap(false, Ordering::Relaxed) {
                    info!(receiver = self.0.receiver, "spans are exported again");
                }
            }
            Err(error) if !self.0.failing.swap(true, Ordering::Relaxed) => {
                let cause = cause.unwrap_or_else(|| error.to_string());
                warn!(
                    receiver = self.0.receiver,
                    cause, "spans cannot be exported and are lost; counted in harness_spans_total"
                );
            }
            Err(_) => {}
        }
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").field("receiver", &self.0.receiver).finish_non_exhaustive()
    }
}

/// The queue's entrance. It drops spans that find no room, so the queue behind it is never full.
#[derive(Debug)]
pub struct Entrance {
    queue: BatchSpanProcessor,
    counts: Counts,
    room: usize,
}

impl Entrance {
    /// Makes an entrance to a queue for `room` spans.
    pub fn new(queue: BatchSpanProcessor, counts: Counts, room: usize) -> Entrance {
        Entrance { queue, counts, room }
    }
}

impl SpanProcessor for Entrance {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.queue.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.counts.enter(self.room) {
            self.queue.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}

/// The queue's exit: an exporter whose results are counted.
#[derive(Debug)]
pub struct Counted<E> {
    exporter: E,
    counts: Counts,
}

impl<E> Counted<E> {
    pub fn new(exporter: E, counts: Counts) -> Counted<E> {
        Counted { exporter, counts }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.counts.leave(spans);
        let result = self.exporter.export(batch).await;
        self.counts.sent(spans, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
