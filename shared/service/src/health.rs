//! `health`: asks the process on the admin port whether it is healthy. A container without a shell or an HTTP client
//! checks itself this way.

use std::fmt::Display;
use std::io::{Read, Write, stderr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::{ListenAddress, Problems, Setting, with_causes};

/// The timeout of the whole request. `/health` itself answers within 100 ms.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes. It is far more than `/ready` with all its reasons.
const LONGEST_ANSWER: u64 = 64 << 10;

/// Ask the process on the admin port whether it is healthy
///
/// Exit codes: 0 it is, 1 it is not or nothing answers (stderr says why), 2 wrong settings.
#[derive(Args, Clone, Debug)]
pub struct Health {
    /// The admin port to ask; for 0.0.0.0 and [::] this host is asked
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:8000")]
    admin_addr: Setting<ListenAddress>,
    /// Ask /ready: whether it can do its work
    #[arg(long)]
    ready: bool,
}

impl Health {
    /// Asks, and returns the answer as the exit code.
    pub fn run(self) -> ExitCode {
        let mut problems = Problems::default();
        let address = problems.take("ADMIN_ADDR", self.admin_addr).map(|ListenAddress(address)| address);
        if address.is_some_and(|address| address.port() == 0) {
            problems.add("ADMIN_ADDR", "got port 0, expected the port that the process serves");
        }
        let Some(address) = address.filter(|_| problems.count() == 0) else {
            say(problems.into_error());
            return ExitCode::from(2);
        };
        match ask(reachable(address), if self.ready { "/ready" } else { "/health" }) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(with_causes(error.as_ref()));
                ExitCode::FAILURE
            }
        }
    }
}

/// Prints directly to stderr. [`crate::note`] would leave it to a thread that nothing waits for here.
fn say(problem: impl Display) {
    // If stderr fails, there is no other place to report it.
    let _ = writeln!(stderr(), "{problem}");
}

/// Replaces an address that means all interfaces with this host's loopback address.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    address
}

/// Sends a GET request. Returns an error unless the answer is 200.
fn ask(address: SocketAddr, path: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("nothing answers on {address} (ADMIN_ADDR)"))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .with_context(|| format!("asking http://{address}{path}"))?;
    let answer = read(&mut stream, deadline).with_context(|| format!("asking http://{address}{path}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
        bail!("http://{address}{path} answers \"{status}\" {body}");
    }
    Ok(())
}

/// Reads the whole answer, up to the deadline.
fn read(stream: &mut TcpStream, deadline: Instant) -> anyhow::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = [0; 4_096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no whole answer within {} s", TIMEOUT.as_secs());
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => return Ok(answer),
            length => answer.extend_from_slice(&piece[..length]),
        }
        ensure!(answer.len() as u64 <= LONGEST_ANSWER, "the answer is longer than {LONGEST_ANSWER} bytes");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::Check;
    use crate::admin::{Admin, AdminAddress};

    const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// Asks an admin port whose process is or is not ready.
    async fn asked(ready: bool, path: &'static str) -> Result<(), String> {
        let check = move || BTreeMap::from([("broken", Check::Must(ready, Some("the reason".to_owned())))]);
        let admin = Admin::bind(&AdminAddress::from(ANY_PORT), Arc::new(check)).await.unwrap();
        let (address, end) = (admin.address().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(admin.serve(end.clone()));
        let answer = tokio::task::spawn_blocking(move || ask(address, path)).await.unwrap();
        end.cancel();
        serving.await.unwrap();
        answer.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn a_process_that_is_not_ready_is_well_all_the_same() {
        assert_eq!(asked(false, "/health").await, Ok(()));
        assert_eq!(asked(true, "/ready").await, Ok(()));
        let error = asked(false, "/ready").await.unwrap_err();
        assert!(error.contains("503") && error.contains("the reason"), "{error}");
    }

    #[test]
    fn where_nothing_listens_the_error_names_the_address() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = format!("{:#}", ask(free, "/health").unwrap_err());
        assert!(error.contains(&format!("nothing answers on {free}")), "{error}");
    }

    #[test]
    fn an_answer_that_never_ends_has_a_bound() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let flood = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(&[b'x'; 1_024]).is_ok() {}
        });
        let error = format!("{:#}", ask(address, "/health").unwrap_err());
        assert!(error.contains("longer than"), "{error}");
        flood.join().unwrap();
    }

    #[test]
    fn every_address_is_asked_on_this_host() {
        let asked = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8000"), "127.0.0.1:8000");
        assert_eq!(asked("[::]:8000"), "[::1]:8000");
        assert_eq!(asked("10.1.2.3:8000"), "10.1.2.3:8000");
    }
}
