//! The connection to one place of a server: a socket, and whether TLS is used on it.
//!
//! The driver could open the socket itself. But when it asks for TLS, it takes any answer except yes for a no, even an
//! error.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::Config;

use crate::error::Refusal;

/// The limits for reading an error answer. A genuine one is shorter, and comes at once.
const MOST_BYTES: u64 = 8 << 10;
const WAIT: Duration = Duration::from_secs(1);

/// Opens a socket with the options of the address.
pub(crate) async fn tcp(address: IpAddr, port: u16, config: &Config) -> io::Result<TcpStream> {
    let stream = in_time(TcpStream::connect((address, port)), config).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(config.get_tcp_user_timeout().copied())?;
    if config.get_keepalives() {
        let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
        if let Some(interval) = config.get_keepalives_interval() {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(retries) = config.get_keepalives_retries() {
            keepalive = keepalive.with_retries(retries);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    Ok(stream)
}

pub(crate) async fn unix(folder: &Path, port: u16, config: &Config) -> io::Result<UnixStream> {
    in_time(UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))), config).await
}

/// Waits up to the address's `connect_timeout`.
pub(crate) async fn in_time<T>(
    connecting: impl Future<Output = io::Result<T>>,
    config: &Config,
) -> io::Result<T> {
    match config.get_connect_timeout() {
        Some(bound) => {
            timeout(*bound, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
        None => connecting.await,
    }
}

/// Asks whether the server continues with TLS.
pub(crate) async fn offers_tls(socket: &mut TcpStream) -> io::Result<bool> {
    // SSLRequest: its length and its number.
    socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    match socket.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        b'E' => {
            let mut answer = Vec::new();
            // The server closes the connection after the error, so everything received until then belongs to it.
            let _ = timeout(WAIT, socket.take(MOST_BYTES).read_to_end(&mut answer)).await;
            Err(io::Error::other(Refusal::InsteadOfTls(message(&answer))))
        }
        _ => Err(io::Error::other(Refusal::NotPostgres)),
    }
}

/// Returns the message in the rest of an error. The error has a length and fields, or is a text alone if the server
/// could not even start a process.
fn message(answer: &[u8]) -> String {
    let texts = |bytes: &'_ [u8]| bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let with_length = answer
        .split_first_chunk()
        .filter(|(length, _)| u64::from(u32::from_be_bytes(**length)) <= MOST_BYTES);
    let text = match with_length {
        Some((_, fields)) => {
            texts(fields).into_iter().find_map(|field| Some(field.strip_prefix(b"M")?.to_vec()))
        }
        None => texts(answer).into_iter().next(),
    };
    String::from_utf8_lossy(&text.unwrap_or_default()).trim().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_error_are_read_and_shown_without_what_a_terminal_would_obey() {
        assert_eq!(
            message(b"could not fork new process: no memory\n\0"),
            "could not fork new process: no memory"
        );
        assert_eq!(message(b"\0\0\0\x20SFATAL\0C53300\0Mtoo many\x1b[2J\0\0"), "too many\\u{1b}[2J");
        assert_eq!(message(b""), "");
    }
}
