//! The HTTP client of webhooks. It connects only to addresses that it has checked itself, follows no redirect, uses no
//! proxy, and has an answer within a bound.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response};
use service::{Authorities, with_causes};
use store::WebhookKeys;

use super::address::Allowed;
use super::signature::signatures;

/// How long a connection may take, its address looked up.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// How long an attempt may take as a whole.
pub(super) const ANSWERED_WITHIN: Duration = Duration::from_secs(15);
/// How much of an answer is read, so that its connection can be used again.
const READ_AT_MOST: usize = 16 << 10;
/// How long a connection stays open for the next delivery.
const KEPT_OPEN: Duration = Duration::from_secs(30);
/// The longest reason that is kept.
const REASON: usize = 300;

/// Looks a name up.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// What an attempt was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status, if there was an answer.
    pub status: Option<u16>,
    /// Why it does not count as taken.
    pub problem: Option<String>,
}

/// Sends to webhooks. Its clients are made when the first one is needed.
pub struct Outbound {
    allowed: Allowed,
    authorities: Authorities,
    lookup: Lookup,
    clients: OnceLock<Clients>,
}

/// One client for each scheme, because without TLS fewer addresses are allowed.
struct Clients {
    https: Client,
    http: Client,
}

/// The resolver of a client: of what a name leads to, it lets through what is allowed. The client connects to nothing
/// else, so a name that leads elsewhere a moment later is of no use.
struct Checked {
    tls: bool,
    allowed: Allowed,
    lookup: Lookup,
}

/// A name leads only to addresses that are not allowed. Which ones these are is not said: the reader is a tenant.
#[derive(Debug, thiserror::Error)]
#[error("its name does not lead to an address of the public internet")]
struct NotAllowed;

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (tls, allowed) = (self.tls, self.allowed.clone());
        let looking = (self.lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let found = looking.await?;
            let checked: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| allowed.may_reach(*address, tls))
                // The port is the URL's.
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            if checked.is_empty() {
                return Err(NotAllowed.into());
            }
            Ok(Box::new(checked.into_iter()) as Addrs)
        })
    }
}

fn of_the_system(name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
    Box::pin(
        async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) },
    )
}

impl Outbound {
    /// Sends to what is public or `allowed`, and trusts these authorities.
    pub fn new(allowed: Allowed, authorities: Authorities) -> Outbound {
        Outbound { allowed, authorities, lookup: Arc::new(of_the_system), clients: OnceLock::new() }
    }

    /// What is allowed beside the public internet.
    pub fn allowed(&self) -> &Allowed {
        &self.allowed
    }

