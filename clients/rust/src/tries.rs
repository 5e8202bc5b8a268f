//! How often and when a request is tried again.

use std::time::{Duration, SystemTime};

use job::Backoff;
use reqwest::header::HeaderValue;
use tokio::time::{Instant, sleep};

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Whether a status says that the same request may succeed later.
pub(crate) fn is_retried(status: u16) -> bool {
    matches!(status, 408 | 429 | 502 | 503 | 504)
}

/// The tries of one request. Their time begins with the first failure, so what a good connection took before it does not
/// count.
pub(crate) struct Tries {
    retry_for: Duration,
    until: Option<Instant>,
    failures: u32,
}

impl Tries {
    pub(crate) fn begin(retry_for: Duration) -> Tries {
        Tries { retry_for, until: None, failures: 0 }
    }

    /// Sleeps before the next try; returns the error where that would be too late.
    pub(crate) async fn pause<E>(&mut self, error: E, at_least: Duration) -> Result<(), E> {
        self.failures += 1;
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.retry_for);
        let pause = at_least + BACKOFF.next_delay(self.failures, fastrand::f64());
        if Instant::now() + pause >= until {
            return Err(error);
        }
        sleep(pause).await;
        Ok(())
    }
}

/// Reads the header `Retry-After`: seconds or a date. What cannot be read asks for nothing.
pub(crate) fn retry_after(given: Option<&HeaderValue>) -> Duration {
    let Some(text) = given.and_then(|value| value.to_str().ok()) else { return Duration::ZERO };
    if let Ok(seconds) = text.trim().parse() {
        return Duration::from_secs(seconds);
    }
    let until = httpdate::parse_http_date(text).ok();
    until.and_then(|date| date.duration_since(SystemTime::now()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_or_a_date() {
        let read = |text: &str| retry_after(Some(&HeaderValue::from_str(text).unwrap()));
        assert_eq!(read("7"), Duration::from_secs(7));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Duration::ZERO);
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!((50..=60).contains(&read(&soon).as_secs()));
        for nothing in ["", "-1", "soon"] {
            assert_eq!(read(nothing), Duration::ZERO);
        }
    }
}
