//! How long requests take, by route and by the class of their status; and how many streams are open.

use std::sync::LazyLock;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use prometheus::{HistogramVec, IntGauge, register_histogram_vec, register_int_gauge};
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

/// Shows the gauges before anything happens.
pub fn register() {
    LazyLock::force(&FOLLOWERS);
}

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
