//! How many connections are open at a time.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_service::Service;

use super::metrics;

/// Takes a connection while fewer than the bound are open, and closes it otherwise.
#[derive(Clone)]
pub struct Bounded {
    free: Arc<Semaphore>,
}

impl Bounded {
    /// So many at a time.
    pub fn new(most: usize) -> Bounded {
        Bounded { free: Arc::new(Semaphore::new(most)) }
    }
}

impl<I, S> Accept<I, S> for Bounded {
    type Stream = I;
    type Service = Held<S>;
    type Future = Ready<io::Result<(I, Held<S>)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(permit) = self.free.clone().try_acquire_owned() else {
            metrics::refused_connection();
            return ready(Err(io::Error::other("as many connections are open as may be")));
        };
        metrics::opened_connection();
        ready(Ok((stream, Held { service, _place: Arc::new(Place(permit)) })))
    }
}

/// The service of a connection, which holds its place.
#[derive(Clone)]
pub struct Held<S> {
    service: S,
    _place: Arc<Place>,
}

struct Place(#[expect(dead_code, reason = "it is given back when it is dropped")] OwnedSemaphorePermit);

impl Drop for Place {
    fn drop(&mut self) {
        metrics::closed_connection();
    }
}

impl<S: Service<R>, R> Service<R> for Held<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.service.call(request)
    }
}
