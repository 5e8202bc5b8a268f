//! How many bytes of an attempt's requests are in memory: those that are read, and those that wait for room. A program may
//! send as many requests at a time as it likes, and each may have 32 MiB; without a bound it would take the worker's memory.
//! Each attempt has a bound of its own, so that none waits for the requests of another.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::refusal::Refusal;
use crate::wire::MAX_REQUEST_BYTES;

/// The unit in which bytes are counted.
const UNIT: usize = 1_024;
/// The largest request alone, or many small ones.
const MOST: usize = MAX_REQUEST_BYTES / UNIT;
/// A program that sends its request more slowly is refused.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// Bytes that an attempt may take.
pub(super) struct Bodies(Arc<Semaphore>);

/// The bytes of one request, until this is dropped.
pub(super) struct Weight {
    _permit: OwnedSemaphorePermit,
}

impl Default for Bodies {
    fn default() -> Bodies {
        Bodies(Arc::new(Semaphore::new(MOST)))
    }
}

impl Bodies {
    /// Reads a request when there is room for it.
    pub async fn read(
        &self,
        wait: Duration,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(Bytes, Weight), Refusal> {
        // It is never closed.
        let room = self.0.clone().acquire_many_owned(units(headers));
        let Ok(Ok(permit)) = timeout(wait, room).await else {
            let message = "requests of this size have no room beside those under way: send fewer at a time";
            return Err(Refusal::wait("requests_too_large", message, Duration::from_secs(1)));
        };
        match timeout(READ_WITHIN, super::read(body)).await {
            Ok(read) => Ok((read?, Weight { _permit: permit })),
            Err(_) => Err(Refusal::too_slow()),
        }
    }
}

/// Returns how much is taken for a request: what it says, or the most.
fn units(headers: &HeaderMap) -> u32 {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let units = length.map_or(MOST, |length| length.div_ceil(UNIT).clamp(1, MOST));
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use futures::FutureExt;

    use super::*;

    fn headers(length: Option<usize>) -> HeaderMap {
        length.map(|length| (CONTENT_LENGTH, HeaderValue::from(length))).into_iter().collect()
    }

    #[tokio::test]
    async fn an_attempt_has_its_largest_request_or_many_small_ones_in_memory() {
        let bodies = Bodies::default();
        let read = |length| {
            let (bodies, headers) = (&bodies, headers(length));
            async move { bodies.read(Duration::from_secs(9), &headers, Body::from("{}")).await.ok() }
        };
        let largest = read(None).now_or_never().flatten().expect("there is room");
        assert!(read(Some(1)).now_or_never().is_none(), "they are too many");
        drop(largest);
        let small: Vec<_> =
            (0..4).filter_map(|_| read(Some(MAX_REQUEST_BYTES / 4)).now_or_never().flatten()).collect();
        assert_eq!(small.len(), 4);
        assert!(read(Some(0)).now_or_never().is_none());
        drop(small);
        let (body, _) = read(Some(2)).now_or_never().flatten().expect("there is room");
        assert_eq!(body, "{}");
    }
}