    /// Sends a message. Each attempt of one has the same `id`.
    pub async fn post(&self, url: &str, id: &str, keys: &WebhookKeys, body: Vec<u8>) -> Answer {
        // The setting may have changed since the webhook was made, and an address in place of a name is not resolved.
        let url = match self.allowed.check(url) {
            Ok(url) => url,
            Err(problem) => return Answer { status: None, problem: Some(problem) },
        };
        let clients = match self.clients() {
            Ok(clients) => clients,
            Err(error) => return Answer { status: None, problem: Some(with_causes(&error)) },
        };
        let client = if url.scheme() == "https" { &clients.https } else { &clients.http };
        let timestamp_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let signature = signatures(keys, id, timestamp_s, &body);
        let request = client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp_s)
            .header("webhook-signature", signature)
            .body(body);
        match request.send().await {
            Ok(response) => {
                let status = response.status();
                discard(response).await;
                let problem = match status.as_u16() {
                    200..=299 => None,
                    300..=399 => Some(format!("answered with {status}; redirects are not followed")),
                    _ => Some(format!("answered with {status}")),
                };
                Answer { status: Some(status.as_u16()), problem }
            }
            Err(error) => Answer { status: None, problem: Some(reason(&error)) },
        }
    }

    fn clients(&self) -> Result<&Clients, BuildError> {
        if let Some(clients) = self.clients.get() {
            return Ok(clients);
        }
        let made = Clients { https: self.client(true)?, http: self.client(false)? };
        Ok(self.clients.get_or_init(|| made))
    }

    fn client(&self, tls: bool) -> Result<Client, BuildError> {
        let checked = Checked { tls, allowed: self.allowed.clone(), lookup: self.lookup.clone() };
        let builder: ClientBuilder = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .https_only(tls)
            .connect_timeout(CONNECTED_WITHIN)
            .timeout(ANSWERED_WITHIN)
            .pool_idle_timeout(KEPT_OPEN)
            .user_agent(concat!("harness-fleet/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(self.authorities.rustls()?)
            .dns_resolver(Arc::new(checked));
        Ok(builder.build()?)
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("preparing TLS")]
    Tls(#[from] rustls::Error),
    #[error("preparing the HTTP client")]
    Client(#[from] reqwest::Error),
}

/// Reads what little there is of an answer. The status counts, whatever becomes of the rest.
async fn discard(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > READ_AT_MOST {
            return;
        }
    }
}

/// The reason of a failure, without the address.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut deepest: &dyn Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = deepest.to_string();
    text.chars().take(REASON).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn keys() -> WebhookKeys {
        WebhookKeys { secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), old_secret: None }
    }

    /// A client whose names lead to these addresses, one list after the other; the last one stays.
    fn outbound(allowed: &str, answers: &[&[&str]]) -> Outbound {
        let answers: VecDeque<Vec<IpAddr>> =
            answers.iter().map(|list| list.iter().map(|text| text.parse().unwrap()).collect()).collect();
        let answers = Arc::new(Mutex::new(answers));
        let lookup: Lookup = Arc::new(move |_| {
            let mut answers = answers.lock().unwrap();
            let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
            Box::pin(async move { Ok(next.unwrap_or_default()) })
        });
        Outbound { lookup, ..Outbound::new(allowed.parse().unwrap(), Authorities::default()) }
    }

    /// A server that answers every request on connections that it then closes; returns its port.
    async fn server(address: &str, port: u16, answer: &'static str) -> (u16, Arc<Mutex<usize>>) {
        let listener = TcpListener::bind((address, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(Mutex::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                *counted.lock().unwrap() += 1;
                let mut buffer = vec![0; 4_096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, count)
    }

    const OK: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_after_its_check_reaches_nothing_else() {
        // The same port at an allowed address and at one that is not.
        let (port, allowed) = server("127.0.0.2", 0, OK).await;
        let (_, private) = server("127.0.0.1", port, OK).await;
        let outbound =
            outbound("127.0.0.2", &[&["127.0.0.2"], &["127.0.0.1"], &["127.0.0.1", "127.0.0.2"], &["::1"]]);
        let url = format!("http://rebinding.example:{port}/");
        let first = outbound.post(&url, "m", &keys(), Vec::new()).await;
        assert_eq!(first, Answer { status: Some(204), problem: None });
        let second = outbound.post(&url, "m", &keys(), Vec::new()).await;
        assert_eq!(second.problem, Some(NotAllowed.to_string()));
        // Of several addresses the allowed one is taken.
        assert_eq!(outbound.post(&url, "m", &keys(), Vec::new()).await.status, Some(204));
        assert_eq!(outbound.post(&url, "m", &keys(), Vec::new()).await.problem, Some(NotAllowed.to_string()));
        assert_eq!((*allowed.lock().unwrap(), *private.lock().unwrap()), (2, 0));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let (other, reached) = server("127.0.0.2", 0, OK).await;
        let answer = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.2:{other}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let (port, _) = server("127.0.0.2", 0, answer.leak()).await;
        let outbound = outbound("127.0.0.2", &[]);
        let got = outbound.post(&format!("http://127.0.0.2:{port}/"), "m", &keys(), Vec::new()).await;
        assert!(got.status == Some(307) && got.problem.is_some(), "{got:?}");
        assert_eq!(*reached.lock().unwrap(), 0);
    }

    #[tokio::test]
    async fn the_system_s_own_names_are_checked_as_well() {
        let (port, reached) = server("127.0.0.1", 0, OK).await;
        let outbound = Outbound::new(Allowed::default(), Authorities::default());
        let got = outbound.post(&format!("https://localhost:{port}/"), "m", &keys(), Vec::new()).await;
        assert_eq!(got.problem, Some(NotAllowed.to_string()));
        assert_eq!(*reached.lock().unwrap(), 0);
    }
}
