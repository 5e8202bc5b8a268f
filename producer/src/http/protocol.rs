//! Which protocol a connection without TLS speaks, found out without taking anything from it.
//!
//! The server finds it out by reading the first 24 bytes, with which HTTP/2 begins. It gives them to the protocol as a
//! first read of their own. HTTP/1 then lacks these 24 bytes in its buffer of 8 KiB, and so doubles it: for as long as
//! the connection lasts, and a stream lasts for days. So the server is shown the end of that first read at once, before
//! any byte of it, where the connection does not begin like HTTP/2.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connections::{Bounded, Held};

/// What a client sends first over HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Takes connections without TLS as [`Bounded`] does, and looks how each begins.
#[derive(Clone)]
pub struct Looking(pub Bounded);

impl<S> Accept<TcpStream, S> for Looking {
    type Stream = LookedAt;
    type Service = Held<S>;
    type Future = Ready<io::Result<(LookedAt, Held<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepted = self.0.accept(stream, service).into_inner();
        ready(accepted.map(|(stream, service)| (LookedAt { stream, is_known: false }, service)))
    }
}

/// A connection whose first read is empty if it does not begin like HTTP/2.
pub struct LookedAt {
    stream: TcpStream,
    is_known: bool,
}

impl AsyncRead for LookedAt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_known {
            let mut first = [0; PREFACE.len()];
            let mut first = ReadBuf::new(&mut first);
            match self.stream.poll_peek(cx, &mut first) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
            self.is_known = true;
            // The server takes this for a client that is not going to speak HTTP/2.
            if !PREFACE.starts_with(first.filled()) {
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for LookedAt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What the first read and the next one return, of a connection that begins like this.
    async fn reads(first: &[u8]) -> [Vec<u8>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(first).await.expect("room");
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = LookedAt { stream, is_known: false };
        let mut buffer = [0; 24];
        let count = stream.read(&mut buffer).await.expect("a read");
        let one = buffer[..count].to_vec();
        client.shutdown().await.expect("an end");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("the rest");
        [one, rest]
    }

    #[tokio::test]
    async fn the_first_read_is_empty_unless_it_is_http2_and_nothing_is_lost() {
        let get = b"GET / HTTP/1.1\r\nhost: there\r\n\r\n";
        assert_eq!(reads(get).await, [Vec::new(), get.to_vec()]);
        assert_eq!(reads(b"P").await, [b"P".to_vec(), Vec::new()], "it may still become either");
        assert_eq!(reads(b"POST /").await, [Vec::new(), b"POST /".to_vec()]);
        let both = [PREFACE, b"more"].concat();
        assert_eq!(reads(&both).await, [PREFACE.to_vec(), b"more".to_vec()]);
    }
}
