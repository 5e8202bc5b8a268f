//! How many calls the worker sends each provider at a time, read when the metrics are read.

use model::{Gateway, Loads};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts};
use tracing::warn;

struct Concurrency {
    loads: Loads,
    calls: IntGaugeVec,
    waiting: IntGauge,
}

/// Shows how the providers of a gateway fare, for as long as it runs.
pub fn show(gateway: &Gateway) {
    let registered =
        Concurrency::new(gateway.loads()).and_then(|shown| prometheus::register(Box::new(shown)));
    if let Err(cause) = registered {
        warn!(%cause, "the concurrency of model calls is not shown");
    }
}

impl Concurrency {
    fn new(loads: Loads) -> prometheus::Result<Concurrency> {
        let calls = Opts::new(
            "harness_model_concurrency",
            "Calls to a provider at a time: the limit to which this worker has come, and those in_flight",
        );
        let waiting = IntGauge::new(
            "harness_model_calls_waiting",
            "Model calls that wait in the gateway for room in a budget or a rate limit",
        )?;
        Ok(Concurrency { loads, calls: IntGaugeVec::new(calls, &["provider", "of"])?, waiting })
    }
}

impl Collector for Concurrency {
    fn desc(&self) -> Vec<&Desc> {
        [self.calls.desc(), self.waiting.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (provider, load) in self.loads.now() {
            let gauge = |of| self.calls.with_label_values(&[provider.name(), of]);
            gauge("limit").set(count(load.limit));
            gauge("in_flight").set(count(load.in_flight));
        }
        self.waiting.set(count(self.loads.waiting()));
        [self.calls.collect(), self.waiting.collect()].concat()
    }
}
