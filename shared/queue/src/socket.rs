//! The byte stream under lapin: TCP or TLS. What comes from the broker passes the [`FrameRepair`].
//!
//! lapin runs each connection on a thread of its own, which waits for the broker without a timeout during the
//! handshake. So a stream can be cut: its next read or write fails, and the thread ends.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures::io::{AsyncRead, AsyncWrite, IoSlice};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, TLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::frame_repair::{FrameMax, FrameRepair};

type Transport = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Connects and completes the handshake. Trusts the system's authorities and the given ones (PEM). Cancelling `cut`
/// ends the connection at once, at any stage.
pub(crate) async fn connect(
    uri: AMQPUri,
    own_authorities: Option<String>,
    properties: ConnectionProperties,
    cut: CancellationToken,
) -> lapin::Result<Connection> {
    let frame_max = FrameMax::unknown();
    let negotiated = frame_max.clone();
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), RepairingReactor(Tokio::current())));
    let open = async move |uri: AMQPUri, _: Runtime<_>| {
        let tokio = Runtime::new(Tokio::current());
        let tls = TLSConfig { cert_chain: own_authorities.as_deref(), ..TLSConfig::default() };
        let connecting = uri.connect_with_config_async(tls, &tokio);
        let stream = cut.run_until_cancelled(connecting).await.unwrap_or_else(|| Err(was_cut()))?;
        Ok(AsyncTcpStream::Plain(RepairedStream::new(stream, cut.clone(), frame_max.clone())))
    };
    let connection = Connection::connector(uri, runtime, open, properties).await?;
    // This happens before the first channel, and therefore before the first message.
    negotiated.negotiated(connection.configuration().frame_max());
    Ok(connection)
}

fn was_cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut by this process")
}

/// A connection whose incoming frames are inspected and repaired.
pub(crate) struct RepairedStream {
    stream: Transport,
    frame_repair: FrameRepair,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl RepairedStream {
    fn new(stream: Transport, cut: CancellationToken, frame_max: FrameMax) -> RepairedStream {
        RepairedStream {
            stream,
            frame_repair: FrameRepair::new(frame_max),
            cut: Box::pin(cut.cancelled_owned()),
        }
    }

    /// Passes the poll on unless the stream is cut. Also registers to be woken by the cut.
    fn unless_cut<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match poll {
            Poll::Pending if self.cut.as_mut().poll(cx).is_ready() => Poll::Ready(Err(was_cut())),
            poll => poll,
        }
    }
}

impl AsyncRead for RepairedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let taken = this.frame_repair.take(into);
            if taken > 0 || into.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            let read = Pin::new(&mut this.stream).poll_read(cx, this.frame_repair.space());
            let read = ready!(this.unless_cut(cx, read))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.frame_repair
                .filled(read)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl AsyncWrite for RepairedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_cut(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.unless_cut(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_close(cx);
        self.unless_cut(cx, closed)
    }
}

/// The tokio reactor with another type of stream. lapin takes its stream from the closure above and needs only the
/// type.
#[derive(Clone, Debug)]
struct RepairingReactor(Tokio);

impl Reactor for RepairingReactor {
    type TcpStream = RepairedStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl futures::Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<RepairedStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async {
            let stream = AsyncTcpStream::Plain(connecting.await?);
            Ok(RepairedStream::new(stream, CancellationToken::new(), FrameMax::unknown()))
        }
    }
}
