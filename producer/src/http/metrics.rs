//! How long requests take, by route and by the class of their status; and how many streams are open.

use std::sync::LazyLock;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use prometheus::{
    HistogramVec, IntCounter, IntCounterVec, IntGauge, register_histogram_vec, register_int_counter,
    register_int_counter_vec, register_int_gauge,
};
use tokio::time::Instant;

static SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        "harness_http_request_seconds",
        "Time from a request's head to its answer, by route and class of status; a wait for a job's end is part of it, a stream of events is not",
        &["route", "status"],
        vec![0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0]
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

static FOLLOWERS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("harness_followers", "Open streams of events")
        .expect("every metric has a name of its own, so that registering cannot fail")
});

/// Counts a stream while it is open.
pub struct FollowerGauge;

impl FollowerGauge {
    /// It is open from now on.
    pub fn begin() -> FollowerGauge {
        FOLLOWERS.inc();
        FollowerGauge
    }
}

impl Drop for FollowerGauge {
    fn drop(&mut self) {
        FOLLOWERS.dec();
    }
}

/// Why jobs are refused that are right.
const REASONS: [&str; 3] = ["rate", "tenant_backlog", "backlog"];

static REFUSED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "harness_http_submissions_refused_total",
        "Jobs that were not accepted because of a limit: rate and tenant_backlog are a tenant's, backlog is that of all \
         unfinished jobs",
        &["reason"]
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

static SIGN_INS_FAILED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "harness_http_sign_ins_failed_total",
        "Requests with a key that is not valid (answered), and those that were refused before a look-up because of their \
         address (refused)",
        &["outcome"]
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

static CONNECTIONS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("harness_http_connections", "Open connections of the API")
        .expect("every metric has a name of its own, so that registering cannot fail")
});

static CONNECTIONS_REFUSED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "harness_http_connections_refused_total",
        "Connections that were closed at once because API_MAX_CONNECTIONS, or API_MAX_CONNECTIONS_PER_ADDRESS of their \
         address, were open"
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

/// What callers have too much of.
const BOUNDS: [&str; 6] = ["followers", "bodies", "answers", "batches", "tickets", "tries"];

static BOUNDS_MET: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "harness_http_bounds_met_total",
        "Requests that were refused because the caller, or all callers together, have as much of this under way as they may: \
         followers are streams and waits for an end",
        &["bound"]
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

/// Shows the counters as 0 before anything happens, because a counter that appears at 1 has no rate; and the gauges.
pub fn register() {
    LazyLock::force(&FOLLOWERS);
    for reason in REASONS {
        REFUSED.with_label_values(&[reason]);
    }
    for outcome in ["answered", "refused"] {
        SIGN_INS_FAILED.with_label_values(&[outcome]);
    }
    for bound in BOUNDS {
        BOUNDS_MET.with_label_values(&[bound]);
    }
    LazyLock::force(&CONNECTIONS);
    LazyLock::force(&CONNECTIONS_REFUSED);
}

/// Counts a request with a key that is not valid, or that was not looked at.
pub fn failed_sign_in(outcome: &str) {
    SIGN_INS_FAILED.with_label_values(&[outcome]).inc();
}

/// Counts a request that met a bound.
pub fn met_bound(bound: &str) {
    BOUNDS_MET.with_label_values(&[bound]).inc();
}

/// Counts a connection that is open from now on.
pub fn opened_connection() {
    CONNECTIONS.inc();
}

/// Counts a connection that is open no longer.
pub fn closed_connection() {
    CONNECTIONS.dec();
}

/// Counts a connection that was closed at once.
pub fn refused_connection() {
    CONNECTIONS_REFUSED.inc();
}

/// Counts jobs that were refused.
pub fn refused_submissions(reason: &str, count: u64) {
    REFUSED.with_label_values(&[reason]).inc_by(count);
}

/// Measures a request. What matches no route is one label together: a caller could name any number.
pub async fn measure(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    let class = match response.status().as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    let route = route.as_deref().unwrap_or("none");
    SECONDS.with_label_values(&[route, class]).observe(begun.elapsed().as_secs_f64());
    response
}
