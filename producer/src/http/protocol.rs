//! Which protocol a connection speaks, found out without taking anything from it. With TLS it was agreed on before the
//! first byte (ALPN); without TLS the first bytes say it.
//!
//! The server finds it out by reading the first 24 bytes, with which HTTP/2 begins. It gives them to the protocol as a
//! first read of their own. HTTP/1 then lacks these 24 bytes in its buffer of 8 KiB, and so doubles it: for as long as
//! the connection lasts, and a stream lasts for days. So the server is shown the end of that first read at once, before
//! any byte of it, where the connection does not begin like HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum_server::accept::Accept;
use futures::future::{MapOk, TryFutureExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What a client sends first over HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection of which nothing was read yet.
pub trait Unread {
    /// Whether it speaks HTTP/2, or may still begin to.
    fn poll_is_http2(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>>;
}

impl Unread for TcpStream {
    fn poll_is_http2(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut first = [0; PREFACE.len()];
        let mut first = ReadBuf::new(&mut first);
        ready!(self.poll_peek(cx, &mut first))?;
        Poll::Ready(Ok(PREFACE.starts_with(first.filled())))
    }
}

impl Unread for TlsStream<TcpStream> {
    /// Over TLS, HTTP/2 has to be agreed on (RFC 9113, 3.3).
    fn poll_is_http2(&self, _cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        Poll::Ready(Ok(self.get_ref().1.alpn_protocol() == Some(b"h2")))
    }
}

/// Takes connections as another one does, and looks how each begins.
#[derive(Clone)]
pub struct Looking<A>(pub A);

type Taken<A, S> = (<A as Accept<TcpStream, S>>::Stream, <A as Accept<TcpStream, S>>::Service);
type LookedAtTaken<A, S> =
    (LookedAt<<A as Accept<TcpStream, S>>::Stream>, <A as Accept<TcpStream, S>>::Service);

impl<A: Accept<TcpStream, S>, S> Accept<TcpStream, S> for Looking<A> {
    type Stream = LookedAt<A::Stream>;
    type Service = A::Service;
    type Future = MapOk<A::Future, fn(Taken<A, S>) -> LookedAtTaken<A, S>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepted = self.0.accept(stream, service);
        accepted.map_ok(|(stream, service)| (LookedAt { stream, is_known: false }, service))
    }
}

/// A connection whose first read is empty if it does not speak HTTP/2.
pub struct LookedAt<I> {
    stream: I,
    is_known: bool,
}

impl<I: Unread + AsyncRead + Unpin> AsyncRead for LookedAt<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_known {
            let is_http2 = ready!(self.stream.poll_is_http2(cx))?;
            self.is_known = true;
            // The server takes this for a client that is not going to speak HTTP/2.
            if !is_http2 {
                return Poll::Ready(Ok(()));
            }
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for LookedAt<I> {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpListener;

    use super::*;

    /// What the first read and the next one return, of a connection that begins like this.
    async fn reads(first: &[u8]) -> [Vec<u8>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(first).await.expect("room");
        let (stream, _) = listener.accept().await.expect("a connection");
        reads_of(LookedAt { stream, is_known: false }, client).await
    }

    async fn reads_of<I>(mut stream: LookedAt<I>, mut client: impl AsyncWrite + Unpin) -> [Vec<u8>; 2]
    where
        LookedAt<I>: AsyncRead + Unpin,
    {
        let mut buffer = [0; 24];
        let count = stream.read(&mut buffer).await.expect("a read");
        let one = buffer[..count].to_vec();
        client.shutdown().await.expect("an end");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("the rest");
        [one, rest]
    }

    /// A connection whose protocol was agreed on.
    struct Agreed(DuplexStream, bool);

    impl Unread for Agreed {
        fn poll_is_http2(&self, _cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
            Poll::Ready(Ok(self.1))
        }
    }

    impl AsyncRead for Agreed {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, into)
        }
    }

    #[tokio::test]
    async fn the_first_read_is_empty_unless_it_is_http2_and_nothing_is_lost() {
        let get = b"GET / HTTP/1.1\r\nhost: there\r\n\r\n";
        assert_eq!(reads(get).await, [Vec::new(), get.to_vec()]);
        assert_eq!(reads(b"P").await, [b"P".to_vec(), Vec::new()], "it may still become either");
        assert_eq!(reads(b"POST /").await, [Vec::new(), b"POST /".to_vec()]);
        let both = [PREFACE, b"more"].concat();
        assert_eq!(reads(&both).await, [PREFACE.to_vec(), b"more".to_vec()]);
        for (is_http2, read) in
            [(true, [PREFACE.to_vec(), b"more".to_vec()]), (false, [Vec::new(), both.clone()])]
        {
            let (mut client, stream) = duplex(64);
            client.write_all(&both).await.expect("room");
            let stream = LookedAt { stream: Agreed(stream, is_http2), is_known: false };
            assert_eq!(reads_of(stream, client).await, read, "it was agreed on");
        }
    }
}
